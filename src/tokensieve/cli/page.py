"""`tokensieve app`: a page on which one drops pictures and clips, and sees what a recipe reads of them."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import Annotated

import typer

from ..errors import InputError
from ..search.default import DEFAULT_RECIPE_TEXT
from .opening import read_spec
from .options import CLASS_FILES, MachineOptions, ModelOptions, PretrainedOption
from .output import say

PageModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="A model to offer beside the bundled ones, and before them: as of the other commands. Default none.",
    ),
]


@dataclass(frozen=True)
class PageModelOptions(ModelOptions):
    """A model of one's own, or none."""

    model: PageModelOption = None  # type: ignore[assignment]  # the bundled ones are offered without one
    pretrained: PretrainedOption = True
    recipe: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help=f"The one that the page begins with. Default {DEFAULT_RECIPE_TEXT}."),
    ] = None


def page(
    *,
    network: PageModelOptions,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"Names of the model's classes. {CLASS_FILES}")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where it is served; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="N", help="Default the first that is free from 7860 up.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
    megabytes: Annotated[int, typer.Option(min=1, metavar="N", help="Of a file that is dropped, at most.")] = 50,
    waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Questions that wait at most; more are refused.")
    ] = 50,
    check: Annotated[
        bool, typer.Option("--check", help="Serve it, ask it about an example, tell the time that took, and end.")
    ] = False,
    machine: MachineOptions,
) -> None:
    """Serve a page on which one drops a picture or a clip, moves the keep ratio, and sees what the model reads.

    With it come the bundled models, which need no download. The page asks nothing of any other host. Ctrl-C ends it.
    """
    if network.model is None and any((network.weights, network.recipe, network.proposal_weights, classes)):
        raise InputError("--weights, --proposal-weights, --recipe and --classes are of a model: give --model too.")
    from ..app import page as page_module
    from ..app.backend import Backend
    from ..app.models import bundled_entries, given_entry
    from ..show.progress import working

    page_module.import_gradio()
    with working("opening the model"):
        given = [] if network.model is None else [given_entry(read_spec(network, machine))]
        bundled = bundled_entries(machine.device, machine.dtype)
        backend = Backend([*given, *(entry for entry in bundled if entry.name != network.model)], classes)
        blocks, url = page_module.launch(
            backend, host=host, port=port, browser=browser, megabytes=megabytes, waiting=waiting
        )
    try:
        if check:
            say(f"the page at {url} answered in {page_module.probe(url):.2f} s.")
            return
        say(f"the page is at {url} until Ctrl-C.")
        Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        blocks.close(verbose=False)
