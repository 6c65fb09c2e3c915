"""The page as visitors have it: one visit step by step, twenty at once -> results/app.csv; its looks -> docs/pictures.

    python benchmarks/app.py                 # needs the extra app, playwright, and a program called chromium
    python benchmarks/app.py --pictures-only

The page is served by `tokensieve app` in a process of its own; the visitor is headless Chromium.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from PIL import Image

from results import ROOT, write

sys.path.insert(0, str(ROOT))
from tests.app.browser import Visitor, ask_together, browser, visitor
from tokensieve import Recipe
from tokensieve.app import examples

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1360, "height": 900}}
TOGETHER = 20
COLOURS = 128
"""Of the pictures of the page: they are for looking at, and small."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures-only", action="store_true", help="draw the page and measure nothing")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, served() as url, browser() as chromium:
        if not options.pictures_only:
            rows += visit(chromium, url, Path(folder))
            rows += together(url, Path(folder))
            write("app.csv", rows)
        pictures(chromium, url)
    return int(any(row["error"] for row in rows))


@contextmanager
def served() -> Iterator[str]:
    """`tokensieve app`, until it is no longer needed."""
    command = [sys.executable, "-m", "tokensieve", "app", "--no-browser", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if (found := re.search(r"the page is at (\S+)", line)) is not None:
            break
    else:
        raise SystemExit(f"the page was not served: {said}")
    yield found[1]
    process.terminate()
    process.wait()


def visit(chromium: Any, url: str, folder: Path) -> list[dict[str, Any]]:
    """The journey: what was done, what the page then said, and the seconds until all of it was there."""
    scene, notes = folder / "scene.png", folder / "notes.jpg"
    examples.pictures()[1].picture.save(scene)
    notes.write_text("no picture")
    rows: list[dict[str, Any]] = []
    with visitor(chromium, **DESKTOP) as seen:

        def step(what: str, act: Callable[[], object], told: Callable[[], str]) -> None:
            start, row = perf_counter(), {"what": what, "seconds": "", "recipe": "", "told": "", "error": ""}
            try:
                act()
                row |= {"seconds": perf_counter() - start, "recipe": seen.recipe, "told": told()}
            except Exception as error:  # the rest of the visit is worth knowing all the same
                row["error"] = " ".join(str(error).split())[:200]
            rows.append(row)
            print(row, flush=True)

        def answer() -> str:
            return seen.headline

        step("open the page", lambda: seen.open(url), answer)
        step("drop a picture", lambda: seen.changes(lambda: seen.drop(scene)), answer)
        step("move the slider to 0.3", lambda: seen.changes(lambda: seen.move(0.3)), answer)
        step("choose another recipe", lambda: seen.changes(lambda: seen.choose("preset", "(tome)")), answer)
        step("copy the recipe", lambda: None, lambda: f"copied: {Recipe.parse(seen.copied())}")
        mixed = "papr(keep=0.5, proposal=nano_convnet) + tome(r=4)"
        step("write a recipe", lambda: seen.changes(lambda: seen.write(mixed)), answer)
        for model in ("nano_convnext", "nano_segmenter", "nano_video"):
            step(f"choose {model}", lambda model=model: seen.changes(lambda: seen.choose("model", model)), answer)
        step("choose an example clip", lambda: seen.changes(lambda: seen.example(2)), answer)
        said = []
        step(
            "drop a text that is called .jpg",
            lambda: said.append(seen.refused(lambda: seen.drop(notes, "image/jpeg"))),
            lambda: said[0],
        )
        step("drop a picture again", lambda: seen.changes(lambda: seen.drop(scene)), answer)
        rows += [checked(seen)]
    return rows


def checked(seen: Visitor) -> dict[str, Any]:
    """Who was asked for something during the visit, and what the browser complained of."""
    others = seen.hosts() - {"127.0.0.1"}
    error = "; ".join([*map(str, sorted(map(str, others))), *seen.complaints])
    told = f"{len(seen.requests)} requests, {len(others)} to other hosts, {len(seen.complaints)} complaints"
    return {"what": "all of the visit", "seconds": "", "recipe": "", "told": told, "error": error}


def together(url: str, folder: Path) -> list[dict[str, Any]]:
    """Twenty visitors who ask at the same moment, each about a picture of their own; one alone for comparison."""
    paths = []
    for number in range(TOGETHER):
        paths.append(folder / f"{number}.png")
        examples.pictures()[number % examples.SCENES].picture.rotate(number).save(paths[-1])
    slider_values = [(2 + number % 10) / 20 for number in range(TOGETHER)]
    rows = []
    for count in (1, TOGETHER):
        waited = ask_together(url, paths[:count], slider_values[:count])
        rows.append(
            {
                "what": f"{count} at once",
                "seconds": median(waited),
                "recipe": "papr(keep=0.1 to 0.55, proposal=nano_convnet)" if count > 1 else "papr(keep=0.1)",
                "told": f"answered {len(waited)} of {count}",
                "error": "",
                "worst": max(waited),
            }
        )
        print(rows[-1], flush=True)
    return rows


def pictures(chromium: Any, url: str) -> None:
    """docs/pictures/app-*.png: on a desktop in both schemes, on a phone, a segmenter and a clip."""
    looks: dict[str, tuple[dict[str, Any], str, Callable[[Visitor], None]]] = {
        "app-light": (DESKTOP, "light", lambda seen: seen.changes(lambda: seen.move(0.35))),
        "app-dark": (DESKTOP, "dark", lambda seen: seen.changes(lambda: seen.choose("model", "nano_segmenter"))),
        "app-clip": (DESKTOP, "light", lambda seen: seen.changes(lambda: seen.choose("model", "nano_video"))),
        "app-phone": (PHONE, "light", lambda seen: seen.changes(lambda: seen.move(0.35))),
    }
    for name, (screen, scheme, act) in looks.items():
        with visitor(chromium, color_scheme=scheme, **screen) as seen:
            seen.open(url)
            act(seen)
            seen.page.wait_for_timeout(500)
            path = ROOT / "docs" / "pictures" / f"{name}.png"
            seen.page.screenshot(path=path, full_page=True)
            smaller(path)


def smaller(path: Path) -> None:
    """The same picture in few colours, at most as wide as a page of the docs shows it."""
    with Image.open(path) as picture:
        found = picture.convert("RGB")
    found.thumbnail((1360, 4000))
    found.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
