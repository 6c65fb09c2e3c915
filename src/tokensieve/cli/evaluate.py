"""`tokensieve eval`: measure the loss of a recipe on the user's own pictures or videos."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .opening import Media, read_spec, record_of
from .options import (
    BatchOption,
    ClassesOption,
    JsonOption,
    MachineOptions,
    ModelOptions,
    PreprocessingOption,
    SetOptions,
    WorkersOption,
    numbers,
)
from .output import print_record, say

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from ..show.progress import TrackedBatches


def evaluate(
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Class folders, a flat folder, a tar, a timm dataset, or a list of videos."
        ),
    ],
    network: ModelOptions,
    classes: ClassesOption = None,
    preprocessing: PreprocessingOption = "timm",
    batch: BatchOption = 32,
    k: Annotated[str | None, typer.Option(metavar="K,...", help="Top-k accuracies; default 1,5.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = None,
    workers: WorkersOption = 0,
    predictions: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Write both models' predictions for each picture or video.")
    ] = None,
    clips: SetOptions,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure the loss of a recipe on your own pictures or videos: in accuracy if there are labels, else in agreement.

    For videos the outputs for several --views are averaged; a view is a crop of a clip.
    """
    ks = None if k is None else numbers(k, "--k")
    from .._files import check_place

    predictions_file = None if predictions is None else check_place(predictions, (".csv",))
    spec = read_spec(network, machine, clips, preprocessing=preprocessing, cascades=True)
    from ..cascades.cascade import Cascade
    from ..data import load_batches
    from ..measure import fidelity
    from ..measure.outputs import class_count
    from ..measure.views import AveragedViews
    from ..show.explain import class_names
    from ..show.files import files_record
    from ..show.predictions import Predictions
    from ..show.progress import TrackedBatches, list_failures, working
    from ..show.record import cascade_reads, compared, on_pictures

    # The data is opened before the model, so that its errors are reported early; the model decides the preprocessing.
    media = Media(data, classes=classes, limit=limit, root=clips.root)
    with working("opening the model"):
        dense, fast, prepared = opened = spec.open()
        pictures = media.prepared(prepared)
        record = record_of(spec, opened)
        views = opened.views
        tracked = TrackedBatches(load_batches(pictures, max(1, batch // views), workers))
    labels = dict(getattr(pictures, "classes", ()))
    table = Predictions(class_names(dense), labels)
    if predictions_file is not None and not class_count(dense):
        raise InputError(f"--predictions needs a classifier, and {spec.model} has none.")
    averaged = (fast, dense) if views == 1 else (AveragedViews(fast, views, batch), AveragedViews(dense, views, batch))
    scored = _scorable(ks, tracked, 0 if classes else len(labels), class_count(dense))
    result = fidelity(averaged[0], averaged[1], tracked, k=scored, each=None if predictions_file is None else table.see)
    if predictions_file is not None:
        table.write(predictions_file)
    if isinstance(fast, Cascade):  # measured on all pictures: the cost depends on the picture
        record |= cascade_reads(fast, opened.input_spec, fast.watch.shares)
    elif tracked.first is not None:
        images = tracked.first.images
        record |= on_pictures(fast, dense, images if views == 1 else images.flatten(0, 1))
    record |= {
        "data": data,
        "classes": classes,
        "preprocessing": {"name": preprocessing, **asdict(prepared)},
        "batch": batch,
        "predictions": predictions,
        **compared(result),
        **files_record(pictures, result.count, result.failures),
    }
    print_record(record, "eval_view.eval_view", as_json)
    list_failures(result.failures, tracked.kind)


def _scorable(ks: list[int] | None, tracked: TrackedBatches, folders: int, classes: int) -> list[int] | None:
    """The k for top-k accuracy; None without labels or classifier, or if the class folders do not fit the model."""
    why = None
    if not classes or not tracked.labelled:
        why = f"accuracy needs a label for every {tracked.kind.one} and a model with a classifier"
    elif folders and folders != classes:
        why = (
            f"the {folders} class folders are not the {classes} classes of the model; "
            "map folders to classes with --classes FILE"
        )
    if why is None:
        return ks or [k for k in (1, 5) if k <= classes]
    if ks:
        raise InputError(f"--k asks for accuracy, but {why}.")
    if folders:
        say(f"Accuracy is left out: {why}.")
    return None
