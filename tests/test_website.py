"""The documentation site: how its pages are put together, and that what it would get wrong is found."""

from __future__ import annotations

import html
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("website_build", ROOT / "website" / "build.py")
assert SPEC is not None
assert SPEC.loader is not None
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)

PAGE = "<html><head>{head}</head><body><h1 id='top'>x</h1>{body}</body></html>"


@pytest.mark.parametrize(
    ("page", "text", "becomes"),
    [
        ("tome.md", "[x](../results/a.csv)", "[x](results/a.csv)"),
        ("methods/tofu.md", "[x](../../results/a.csv)", "[x](../results/a.csv)"),
        ("methods/tofu.md", "[x](../results.md#loss)", "[x](../results.md#loss)"),
        ("adding.md", "[x](../CONTRIBUTING.md#rules)", "[x](contributing.md#rules)"),
        ("contributing.md", "[x](docs/tome.md)", "[x](tome.md)"),
        ("results.md", "[x](../results/)", "[x](results.md)"),
        ("serve.md", "[x](../examples/serve/service.py)", "[x](examples/serve/service.py)"),
        ("serve.md", "[x](../examples/serve/README.md#load)", "[x](examples/serve/README.txt)"),
        ("tome.md", "[x](https://somewhere.org/) [y](#here)", "[x](https://somewhere.org/) [y](#here)"),
        ("tome.md", "`a[0](../x)`\n```\n[x](../../nowhere)\n```", "`a[0](../x)`\n```\n[x](../../nowhere)\n```"),
        ("tome.md", "| `a\\|b` | a \\| b |", "| `a|b` | a \\| b |"),
    ],
)
def test_links_out_of_docs_lead_to_the_same_thing_in_the_site(page, text, becomes) -> None:
    assert site.relinked(text, page) == becomes


def test_a_link_to_what_the_site_has_not_is_an_error() -> None:
    with pytest.raises(site.SiteError, match=r"tome\.md: the site has no place for \.\./src/x\.py"):
        site.relinked("[x](../src/x.py)", "tome.md")


NAVIGATION = 'nav = [\n  "index.md",\n  { "Run" = "run.md" },\n  { "Methods" = [\n    "methods/a.md",\n  ] },\n]\n'


def test_the_navigation_leaves_out_what_is_not_written_yet_and_misses_nothing(capsys) -> None:
    text = site.navigation(NAVIGATION, {"index.md", "methods/a.md"})
    assert "run.md" not in text
    assert "methods/a.md" in text
    assert "run.md" in capsys.readouterr().out
    with pytest.raises(site.SiteError, match=r"No place in the navigation of website/zensical\.toml: new\.md\."):
        site.navigation(NAVIGATION, {"index.md", "methods/a.md", "new.md"})
    with pytest.raises(site.SiteError, match=r"names pages that do not exist: methods/a\.md"):
        site.navigation(NAVIGATION, {"index.md", "run.md"})


def test_every_page_of_docs_has_its_place() -> None:
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    pages |= {f"notebooks/{path.stem}.md" for path in (docs / "notebooks").glob("*.ipynb")}
    pages |= {place for name, place in site.ELSEWHERE.items() if place.endswith(".md") and (ROOT / name).is_file()}
    site.navigation((ROOT / "website" / "zensical.toml").read_text(), pages)


def built(folder: Path, head: str = "", body: str = "", css: str = "") -> list[str]:
    (folder / "search.json").write_text(json.dumps({"items": [{}]}))
    (folder / "own.css").write_text(css)
    (folder / "other.html").write_text(PAGE.format(head="", body=""))
    (folder / "page.html").write_text(PAGE.format(head=head, body=body))
    return list(site.checked(folder))


def test_a_page_that_is_right(tmp_path) -> None:
    body = "<a href='other.html#top'>o</a><a href='#top'>t</a><a href='https://x.org'>x</a><img src='own.css'>"
    assert built(tmp_path, "<link rel=stylesheet href='own.css'>", body) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"head": "<script src='https://cdn.org/a.js'></script>"}, "page.html loads https://cdn.org/a.js from another"),
        ({"head": "<link rel=stylesheet href='//fonts.org/a.css'>"}, "page.html loads //fonts.org/a.css from another"),
        ({"css": "@font-face { src: url(https://fonts.org/a.woff2) }"}, "own.css loads something from another host."),
        ({"body": "<a href='gone.html'>x</a>"}, "page.html: gone.html leads nowhere."),
        ({"body": "<a href='other.html#no'>x</a>"}, "page.html: other.html#no has no such heading."),
        ({"body": "<span class='arithmatex'>x</span>"}, "page.html: a formula was not drawn."),
    ],
)
def test_what_is_wrong_with_a_page_is_found(tmp_path, given, said) -> None:
    (problem,) = built(tmp_path, **given)
    assert problem.startswith(said)


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml", reason="the site's own requirements are not installed")
    text = site.with_mathematics(r'<p><span class="arithmatex">\(a &lt; x_i^2\)</span></p>')
    assert "<math" in text
    assert "<" in html.unescape(text).removeprefix("<p>").split("<mo>")[1][:1]
    assert "arithmatex" not in text


@pytest.mark.slow
def test_the_site_is_built() -> None:
    for name in ("zensical", "mkdocstrings", "latex2mathml", "nbconvert"):
        pytest.importorskip(name, reason="the site's own requirements are not installed: make docs builds it")
    done = subprocess.run([sys.executable, ROOT / "website" / "build.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
