"""`tokensieve demo`: see it work, on the bundled pair or on any model."""

from __future__ import annotations

from typing import Annotated

import typer

from .._job import Job
from ..search.default import SAID
from .options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ProposalWeightsOption,
    SizeOption,
    ThreadsOption,
    WeightsOption,
)
from .output import print_record

BUNDLED = {
    "nano_vit": "papr(keep=0.4, proposal=nano_convnet)",
    "nano_convnext": "papr(keep=0.5, proposal=nano_convnet)",
}
"""Bundled hosts, and what shows them."""
FIRST = "nano_vit"
OUT = ("tokensieve-demo.png", "tokensieve-demo.html")


def demo(
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGES]...", help="Your own photographs.")] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A ViT, ConvNeXt or Swin; its weights are downloaded.")
    ] = FIRST,
    recipe: Annotated[
        str | None, typer.Option(metavar="TEXT|FILE", help=f"Default {BUNDLED[FIRST]}; for other models {SAID}.")
    ] = None,
    weights: WeightsOption = None,
    pretrained: Annotated[
        bool, typer.Option(help="Download weights that no FILE gives, or let them be random.")
    ] = True,
    proposal_weights: ProposalWeightsOption = None,
    scenes: Annotated[int, typer.Option(min=8, metavar="N", help="Scenes that the bundled model reads.")] = 300,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which scenes: every seed gives others.")] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Batch size at which speed is measured.")] = 16,
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on measuring speed.")] = 10.0,
    out: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help=f"A .png or .html; repeats. Default {' and '.join(OUT)}.")
    ] = None,
    size: SizeOption = None,
    dtype: DtypeOption = "fp32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """See it work: a bundled pair on generated scenes, or any pretrained model on photographs.

    Prints the dense model and the recipe beside random patches and merging, and writes a picture and a page.
    """
    from .._files import check_place
    from ..show.page import SUFFIXES

    places = [check_place(place, SUFFIXES) for place in out or OUT]
    own_recipe = BUNDLED.get(model) if recipe is None else recipe
    job = Job(model, own_recipe, weights, pretrained, proposal_weights, size, dtype, device, threads)
    from ..show.demo import demo_report, run_demo
    from ..show.page import write_page, write_png
    from ..show.progress import list_failures, working
    from ..show.sheet import sheet

    with working("opening the model") as status:
        record, sections, failures = run_demo(
            job, images or [], generated=model in BUNDLED, scenes=scenes, seed=seed, batch=batch, seconds=seconds,
            tell=status.update,
        )  # fmt: skip
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
