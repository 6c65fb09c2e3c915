"""The page: Gradio components around a `Backend`. Neither the page nor its server contacts other hosts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from time import perf_counter
from typing import Any

from huggingface_hub import constants as hub

from ..errors import InputError, first_line
from ..show.gallery import HOW_TO_READ, HOW_TO_READ_STAGES, how_to_read
from ..show.page import fragment, style
from . import examples
from .backend import Backend, Result, Source, message_for
from .copied import commands, python, without_folders
from .presets import Preset

INTRO = """
<h1>tokensieve</h1>
<p>A vision model cuts a picture into small patches and reads all of them. Here it reads those that matter. Choose a
picture, move the slider, and see what the model still reads, what it answers, and how much work that saves.</p>
"""
NOTES = """
<p><strong>Dense</strong>: the model as it is. <strong>Sieved</strong>: the same model, same weights, under the recipe.
Times are measured on the machine that runs this page, both models in turns.</p>
"""
FOOT = """<p>Nothing that you drop here leaves the machine that runs this page; files are removed after an hour. Theme:
<a href="?__theme=light">light</a>, <a href="?__theme=dark">dark</a>, <a href="?__theme=system">as your system</a>.</p>
"""
CSS = """
.shown {
  --soft: var(--body-text-color-subdued); --rule: var(--border-color-primary);
  --accent: #0b5fa5; --alert: #a84300; color: var(--body-text-color);
}
.dark .shown { --accent: #7cc0ff; --alert: #ffab6b; }
.shown {
  %s
  h2 { font-size: 1.25rem; line-height: 1.35; font-weight: 650; margin: 0; color: inherit; overflow-wrap: anywhere; }
  .error { border-left: 4px solid var(--alert); padding: .5rem .9rem; margin: .5rem 0; overflow-wrap: anywhere; }
  .row { grid-template-columns: repeat(auto-fill, minmax(clamp(9rem, var(--fair), 20rem), 1fr)); }
  .what { color: var(--soft); font-size: .9rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
  figure img { margin: 0; }
  figure ul { padding: 0; margin: 0; }
  figure li { list-style: none !important; }
}
.words p, .words li { font-size: .9rem; color: var(--body-text-color-subdued); margin: .3rem 0; }
.intro h1 { font-size: 1.6rem; font-weight: 700; margin: 0 0 .25rem; }
.intro p { max-width: 48rem; margin: 0; }
#examples, #examples .gallery-container, #examples .grid-wrap {
  min-height: 0 !important; max-height: none; height: auto !important; overflow: hidden;
}
#examples .grid-wrap { padding-top: 1.6rem; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); }
#examples .thumbnail-item { width: 100%%; height: auto; aspect-ratio: 1; }
#examples .caption-label, #upload .icon-wrap { display: none; }
#upload .upload-container { padding-top: 1.6rem; }
#model input, #preset input { padding-right: 2rem; text-overflow: ellipsis; }
"""
CONTENT_SECURITY_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
"""Content security policy: the browser loads nothing from other hosts, whatever Gradio asks for."""
HOUR = 3600


class SecurityHeaders:
    """ASGI middleware that adds `CONTENT_SECURITY_POLICY` to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def closed(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, closed if scope["type"] == "http" else send)


def import_gradio() -> Any:
    """Import Gradio, with its telemetry off. Raises `InputError` where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    hub.HF_HUB_DISABLE_TELEMETRY = True  # the library read the variable when it was imported
    try:
        import gradio
    except ImportError as error:
        raise InputError(
            f"The page is made with Gradio ({error.name} is not here): pip install 'tokensieve[app]'."
        ) from None
    return gradio


class Page:
    """The components of the page and their event handlers."""

    def __init__(self, backend: Backend) -> None:
        self.gr, self.backend = import_gradio(), backend
        gr, first = self.gr, next(iter(backend.models))
        loaded = backend.loaded(first)
        preset = backend.default_preset(first)
        with gr.Blocks(title="tokensieve", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as self.blocks:
            self.source = gr.State(0)
            gr.HTML(INTRO, elem_classes="intro")
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self.gallery = gr.Gallery(
                        _thumbnails(videos=loaded.entry.videos), label="Examples: choose one", columns=4,
                        allow_preview=False, interactive=False, object_fit="cover", height="auto", buttons=[],
                        elem_id="examples",
                    )  # fmt: skip
                    self.file = gr.File(
                        label="Or your own picture or clip", file_types=["image", "video"], height=130, elem_id="upload"
                    )
                    self.model = gr.Dropdown(
                        list(backend.models), value=first, label="Model", info=loaded.entry.about, elem_id="model"
                    )
                    self.preset = gr.Dropdown(
                        list(loaded.presets), value=preset.name, label="Recipe", info=preset.about, elem_id="preset"
                    )
                    self.slider = gr.Slider(elem_id="slider", buttons=[], **_slider(preset))
                with gr.Column(scale=5, min_width=320):
                    self.result = gr.HTML(elem_id="result")
                    self.text = gr.Textbox(
                        str(without_folders(preset.recipe())), label="Recipe as text", max_lines=6, buttons=["copy"],
                        info="Copy it, or write your own and press Enter.", elem_id="recipe",
                    )  # fmt: skip
                    with gr.Accordion("The same in your own code", open=False, elem_id="code"):
                        self.python = gr.Code(language="python", label="Python", interactive=False)
                        self.commands = gr.Code(language="shell", label="Command line", interactive=False)
                    with gr.Accordion("How to read this", open=False):
                        self.notes = gr.HTML(NOTES, elem_classes="words")
            gr.HTML(FOOT, elem_classes="words")
            self._wire()

    def _wire(self) -> None:
        gr, source = self.gr, self.source
        outputs = [self.text, self.result, self.python, self.commands, self.notes]
        all_outputs = [*outputs, self.file, source, self.model, self.preset, self.slider, self.gallery]
        # One request runs at a time for all visitors; of each visitor only the latest waits.
        queued = {"concurrency_id": "backend", "concurrency_limit": 1, "trigger_mode": "always_last"}
        private = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": self.result, **queued}
        inputs = [self.file, source, self.model, self.preset, self.slider]
        self.blocks.load(self.on_slider, inputs, outputs, **private)
        self.slider.input(self.on_slider, inputs, outputs, api_name="run", show_progress="hidden", **queued)
        self.preset.input(
            self.on_preset, [source, self.model, self.preset], [*outputs, self.preset, self.slider], **private
        )
        self.text.submit(self.on_text, [source, self.model, self.text], outputs, **private)
        self.model.input(self.on_model, [source, self.model], all_outputs, **private)
        self.file.upload(self.on_file, [self.file, self.model, self.text], all_outputs, **private)

        def chosen(event, model, text):  # type: ignore[no-untyped-def]
            yield from self.on_example(event.index or 0, model, text)

        chosen.__annotations__ = {"event": gr.SelectData}  # Gradio decides by it what to pass
        self.gallery.select(chosen, [self.model, self.text], [*outputs, source], **private)

    def on_slider(self, file: str | None, source: str | int, model: str, preset: str, slider: float) -> Iterator[Any]:
        """The slider moved. A client of the API passes the file itself; a visitor's was uploaded before."""
        try:
            text = str(without_folders(self._preset(model, preset).recipe(slider)))
        except Exception as error:
            yield {self.result: _error(error)}
            return
        for shown in self._answer(_source(source if file is None else file), model, text, {}):
            yield {self.text: text, **shown}  # each time: a program that asks is given what came last

    def on_preset(self, source: str | int, model: str, name: str) -> Iterator[Any]:
        """Another recipe was chosen; its slider takes its default."""
        try:
            preset = self._preset(model, name)
            text = str(without_folders(preset.recipe()))
        except Exception as error:
            yield {self.result: _error(error)}
            return
        changed = {self.text: text, self.preset: self.gr.Dropdown(info=preset.about), self.slider: self._slider(preset)}
        yield from self._answer(_source(source), model, text, changed)

    def on_text(self, source: str | int, model: str, text: str) -> Iterator[Any]:
        """A recipe was typed. It is written again: the end of an earlier answer may overwrite it."""
        yield from self._answer(_source(source), model, text, {self.text: text})

    def on_model(self, source: str | int, model: str) -> Iterator[Any]:
        """Another model was chosen: the picture or clip stays if the model reads its kind; else the first example."""
        try:
            chosen, entry = _source(source), self.backend.loaded(model).entry
            if isinstance(chosen, Path):
                keep = self.backend.model_for(model, chosen) == model
            else:
                keep = chosen < len(examples.all_of(videos=entry.videos))
            changed = {**self._settings(model), self.source: source if keep else 0}
        except Exception as error:
            yield {self.result: _error(error)}
            return
        yield from self._answer(chosen if keep else 0, model, changed[self.text], changed)

    def on_file(self, file: str | None, model: str, text: str) -> Iterator[Any]:
        """A file was dropped: the model changes if it does not read such files. The upload field is cleared."""
        if file is None:
            return
        try:
            reader = self.backend.model_for(model, Path(file))
            changed: dict[Any, Any] = {} if reader == model else self._settings(reader)
        except Exception as error:
            yield {self.result: _error(error), self.file: None}
            return
        changed |= {self.source: file, self.file: None}
        yield from self._answer(Path(file), reader, changed.get(self.text, text), changed)

    def on_example(self, number: int, model: str, text: str) -> Iterator[Any]:
        """An example was chosen."""
        yield from self._answer(number, model, text, {self.source: number})

    def _preset(self, model: str, name: str) -> Preset:
        presets = self.backend.loaded(model).presets
        if name not in presets:
            raise InputError(f"{model} has no recipe of the name {name!r}: choose one of the list.")
        return presets[name]

    def _settings(self, model: str) -> dict[Any, Any]:
        """The defaults of all components for a model."""
        gr, loaded, preset = self.gr, self.backend.loaded(model), self.backend.default_preset(model)
        return {
            self.model: gr.Dropdown(value=model, info=loaded.entry.about),
            self.preset: gr.Dropdown(list(loaded.presets), value=preset.name, info=preset.about),
            self.slider: self._slider(preset),
            self.text: str(without_folders(preset.recipe())),
            self.gallery: _thumbnails(videos=loaded.entry.videos),
        }

    def _slider(self, preset: Preset) -> Any:
        return self.gr.Slider(**_slider(preset))

    def _answer(self, source: Source, model: str, text: str, changed: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Yield the result at once, then again with its time; an error as a sentence."""
        try:
            result = self.backend.run(model, text, source)
            yield {**changed, **self._outputs(result)}
            yield self._outputs(self.backend.with_time(result))
        except Exception as error:
            yield {**changed, self.result: _error(error)}

    def _outputs(self, result: Result) -> dict[Any, Any]:
        spec, videos = result.entry.spec, result.entry.videos
        explained = HOW_TO_READ_STAGES if result.fast.units == "pixels" else HOW_TO_READ
        notes = "".join(f"<li>{escape(note)}</li>" for note in how_to_read([result.section], explained))
        return {
            self.result: _result(result),
            self.python: python(spec, result.recipe, videos=videos),
            self.commands: commands(spec, result.recipe, videos=videos),
            self.notes: f"{NOTES}<ul>{notes}</ul>",
        }


def _result(result: Result) -> str:
    what = escape(f"{result.title}, read by {result.entry.name}")
    head = f'<p class="what">{what}</p><h2>{escape(result.headline)}</h2>'
    return f'<div class="shown" aria-live="polite">{head}{fragment(result.section)}</div>'


def _error(error: Exception) -> str:
    return f'<div class="shown"><p class="error" role="alert">{escape(message_for(error))}</p></div>'


def _source(kept: str | int) -> Source:
    """The source from a visitor's state: the index of an example, or the path of a file."""
    return kept if isinstance(kept, int) else Path(kept)


def _thumbnails(*, videos: bool) -> list[Any]:
    return [(each.picture, each.name) for each in examples.all_of(videos=videos)]


def _slider(preset: Preset) -> dict[str, Any]:
    """Settings of the slider; hidden where a preset has none."""
    slider = preset.slider
    if slider is None:
        return {"visible": False}
    return {
        "minimum": slider.low,
        "maximum": slider.high,
        "value": slider.value,
        "step": slider.step,
        "label": slider.label,
        "info": slider.meaning,
        "visible": True,
    }


def launch(
    backend: Backend, *, host: str = "127.0.0.1", port: int | None = None, browser: bool = False, megabytes: int = 50,
    waiting: int = 50,
) -> tuple[Any, str]:  # fmt: skip
    """Serve the page in background threads.

    Args:
        host: address to listen on; 0.0.0.0 for all interfaces.
        port: None takes the first free one from 7860 up.
        browser: open the page in a browser.
        megabytes: size limit of an upload.
        waiting: length of the queue; further requests are refused.

    Returns:
        Gradio's blocks, whose `close()` ends it, and the address.

    Raises:
        InputError: Gradio is not installed; a model that cannot be opened.
        OSError: no such port is free.
    """
    page = Page(backend)
    gr, blocks = page.gr, page.blocks
    first = next(iter(backend.models))
    backend.with_time(
        backend.run(first, str(without_folders(backend.default_preset(first).recipe())), 0)
    )  # so that no visitor waits for what is loaded
    blocks.queue(max_size=waiting, default_concurrency_limit=1)
    _, url, _ = blocks.launch(
        server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, prevent_thread_lock=True,
        show_error=False, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
        mcp_server=False, max_file_size=f"{megabytes}mb", theme=gr.themes.Default(primary_hue="blue"),
        head=f"<style>{CSS % style()}</style>", app_kwargs={"middleware": [_middleware()]},
    )  # fmt: skip
    return blocks, url


def probe(url: str) -> float:
    """Request the page's first example, as a browser would; returns the seconds that it took.

    Raises:
        InputError: the page does not answer.
    """
    from gradio_client import Client

    client, start = Client(url, verbose=False, analytics_enabled=False), perf_counter()
    try:
        _, answer, *_ = client.predict(file=None, api_name="/run")
    except Exception as error:  # whatever the client raises
        raise InputError(f"The page at {url} does not answer: {first_line(error)}.") from error
    finally:
        client.close()
    if "<figure>" not in answer:
        raise InputError(f"The page at {url} answers without a picture: {answer[:200]}")
    return perf_counter() - start


def _middleware() -> Any:
    from starlette.middleware import Middleware

    return Middleware(SecurityHeaders)
