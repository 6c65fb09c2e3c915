"""`tokensieve app`: a web page that shows which patches of uploaded pictures and clips a recipe keeps."""

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
        help="A model to offer first, before the bundled ones: as for the other commands. Default none.",
    ),
]


@dataclass(frozen=True)
class PageModelOptions(ModelOptions):
    """An additional model, or none."""

    model: PageModelOption = None  # type: ignore[assignment]  # optional: the bundled models are always offered
    pretrained: PretrainedOption = True
    recipe: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help=f"The recipe shown first. Default {DEFAULT_RECIPE_TEXT}."),
    ] = None


def page(
    *,
    network: PageModelOptions,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"Names of the model's classes. {CLASS_FILES}")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to serve on; 0.0.0.0 allows other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="N", help="Port; default the first free one from 7860.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    megabytes: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum size of an uploaded file in MB.")] = 50,
    waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of waiting requests; more are refused.")
    ] = 50,
    check: Annotated[
        bool, typer.Option("--check", help="Serve the page, run one example, print the time that took, and exit.")
    ] = False,
    machine: MachineOptions,
) -> None:
    """Serve a web page that shows which patches of an uploaded picture or clip the model reads at a given keep ratio.

    The bundled models need no download. The page loads nothing from other hosts. Ctrl-C ends it.
    """
    if network.model is None and any((network.weights, network.recipe, network.proposal_weights, classes)):
        raise InputError("--weights, --proposal-weights, --recipe and --classes need a model: give --model too.")
    from ..app import page as page_module
    from ..app.backend import Backend
    from ..app.models import bundled_entries, given_entry
    from ..show.progress import working

    page_module.import_gradio()
    with working("opening the model"):
        own_models = [] if network.model is None else [given_entry(read_spec(network, machine))]
        bundled = bundled_entries(machine.device, machine.dtype)
        backend = Backend([*own_models, *(entry for entry in bundled if entry.name != network.model)], classes)
        blocks, url = page_module.launch(
            backend, host=host, port=port, browser=browser, megabytes=megabytes, waiting=waiting
        )
    try:
        if check:
            say(f"the page at {url} ran an example in {page_module.probe(url):.2f} s.")
            return
        say(f"press Ctrl-C to end; the page is at {url}")
        Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        blocks.close(verbose=False)
