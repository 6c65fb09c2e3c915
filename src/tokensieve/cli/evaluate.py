"""`tokensieve eval`: what a recipe loses on the user's own pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .opening import open_pictures, read_spec, record_of
from .options import (
    BatchOption,
    ClassesOption,
    JsonOption,
    MachineOptions,
    ModelOptions,
    PreprocessingOption,
    WorkersOption,
    numbers,
)
from .output import print_record, say

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from ..show.progress import Watched


def evaluate(
    *,
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Class folders, a flat folder, a tar, a timm data set.")],
    network: ModelOptions,
    classes: ClassesOption = None,
    preprocessing: PreprocessingOption = "timm",
    batch: BatchOption = 32,
    k: Annotated[str | None, typer.Option(metavar="K,...", help="Top-k accuracies; default 1,5.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = None,
    workers: WorkersOption = 0,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure what a recipe loses on your own pictures: accuracy where there are labels, agreement everywhere."""
    ks = None if k is None else numbers(k, "--k")
    spec = read_spec(network, machine, preprocessing=preprocessing)
    from ..data import load_batches
    from ..measure import fidelity
    from ..show.files import files_record
    from ..show.progress import Watched, list_failures, working
    from ..show.record import compared, on_pictures

    # The data is opened first, which is soon done; how its pictures are prepared, only the model knows.
    pictures = open_pictures(data, classes=classes, limit=limit)
    with working("opening the model"):
        dense, fast, prepared = opened = spec.open()
        pictures = pictures.prepared(prepared)
        record = record_of(spec, opened)
        seen = Watched(load_batches(pictures, batch, workers))
    folders = 0 if classes else len(getattr(pictures, "classes", ()))
    result = fidelity(fast, dense, seen, k=_scorable(ks, seen, folders, getattr(dense, "num_classes", None)))
    if seen.first is not None:
        record |= on_pictures(fast, dense, seen.first.images)
    record |= {
        "data": data,
        "classes": classes,
        "preprocessing": {"name": preprocessing, **asdict(prepared)},
        "batch": batch,
        **compared(result),
        **files_record(pictures, result.count, result.failures),
    }
    print_record(record, "tables.eval_view", as_json)
    list_failures(result.failures)


def _scorable(ks: list[int] | None, seen: Watched, folders: int, classes: int | None) -> list[int] | None:
    """The top-k that make sense: none where labels or a classifier are missing, or do not belong together."""
    why = None
    if not classes or not seen.labelled:
        why = "accuracy needs a label for every picture and a model with a classifier"
    elif folders and folders != classes:
        why = (
            f"the {folders} class folders are not the {classes} classes of the model; "
            "--classes FILE says which folder is which class"
        )
    if why is None:
        return ks or [k for k in (1, 5) if k <= (classes or 0)]
    if ks:
        raise InputError(f"--k asks for accuracy, but {why}.")
    if folders:
        say(f"Accuracy is left out: {why}.")
    return None
