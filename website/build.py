"""Build the documentation site -> build/website/site. `make docs` runs this in an environment of its own.

    python website/build.py

docs/ is written for whoever reads it on a code host: links lead to results/, mathematics stands between dollars. Here
the pages are put together with what they link to, Zensical builds them, strictly, and then formulas become MathML and
every page is checked: it must ask nothing of another host, and each of its links must lead somewhere.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "website"
BUILD = ROOT / "build" / "website"
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "RELEASING.md": "releasing.md",
    "LICENSE": "LICENSE.txt",
    "NOTICE": "NOTICE.txt",
}
"""Files beside docs/ -> their place in the site. README has no page: the site's own front page stands for it."""
LATER = ("run.md", "cluster.md", "serve.md", "hub.md")
"""Pages that have their place in the navigation before they are written."""


class SiteError(Exception):
    """What has to be mended before the site can be built."""


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    try:
        pages = stage(BUILD / "docs")
        (BUILD / "zensical.toml").write_text(navigation((HERE / "zensical.toml").read_text(), pages))
        build()
        for page in sorted((BUILD / "site").rglob("*.html")):
            page.write_text(with_mathematics(page.read_text()))
        problems = list(checked(BUILD / "site"))
    except SiteError as error:
        problems = [str(error)]
    print("\n".join(problems) or f"built {BUILD.relative_to(ROOT)}/site", file=sys.stderr if problems else sys.stdout)
    return int(bool(problems))


# Pages together with what they link to


def stage(place: Path) -> set[str]:
    """Put all that the site holds into one folder. Returns its pages, as paths within it."""
    shutil.copytree(ROOT / "docs", place, ignore=shutil.ignore_patterns("*.ipynb", ".*", "__pycache__"))
    shutil.copytree(HERE / "assets", place / "assets")
    (place / "results").mkdir()
    for file in sorted((ROOT / "results").glob("*.*")):
        shutil.copy(file, place / "results" / file.name)
    for name, target in ELSEWHERE.items():
        if name != "README.md" and (ROOT / name).is_file():
            shutil.copy(ROOT / name, place / target)
    for file in sorted((ROOT / "examples").rglob("*")):  # as files: they are no pages
        if file.is_file() and "__pycache__" not in file.parts:
            copy = place / example(file.relative_to(ROOT).as_posix())
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        write_notebook(notebook, place / "notebooks")
    pages = {path.relative_to(place).as_posix() for path in place.rglob("*.md")}
    for page in sorted(pages):
        file = place / page
        file.write_text(relinked(file.read_text(), page))
    return pages


def example(path: str) -> str:
    """Where a file of examples/, or a folder, by its README, lies in the site."""
    path = f"{path}/README.md" if (ROOT / path).is_dir() else path
    return f"{path.removesuffix('.md')}.txt" if path.endswith(".md") else path


def write_notebook(file: Path, folder: Path) -> None:
    """A notebook as a page, with the outputs that it holds; its pictures beside it."""
    from nbconvert import MarkdownExporter

    body, resources = MarkdownExporter().from_filename(str(file), {"output_files_dir": f"{file.stem}_files"})
    folder.mkdir(exist_ok=True)
    body = re.sub(r"\x1b\[[0-9;]*m", "", body)
    download = f"\n[This page as a notebook]({file.name})\n"
    head, rest = body.split("\n", 1)
    (folder / f"{file.stem}.md").write_text(f"{head}\n{download}{rest}")
    shutil.copy(file, folder / file.name)
    for name, content in resources.get("outputs", {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def relinked(text: str, page: str) -> str:
    """A page's text, where links out of docs/ lead to the same thing within the site."""
    source = place_of(page)

    def lead(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if not target or urlsplit(target).scheme:
            return match[0]
        found = Path(os.path.normpath(source.parent / target)).as_posix()
        if found.startswith("docs/"):
            found = found.removeprefix("docs/")
        elif found in ELSEWHERE:
            found = ELSEWHERE[found]
        elif found == "results":
            found = "results.md"
        elif found.startswith("examples/"):
            found = example(found)
        elif not found.startswith("results/"):
            raise SiteError(f"{source}: the site has no place for {match[2]}.")
        if found.endswith(".txt"):  # which has no headings
            hash_ = anchor = ""
        back = os.path.relpath(found, Path(page).parent)
        return f"{match[1]}{back}{hash_}{anchor}{match[3]}"

    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.S | re.M)  # code holds no links
    return "".join(shown(part) if index % 2 else LINK.sub(lead, part) for index, part in enumerate(parts))


def shown(code: str) -> str:
    """Code of one line as Python-Markdown reads it: there a pipe within it never ends a cell, and is not escaped."""
    return code if code.startswith("```") else code.replace("\\|", "|")


def place_of(page: str) -> Path:
    """Where a page of the site lies in the project."""
    origin = {target: name for name, target in ELSEWHERE.items() if target != "index.md"}
    return Path(origin[page]) if page in origin else Path("docs") / page


def navigation(text: str, pages: set[str]) -> str:
    """The configuration without the entries of pages that are not written yet."""
    named = set(re.findall(r'"([\w/-]+\.md)"', text))
    if lost := sorted(pages - named):
        raise SiteError(f"No place in the navigation of website/zensical.toml: {', '.join(lost)}.")
    missing = sorted(named - pages)
    if wrong := [page for page in missing if page not in LATER]:
        raise SiteError(f"website/zensical.toml names pages that do not exist: {', '.join(wrong)}.")
    for page in missing:
        print(f"left out of the navigation, not written yet: {page}")
        text = re.sub(rf'^.*"{re.escape(page)}".*\n', "", text, flags=re.M)
    return text


def build() -> None:
    """Zensical, strict; a warning of the reference's parser counts as one of Zensical's."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(
        command,
        cwd=BUILD,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    print(done.stdout, end="")
    if done.returncode:
        raise SiteError("Zensical found something to mend.")
    if told := [line for line in done.stdout.splitlines() if line.startswith("griffe:")]:
        raise SiteError(f"{len(told)} docstrings cannot be read as they are meant: see above.")


# Mathematics


FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.S)


def with_mathematics(text: str) -> str:
    """A page whose formulas are MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def draw(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        formula = html.unescape(match[3]).strip()
        drawn = convert(formula, display=display)
        if "\\" in drawn:
            raise SiteError(f"The site cannot draw a command in this formula: {formula}")
        return f'<{match[1]} class="math">{drawn}</{match[1]}>'

    return FORMULA.sub(draw, text)


# Checks


class Page(HTMLParser):
    """What a page loads, where its links lead, and which anchors it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attributes}
        self.anchors.update(filter(None, (told.get("id"), told.get("name") if tag == "a" else None)))
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        elif tag == "link" and told.get("rel", "") not in ("canonical", "next", "prev"):
            self.loads.append(told["href"])
        elif "src" in told:
            self.loads.append(told["src"])


OUTSIDE = re.compile(r"""url\(["']?(https?:)?//|@import\s+["']https?:""")


def checked(site: Path) -> Iterator[str]:
    """What is wrong with the built pages, in sentences."""
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        name = file.relative_to(site)
        text = file.read_text()
        if "arithmatex" in text:
            yield f"{name}: a formula was not drawn."
        for target in page.loads:
            if urlsplit(target).netloc:
                yield f"{name} loads {target} from another host."
        if file.name == "404.html":  # its links are those of the root of whatever serves it
            continue
        for target in (*page.loads, *page.links):
            told = urlsplit(target)
            if told.scheme or told.netloc:
                continue
            found = (file.parent / unquote(told.path)).resolve() if told.path else file
            if not found.exists():
                yield f"{name}: {target} leads nowhere."
            elif told.fragment and found in pages and unquote(told.fragment) not in pages[found].anchors:
                yield f"{name}: {target} has no such heading."
    for file in sorted(site.rglob("*.css")):
        if OUTSIDE.search(file.read_text()):
            yield f"{file.relative_to(site)} loads something from another host."
    if not json.loads((site / "search.json").read_text()).get("items"):
        yield "The search has no entries."


if __name__ == "__main__":
    sys.exit(main())
