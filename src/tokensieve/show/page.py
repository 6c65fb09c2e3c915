"""A report, the content of a page or of a sheet of pictures, and the functions that write it to a file.

The page is a single file: it contains its pictures, loads nothing from the network and needs no script.
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
"""File endings of a sheet of pictures and of a page."""


@dataclass(frozen=True)
class Fact:
    """A key figure: a short value in large type with its label below. `alert` gives it another colour."""

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
        alt: alternative text for screen readers; by default the caption.
        legend: the meaning of its colours, below the note.
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
    """A chart as SVG; `alt` is its alternative text."""

    svg: str
    alt: str
    caption: str = ""

    @classmethod
    def of(cls, chart: Chart, alt: str, caption: str = "") -> Plot:
        """A plot from a matplotlib figure."""
        text = StringIO()
        chart.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        return cls(text.getvalue(), alt, caption)


@dataclass(frozen=True)
class Section:
    """A part of a report. Each field but the title may be left out.

    Attributes:
        lead: an introductory sentence.
        facts: key figures.
        panels: rows of panels. A single row wraps at the width of the page; several rows have aligned columns, with
            None for an empty cell.
        table, plot: shown below the panels.
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
    """Write a report as one self-contained HTML file. Raises `InputError` if `path` cannot be written."""
    page = _template().render(report=report, version=__version__)
    # File names may contain bytes that are not valid text.
    return _write(Path(path), page.encode("utf-8", errors="replace"))


def fragment(section: Section) -> str:
    """The content of a section, without title and lead, as HTML to include in another page; `style` gives its CSS."""
    return str(_environment().get_template("parts.html.jinja").module.content(section))  # type: ignore[attr-defined]


def style() -> str:
    """CSS for `fragment`. The page must define the colours --soft, --rule, --accent and --alert."""
    return _environment().get_template("parts.css").render()


def write_png(path: str | os.PathLike[str], image: Image.Image) -> Path:
    """Write a picture as PNG. Raises `InputError` if `path` cannot be written."""
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
    # autoescape=True, since jinja would decide by the ending .html, which the template's name does not have.
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
    # A tenth of the size of a PNG; at this quality the edges of patches stay sharp.
    image.save(data, format="WEBP", quality=90, method=4)
    return _uri("image/webp", data.getvalue())


def _svg_uri(svg: str) -> str:
    return _uri("image/svg+xml", svg.encode())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
