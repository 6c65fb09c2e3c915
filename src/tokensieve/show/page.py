"""A report: what a page or a sheet of pictures is made of, and the files it becomes, written whole or not at all.

The page is one file: its pictures are inside it, it asks the network for nothing and needs no script.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from .. import __version__
from .._files import draft

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Chart

SUFFIXES = (".png", ".html")
"""A sheet of pictures, and a page."""


@dataclass(frozen=True)
class Fact:
    """A figure worth reading first: a short value in large type, its label below. `alert` gives it another colour."""

    value: str
    label: str
    alert: bool = False


@dataclass(frozen=True)
class Key:
    """A line of a legend: a colour, as #rrggbb, and what it means."""

    colour: str
    meaning: str


@dataclass(frozen=True)
class Panel:
    """A picture with its caption.

    Attributes:
        note: a second line; `alert` gives it another colour.
        alt: what can be seen, for those who cannot see it; by default the caption.
        legend: what its colours mean, below the note.
    """

    image: Image.Image
    caption: str
    note: str = ""
    alt: str = ""
    alert: bool = False
    legend: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column names the row, the others are figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A chart as SVG; `alt` says what it shows."""

    svg: str
    alt: str
    caption: str = ""

    @classmethod
    def of(cls, chart: Chart, alt: str, caption: str = "") -> Plot:
        """A matplotlib figure as it is."""
        text = StringIO()
        chart.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        return cls(text.getvalue(), alt, caption)


@dataclass(frozen=True)
class Section:
    """A part of a report. Each field but the title may be left out.

    Attributes:
        lead: what to know first, in a sentence.
        facts: its figures.
        panels: rows of panels; one row flows with the width of the page, several are columns that stay aligned, None
            leaving a cell empty.
        table, plot: below the panels.
    """

    title: str
    lead: str = ""
    facts: tuple[Fact, ...] = ()
    panels: tuple[tuple[Panel | None, ...], ...] = ()
    table: Table | None = None
    plot: Plot | None = None


@dataclass(frozen=True)
class Report:
    """Everything on a page, in order; `notes` are paragraphs at its end."""

    title: str
    lead: str = ""
    facts: tuple[Fact, ...] = ()
    sections: tuple[Section, ...] = ()
    notes: tuple[str, ...] = ()


def write_page(path: str | os.PathLike[str], report: Report) -> Path:
    """Write a report as one self-contained HTML file. Raises `InputError` for a place that cannot be written to."""
    page = _template().render(report=report, version=__version__)
    # A file name may hold what is no text at all.
    return _write(Path(path), page.encode("utf-8", errors="replace"))


def fragment(section: Section) -> str:
    """What a section holds, without its title and lead, as HTML to stand in another page; `style` is its look."""
    return str(_environment().get_template("parts.html.jinja").module.content(section))  # type: ignore[attr-defined]


def style() -> str:
    """The look of `fragment`, as CSS. It wants the colours --soft, --rule, --accent and --alert."""
    return _environment().get_template("parts.css").render()


def write_png(path: str | os.PathLike[str], image: Image.Image) -> Path:
    """Write a picture as PNG. Raises `InputError` for a place that cannot be written to."""
    data = BytesIO()
    image.save(data, format="PNG")
    return _write(Path(path), data.getvalue())


def _write(path: Path, data: bytes) -> Path:
    with draft(path) as file:
        file.write_bytes(data)
    return path


def _template() -> Template:
    return _environment().get_template("page.html.jinja")


@cache
def _environment() -> Environment:
    # The name of the template does not end in .html, by which autoescape would otherwise go.
    environment = Environment(
        loader=PackageLoader("tokensieve.show", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": _image_uri, "svg_uri": _svg_uri}
    return environment


def _image_uri(image: Image.Image) -> str:
    data = BytesIO()
    # A tenth of a PNG's size; at this quality the edges of patches stay crisp.
    image.save(data, format="WEBP", quality=90, method=4)
    return _uri("image/webp", data.getvalue())


def _svg_uri(svg: str) -> str:
    return _uri("image/svg+xml", svg.encode())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
