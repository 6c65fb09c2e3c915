"""`tokensieve demo`: compare a model with its sieved version, on generated scenes or on photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ..search.default import SAID
from .opening import read_spec, record_of
from .options import JsonOption, MachineOptions, ModelOptions
from .output import print_record

BUNDLED = {
    "nano_vit": "papr(keep=0.4, proposal=nano_convnet)",
    "nano_convnext": "papr(keep=0.5, proposal=nano_convnet)",
}
"""Bundled hosts, and what shows them."""
FIRST = "nano_vit"
OUT = ("tokensieve-demo.png", "tokensieve-demo.html")


@dataclass(frozen=True)
class ShownModel(ModelOptions):
    """A bundled model with its own recipe, or any other, with its weights."""

    model: Annotated[str, typer.Option(metavar="NAME", help="A ViT, ConvNeXt or Swin; its weights are downloaded.")] = (
        FIRST
    )
    pretrained: Annotated[bool, typer.Option(help="Download weights that no FILE gives, or let them be random.")] = True
    recipe: Annotated[
        str | None, typer.Option(metavar="TEXT|FILE", help=f"Default {BUNDLED[FIRST]}; for other models {SAID}.")
    ] = None


def demo(
    *,
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGES]...", help="Your own photographs.")] = None,
    network: ShownModel,
    scenes: Annotated[int, typer.Option(min=8, metavar="N", help="Scenes that the bundled model reads.")] = 300,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which scenes: every seed gives others.")] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Batch size at which speed is measured.")] = 16,
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on measuring speed.")] = 10.0,
    out: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help=f"A .png or .html; repeats. Default {' and '.join(OUT)}.")
    ] = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """See it work: a bundled pair on generated scenes, or any pretrained model on photographs.

    Prints the dense model and the recipe beside random patches and merging, and writes a picture and a page.
    """
    from .._files import check_place
    from ..show.page import SUFFIXES

    places = [check_place(place, SUFFIXES) for place in out or OUT]
    recipe = BUNDLED.get(network.model) if network.recipe is None else network.recipe
    spec = read_spec(network, machine, recipe=recipe)
    from ..show.demo import demo_report, run_demo
    from ..show.page import write_page, write_png
    from ..show.progress import list_failures, working
    from ..show.sheet import sheet

    with working("opening the model") as status:
        opened = spec.open()
        record, sections, failures = run_demo(
            opened, images or [], pretrained=spec.pretrained, generated=spec.model in BUNDLED, scenes=scenes, seed=seed,
            batch=batch, seconds=seconds, tell=status.update,
        )  # fmt: skip
        record = {**record_of(spec, opened), **record}
        record["out"] = [str(place) for place in places]
        status.update("drawing")
        report = demo_report(record, sections)
        for place in places:
            if place.suffix.lower() == ".html":
                write_page(place, report)
            else:
                write_png(place, sheet(report))
    print_record(record, "demo.demo_view", as_json)
    list_failures(failures)
