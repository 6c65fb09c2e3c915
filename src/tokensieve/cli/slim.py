"""`tokensieve slim`: search for the patches that each block of a model does not need."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .opening import Media, read_spec, record_of
from .options import JsonOption, NetworkOptions, PlaceOptions
from .output import print_record

BATCH = 8
FORMS = ("A", "B")


def slim(
    *,
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Pictures, without labels: a folder, a tar, a data set.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="The recipe file to write.")],
    network: NetworkOptions,
    tolerance: Annotated[
        float | None, typer.Option(min=0, metavar="E", help="Allowed relative error of a block; default 0.02.")
    ] = None,
    saving: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of MACs to save, instead of --tolerance.")
    ] = None,
    granularity: Annotated[int, typer.Option(min=1, metavar="N", help="Patches added at a time.")] = 10,
    form: Annotated[
        str, typer.Option(metavar="A|B", help="A: other patches still serve as keys and values; B: they are dropped.")
    ] = "A",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = 64,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Draw the kept patches and the significance of each patch.")
    ] = None,
    machine: PlaceOptions,
    as_json: JsonOption = False,
) -> None:
    """Search for the patches that each block needs, the same for all pictures, and write them as a recipe.

    This is Patch Slimming without fine-tuning: nothing is trained, and no labels are needed.
    """
    if tolerance is not None and saving is not None:
        raise InputError("--saving chooses the tolerance itself: give only one of --saving and --tolerance.")
    if form not in FORMS:
        raise InputError(f"--form must be A or B, not {form!r}.")
    if plot is not None and Path(plot).suffix.lower() != ".png":
        raise InputError(f"--plot must name a .png file, not {plot!r}.")
    from .._files import draft

    for path in filter(None, (out, plot)):
        with draft(path):  # fails early if the file cannot be written
            pass
    spec = read_spec(network, machine, recipe="")
    from ..data import load_batches
    from ..search import slimming
    from ..show.files import files_record
    from ..show.progress import list_failures, working

    media = Media(data, limit=limit)
    with working("opening the model"):
        dense, _, prepared = spec.open()
    pictures = media.prepared(prepared)
    batches = load_batches(pictures, BATCH)
    with working(f"reading {batches.kind.many}") as status:
        slimmed = slimming.slim(
            dense,
            batches,
            tolerance=tolerance,
            saving=saving,
            granularity=granularity,
            form="A" if form == "A" else "B",
            limit=limit,
            report=status.update,
        )
    record: dict[str, Any] = {
        **record_of(spec, spec.sieve(dense, prepared, slimmed.recipe)),
        "data": data,
        "preprocessing": {"name": "timm", **asdict(prepared)},
        "images": slimmed.images,
        "form": form,
        "granularity": granularity,
        "tolerance": slimmed.tolerance,
        "saving": slimmed.saving,
        "patches": list(slimmed.counts),
        "errors": list(slimmed.errors),
        **files_record(pictures, slimmed.images, batches.failures),
        "out": out,
        "plot": plot,
    }
    slimmed.recipe.save(out)
    if plot is not None:
        from ..show.slim_view import slim_plot

        with draft(plot) as file:
            slim_plot(slimmed, spec.model).savefig(file, dpi=150)
    print_record(record, "slim_view.slim_view", as_json)
    list_failures(batches.failures, batches.kind)
