"""A visitor of the page: headless Chromium, which notes every request and every complaint.

Used by the tests and by benchmarks/app.py.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlparse

TIMED = " ms a "
"""Part of an answer that is whole: the measured time comes last."""
WAIT = 180_000
"""Milliseconds that anything may take on a busy machine."""
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], name, { type }));
  return held;
}"""
SHOWN = "document.querySelector('#result .shown')?.outerHTML ?? ''"
"""The answer without the clock that runs above it while another is made."""
WHOLE = "([before, timed]) => { const r = " + SHOWN + "; return r !== before && %s; }"


def missing() -> str | None:
    """Why there is no browser here; None where there is."""
    try:
        import gradio  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed: pip install 'tokensieve[app]' playwright"
    return None if shutil.which("chromium") else "there is no program chromium"


class Visitor:
    """A page in the browser."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def hosts(self) -> set[str | None]:
        """Everybody that was asked for something."""
        return {urlparse(url).hostname for url in self.requests if not url.startswith(("data:", "blob:"))}

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.whole("")

    def whole(self, before: str) -> None:
        """Wait for another answer, its time included."""
        self.page.wait_for_function(WHOLE % "r.includes(timed)", arg=[before, TIMED])

    def changes(self, act: Callable[[], object]) -> None:
        """Do something that gives another answer, and wait for it."""
        before = self.page.evaluate(SHOWN)
        act()
        self.whole(before)

    def refused(self, act: Callable[[], object]) -> str:
        """Do something that gives a sentence instead of an answer."""
        act()
        self.page.wait_for_selector("#result [role=alert]")
        return str(self.page.inner_text("#result [role=alert]"))

    def drop(self, path: Path, kind: str = "image/png") -> None:
        """Let a file fall on the page."""
        data = base64.b64encode(path.read_bytes()).decode()
        held = self.page.evaluate_handle(DROP, [path.name, kind, data])
        self.page.dispatch_event("#upload button", "drop", {"dataTransfer": held})

    def choose(self, where: str, words: str) -> None:
        """An entry of a list by a part of its text."""
        self.page.click(f"#{where} input")
        self.page.locator("[role=option]", has_text=words).first.click()

    def move(self, value: float) -> None:
        """The slider."""
        self.page.locator("#slider input[type=range]").fill(f"{value:g}")

    def example(self, number: int) -> None:
        self.page.locator("#examples .thumbnail-item").nth(number).click()

    def write(self, recipe: str) -> None:
        """A recipe by hand."""
        self.page.fill("#recipe textarea", recipe)
        self.page.press("#recipe textarea", "Enter")

    def copied(self) -> str:
        """The recipe's text by way of its button and the clipboard."""
        self.page.click("#recipe button")
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    @property
    def recipe(self) -> str:
        return str(self.page.input_value("#recipe textarea"))

    @property
    def headline(self) -> str:
        return str(self.page.inner_text("#result h2"))

    @property
    def captions(self) -> list[str]:
        return list(self.page.locator("#result figcaption strong").all_inner_texts())


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"], timeout=WAIT
        )
        yield chromium
        chromium.close()


@contextmanager
def visitor(chromium: Any, **settings: Any) -> Iterator[Visitor]:
    """Somebody with a browser of their own; settings are those of playwright's contexts."""
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"], **settings)
    yield Visitor(context.new_page())
    context.close()


def ask_together(url: str, paths: list[Path], slider_values: list[float]) -> list[float]:
    """Each asks about its own picture at the same moment; gives the seconds that each waited, upload included.

    They speak to the server as the page in the browser does.
    """
    from gradio_client import Client, handle_file

    clients = [Client(url, verbose=False, analytics_enabled=False) for _ in paths]

    def ask(client: Any, path: Path, slider: float) -> float:
        start = perf_counter()
        recipe, answer, *_ = client.predict(file=handle_file(str(path)), slider=slider, api_name="/run")
        assert f"keep={slider:g}" in recipe, recipe
        assert "<figure>" in answer, answer
        assert TIMED in answer, answer
        return perf_counter() - start

    try:
        with ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(ask, clients, paths, slider_values))
    finally:
        for client in clients:
            client.close()
