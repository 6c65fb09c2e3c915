"""The page: one file that asks for nothing, whatever text is put into it; written whole or not at all."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tokensieve.errors import InputError
from tokensieve.show import page
from tokensieve.show.page import Fact, Panel, Plot, Report, Section, Table, write_page, write_png

EVIL = "<script>alert('x')</script> & \"quoted\""


class Reader(HTMLParser):
    """Notes all tags, and that every one that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def colour(name, size=(12, 8)):
    return Image.new("RGB", size, name)


@pytest.fixture
def report():
    chart = Figure(figsize=(2, 2))
    chart.subplots().plot([1, 2], [3, 4])
    one_row = Section(
        EVIL, EVIL, (Fact(EVIL, EVIL), Fact("3", "plain", alert=True)), ((Panel(colour("red"), EVIL, EVIL, EVIL),),)
    )
    panels = (
        (Panel(colour("red"), "a"), Panel(colour("blue"), "b", alert=True, note="changed")),
        (None, Panel(colour("lime"), "c")),
    )
    table = Table(("map", EVIL), ((EVIL, "1"), ("cam", "2")), EVIL)
    several = Section("several", panels=panels, table=table, plot=Plot.of(chart, EVIL, EVIL))
    return Report(EVIL, EVIL, (Fact("2x", EVIL),), (one_row, several, Section("bare")), (EVIL,))


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def test_text_is_text_whatever_it_holds(report, tmp_path):
    found = read(write_page(tmp_path / "a.html", report))
    assert not found.all("script")
    assert sum(EVIL in text for text in found.texts) == 15
    assert [attributes["alt"] for attributes in found.all("img")] == [EVIL, "a", "b", "c", EVIL]


def test_a_tables_caption_stands_outside_of_the_box_that_scrolls(report, tmp_path):
    """A narrow screen would show as much of it as of the table."""
    found = read(write_page(tmp_path / "a.html", report))
    places = [attributes.get("class") for _, attributes in found.tags]
    assert places[places.index("caption") + 1] == "box"
    assert not found.all("caption")


def test_nothing_is_asked_of_the_network(report, tmp_path):
    path = write_page(tmp_path / "a.html", report)
    found = read(path)
    for _, attributes in found.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in path.read_text()
    assert "@import" not in path.read_text()
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_pictures_are_inside(report, tmp_path):
    found = read(write_page(tmp_path / "a.html", report))
    *pictures, chart = found.all("img")
    for attributes, name in zip(pictures, ("red", "red", "blue", "lime"), strict=True):
        data = base64.b64decode(attributes["src"].partition("base64,")[2])
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        assert (attributes["width"], attributes["height"]) == ("12", "8")
        expected = colour(name).getpixel((0, 0))
        assert all(abs(a - b) < 24 for a, b in zip(picture.getpixel((6, 4)), expected, strict=True))
    assert chart["src"].startswith("data:image/svg+xml;base64,")
    assert b"<svg" in base64.b64decode(chart["src"].partition("base64,")[2])


def test_several_rows_stay_aligned_and_wide_things_scroll_alone(report, tmp_path):
    found = read(write_page(tmp_path / "a.html", report))
    boxes = [a for a in found.all("div") if a.get("class") == "box"]
    assert len(boxes) == 2, "the columns and the table"
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes), "reachable with the keyboard"
    (grid,) = [a["style"] for a in found.all("div") if a.get("class") == "grid"]
    assert "repeat(2, minmax(0, 1fr))" in grid
    assert [a for a in found.all("th") if a.get("scope") == "row"] == 2 * [{"scope": "row"}]


def test_what_calls_for_attention_is_marked(report, tmp_path):
    found = read(write_page(tmp_path / "a.html", report))
    assert sum(attributes.get("class") == "alert" for _, attributes in found.tags) == 2


def test_light_dark_and_paper(report, tmp_path):
    text = write_page(tmp_path / "a.html", report).read_text()
    for rule in ("prefers-color-scheme: dark", "@media print", 'content="light dark"', "width=device-width"):
        assert rule in text


def test_every_colour_of_the_page_has_contrast(tmp_path):
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text."""
    text = write_page(tmp_path / "a.html", Report("x")).read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", rule)) for rule in re.findall(r":root \{(.*?)\}", text, re.DOTALL)]
    assert len(schemes) == 2
    for scheme in schemes:
        for ink in ("ink", "soft", "accent", "alert"):
            light, dark = sorted((luminance(scheme[ink]), luminance(scheme["ground"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 4.5


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_names_that_are_no_text_are_written(tmp_path):
    assert "?.png" in write_page(tmp_path / "a.html", Report("caf\udce9.png".replace("caf", ""))).read_text()


def test_png_is_the_picture(tmp_path):
    path = write_png(tmp_path / "a.png", colour("teal"))
    with Image.open(path) as found:
        assert found.format == "PNG"
        assert found.getpixel((3, 3)) == colour("teal").getpixel((3, 3))


@pytest.mark.parametrize(
    "write", [lambda path: write_page(path, Report("x")), lambda path: write_png(path, colour("red"))]
)
@pytest.mark.parametrize("broken", ["replace", "write"])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write, broken):
    path = tmp_path / "a.html"
    path.write_text("old")

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.os, "replace", fail) if broken == "replace" else monkeypatch.setattr(
        page.Path, "write_bytes", fail
    )
    with pytest.raises(InputError, match=r"a\.html cannot be written: No space left on device\."):
        write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.html"]
    assert path.read_text() == "old"


def test_the_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "other").touch()
    assert write_page(tmp_path / "a.html", Report("x")).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_section_stands_in_other_pages_as_on_its_own(report, tmp_path):
    """The same elements inside, text is text, and a look that only wants colours."""
    whole = write_page(tmp_path / "a.html", report).read_text(encoding="utf-8")
    for section in report.sections:
        part = page.fragment(section)
        assert part.strip() in whole
        assert not Reader(part).all("script")
    assert page.style() in whole
    wanted = set(re.findall(r"var\((--[a-z]+)\)", page.style())) - {"--columns", "--fair"}
    assert wanted == {"--soft", "--rule", "--accent", "--alert"}
