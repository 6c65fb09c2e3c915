"""Draws a report as one picture, with the titles, figures, panels and tables of the page, but without charts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from .page import Fact, Key, Panel, Report, Section, Table

MARGIN, GAP = 40, 20
SWATCH = 14
"""Side of a colour square in a legend, in pixels."""
_NARROWEST_COLUMN, _NARROWEST_TEXT, _WIDEST_TEXT = 150, 820, 1500
GROUND, INK, SOFT, RULE, ACCENT, ALERT = "#ffffff", "#16191d", "#59626d", "#d8dde3", "#0b5fa5", "#a84300"


def sheet(report: Report) -> Image.Image:
    """Draw a report on white, as wide as its widest row of panels."""
    rows = [row for section in report.sections for row in section.panels]
    widths = [_columns(section) for section in report.sections if section.panels]
    content = max([_NARROWEST_TEXT, *(sum(columns) + GAP * (len(columns) - 1) for columns in widths)])
    if not rows:
        content = _WIDEST_TEXT
    paper = _Paper(content)
    paper.text(report.title, 34, bold=True)
    paper.text(report.lead, 19, SOFT, above=8)
    paper.facts(report.facts, 30)
    for section in report.sections:
        paper.rule()
        paper.text(section.title, 23, bold=True)
        paper.text(section.lead, 18, SOFT, above=4)
        paper.facts(section.facts, 22)
        for row in section.panels:
            paper.panels(row, _columns(section))
        if section.table:
            paper.table(section.table)
    if report.notes:
        paper.rule()
    for note in report.notes:
        paper.text(note, 16, SOFT, above=4)
    return paper.image()


def _columns(section: Section) -> list[int]:
    """The width of each column of panels."""
    count = max(map(len, section.panels))
    columns: list[list[Panel | None]] = [[row[i] for row in section.panels if i < len(row)] for i in range(count)]
    return [max([_NARROWEST_COLUMN, *(panel.image.width for panel in column if panel)]) for column in columns]


class _Paper:
    """Lays out a sheet from top to bottom; drawing operations are collected until the height is known."""

    def __init__(self, width: int) -> None:
        self.width, self.y = width, MARGIN
        self.drawn: list[Callable[[ImageDraw.ImageDraw], object]] = []
        self.pasted: list[tuple[Image.Image, tuple[int, int]]] = []

    def text(self, text: str, size: int, fill: str = INK, *, bold: bool = False, above: int = 0) -> None:
        if text:
            self.y += above + self._lines(text, MARGIN, self.y + above, min(self.width, _WIDEST_TEXT), size, fill, bold)

    def rule(self) -> None:
        self.y += 26
        line = (MARGIN, self.y, MARGIN + self.width, self.y)
        self.drawn.append(lambda draw: draw.line(line, fill=RULE, width=2))
        self.y += 20

    def facts(self, facts: Sequence[Fact], size: int) -> None:
        x, top, bottom = MARGIN, self.y + 14, self.y
        for fact in facts:
            fact_width = max(_length(fact.value, size, True), _length(fact.label, 16, False))
            if x > MARGIN and x + fact_width > MARGIN + self.width:
                x, top = MARGIN, bottom + 12
            height = self._lines(fact.value, x, top, self.width, size, ALERT if fact.alert else ACCENT, True)
            height += self._lines(fact.label, x, top + height, self.width, 16, SOFT, False)
            x, bottom = x + fact_width + 2 * GAP, max(bottom, top + height)
        self.y = bottom

    def panels(self, row: Sequence[Panel | None], columns: Sequence[int]) -> None:
        x, top, bottom = MARGIN, self.y + 18, self.y
        for panel, width in zip(row, columns, strict=False):
            if panel is not None:
                self.pasted.append((panel.image, (x, top)))
                y = top + panel.image.height + 8
                y += self._lines(panel.caption, x, y, width, 18, INK, True)
                y += self._lines(panel.note, x, y, width, 16, ALERT if panel.alert else SOFT, False)
                y = self._legend(panel.legend, x, y, width)
                bottom = max(bottom, y)
            x += width + GAP
        self.y = bottom

    def _legend(self, keys: Sequence[Key], x: int, y: int, width: int) -> int:
        """Draw a colour square and a text for each key; returns the y coordinate of their end."""
        for key in keys:
            swatch = (x, y + 4, x + SWATCH, y + 4 + SWATCH)
            self.drawn.append(partial(ImageDraw.ImageDraw.rectangle, xy=swatch, fill=key.colour, outline=RULE))
            y += self._lines(key.meaning, x + SWATCH + 8, y, width - SWATCH - 8, 16, SOFT, False)
        return y

    def table(self, table: Table) -> None:
        self.text(table.caption, 16, SOFT, above=16)
        self.y += 12
        rows = [table.head, *table.rows]
        widths = [max(_length(row[i], 17, True) for row in rows) + 36 for i in range(len(table.head))]
        for row in rows:
            x, head, height = MARGIN, row is table.head, 0
            for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
                bold = i == 0 and not head
                indent = 0 if i == 0 else width - _length(cell, 17, bold)
                height = max(height, self._lines(cell, x + indent, self.y, width, 17, SOFT if head else INK, bold))
                x += width
            self.y += height + 8
            line = (MARGIN, self.y - 3, x, self.y - 3)
            self.drawn.append(partial(ImageDraw.ImageDraw.line, xy=line, fill=RULE))

    def image(self) -> Image.Image:
        sheet_image = Image.new("RGB", (self.width + 2 * MARGIN, self.y + MARGIN), GROUND)
        draw = ImageDraw.Draw(sheet_image)
        for step in self.drawn:
            step(draw)
        for picture, position in self.pasted:
            sheet_image.paste(picture, position, picture if picture.mode == "RGBA" else None)
        return sheet_image

    def _lines(self, text: str, x: int, y: int, width: int, size: int, fill: str, bold: bool) -> int:
        """Draw text in lines of at most `width` pixels; returns their height."""
        if not text:
            return 0
        lines, step = wrapped(text, width, size, bold), round(1.35 * size)
        for i, line in enumerate(lines):
            position = (x, y + i * step)
            self.drawn.append(partial(_draw_text, position=position, text=line, fill=fill, font=font(size, bold)))
        return step * len(lines)


def _draw_text(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, fill: str, font: ImageFont.FreeTypeFont
) -> None:
    draw.text(position, text, fill=fill, font=font)


def wrapped(text: str, width: int, size: int, bold: bool) -> list[str]:
    """Break text into lines of at most `width` pixels: at spaces, or inside a word that is too long for a line."""
    lines = []
    for paragraph in text.encode("utf-8", errors="replace").decode().split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and _length(longer, size, bold) > width:
                lines.append(line)
                longer = word
            while _length(longer, size, bold) > width and len(longer) > 1:
                fits = bisect_right(range(1, len(longer)), width, key=lambda n: _length(longer[:n], size, bold)) or 1
                lines.append(longer[:fits])
                longer = longer[fits:]
            line = longer
        lines.append(line)
    return lines


def _length(text: str, size: int, bold: bool) -> int:
    """Width of the longest line in pixels."""
    lines = text.encode("utf-8", errors="replace").decode().split("\n")
    return round(max(font(size, bold).getlength(line) for line in lines))


@cache
def font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # matplotlib ships this font, so that a sheet looks the same on every machine.
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)
