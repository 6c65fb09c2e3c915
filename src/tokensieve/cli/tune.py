"""`tokensieve tune`: recipes for the user's own model, pictures and budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .opening import Media, read_spec, record_of
from .options import (
    BatchOption,
    ClassesOption,
    JsonOption,
    MachineOptions,
    NetworkOptions,
    PreprocessingOption,
    SetOptions,
    WorkersOption,
)
from .output import print_record

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from torch import Tensor

    from ..model_spec import OpenedModel
    from ..search.budget_search import Progress
    from ..search.front import Point

FOLDER = "tokensieve-tune"
IMAGES, MOTION = "mobileone_s0", "motion"
"""The default proposals: a network for images, motion, which needs none, for videos."""


def tune(
    *,
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="Pictures or videos: a folder, a tar, a timm data set, a list.")
    ],
    network: NetworkOptions,
    segmenter: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="NAME.safetensors of `train segment` instead of --model; reads windows."),
    ] = None,
    macs: Annotated[float | None, typer.Option(metavar="X", help="Wanted: X times fewer MACs.")] = None,
    time: Annotated[float | None, typer.Option(metavar="X", help="Wanted: X times as fast, measured here.")] = None,
    divergence: Annotated[
        float | None, typer.Option(metavar="KL", help="Allowed: this divergence, and as cheap as can be.")
    ] = None,
    agree: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Wanted: so many answers the same, 0.98, as cheap as can be: cascades."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="Of --agree: how sure its promise is.")] = 0.95,
    limit: Annotated[
        int | None,
        typer.Option(min=4, metavar="N", help="At most N pictures, evenly spread; default 250, with --agree 1000."),
    ] = None,
    trials: Annotated[int, typer.Option(min=0, metavar="N", help="Recipes to try in the searches.")] = 200,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="End the search after so long.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="FILE.db", help="Keep the trials here; the same command goes on from them.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Recipe files, front.csv, .json, .png.")] = FOLDER,
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Search this family only; may be repeated.")
    ] = None,
    proposal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|none", help="May rank patches; may be repeated. Default mobileone_s0, of videos motion."
        ),
    ] = None,
    proposal_weights: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Weights of each --proposal, in their order.")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Pictures that the search does not see; default 0.3, with --agree 0.5."),
    ] = None,
    correct: Annotated[
        bool, typer.Option(help="Correct what the recommended recipe loses on all pictures alike.")
    ] = True,
    labels: Annotated[
        bool,
        typer.Option("--labels", help="The folders are the model's classes: tell accuracy too. --classes means it."),
    ] = False,
    classes: ClassesOption = None,
    preprocessing: PreprocessingOption = "timm",
    batch: BatchOption = 32,
    workers: WorkersOption = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the search, and of which pictures it sees.")] = 0,
    clips: SetOptions,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Find recipes for your model on your own pictures or videos, no labels needed, within a budget."""
    if clips.views is not None:
        raise InputError("--views are averaged by tokensieve eval: a search reads one clip of a video.")
    from .._files import check_folder

    check_folder(out)
    if agree is not None and segmenter is not None:
        raise InputError("--agree is of classifiers; of segmenters give --macs, --time or --divergence.")
    limit = limit or (250 if agree is None else 1000)
    holdout = (0.3 if agree is None else 0.5) if holdout is None else holdout
    correction = _correction(Path(out)) if correct and segmenter is None and agree is None else None
    if segmenter is None:
        window, spec = None, read_spec(network, machine, clips, recipe="", preprocessing=preprocessing)
    else:
        if network.weights is not None or labels or classes is not None or machine.size is not None:
            raise InputError(
                "--segmenter has its own weights, size and classes: no --weights, --size, --classes, --labels."
            )
        window, spec = _segmenter(segmenter, machine)
    from ..cascades.cascade import Cascade
    from ..data import load_batches
    from ..measure.outputs import class_count
    from ..search.budgets import budget
    from ..search.tuning import tune
    from ..show.files import files_record
    from ..show.progress import Counting, TrackedBatches, list_failures, working

    budget(macs, time, divergence, agree)
    media = Media(data, classes=classes, limit=limit, root=clips.root)
    with working("opening the model"):
        dense, _, prepared = opened = spec.open()
        pictures = media.prepared(prepared)
        if window is not None:
            pictures.transform = window
    kind, videos = pictures.kind, "T" in opened.input_spec.layout
    proposals = _proposals(proposal, proposal_weights, MOTION if videos else IMAGES)
    labelled = labels or classes is not None
    if labelled and not classes and (folders := len(getattr(pictures, "classes", ()))) != class_count(dense):
        raise InputError(
            f"--labels: the {folders} class folders are not the {class_count(dense)} classes of the model; --classes "
            "FILE says which folder is which class."
        )
    if labelled and (loose := getattr(pictures, "unlabelled", 0)):
        raise InputError(f"Accuracy needs a label for every {kind.one}, and {loose} lie in no class folder: move them.")

    class Unlabelled(TrackedBatches):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                yield batch.images

    tracked = (TrackedBatches if labelled else Unlabelled)(load_batches(pictures, batch, workers))
    with Counting("recipes tried") as counting:

        def report(now: Progress) -> None:
            best = "" if now.divergence is None else f", best {now.divergence:.4f}"
            counting.update(now.trials, now.of, f"{now.ratio:.2f}x {now.family}{best}")

        front = tune(
            dense,
            tracked,
            macs=macs,
            time=time,
            divergence=divergence,
            agree=agree,
            confidence=confidence,
            families=family,
            proposals=proposals,
            trials=trials,
            timeout=timeout,
            storage=storage,
            holdout=holdout,
            seed=seed,
            correction=correction,
            report=report,
            tell=counting.say,
            keep=lambda front_so_far: front_so_far.save(out),
            mean=prepared.mean,
            std=prepared.std,
            pretrained=spec.pretrained,
            batch=batch,
        )
    front.save(out)
    images = front.best.search.images + (front.best.heldout.images if front.best.heldout else 0)
    opened = spec.sieve(dense, prepared, front.recommended.recipe)
    record = {
        **record_of(spec, opened),
        **({} if segmenter is None else {"model": Path(segmenter).name, "weights": segmenter}),
        "data": data,
        "classes": classes,
        "preprocessing": {"name": preprocessing if window is None else "a window", **asdict(prepared)},
        "images": images,
        "front": front.record(),
        "out": out,
        **files_record(pictures, images, tracked.failures),
    }
    if not isinstance(opened.fast, Cascade) and opened.fast.plan.varies and tracked.first is not None:
        record |= _on_pictures(front.recommended, front.dense_macs, opened, tracked.first.images)
    print_record(record, "tune_view.tune_view", as_json)
    list_failures(tracked.failures, kind)


def _segmenter(file: str, machine: MachineOptions) -> tuple[Any, Any]:
    """What makes a picture a window of the size that it reads, and the description of the model."""
    from ..data import AsTensor, Preprocessing
    from ..segmentation.plan import SegmenterPlan, plan_file
    from ..segmentation.sliding import OneWindow

    plan = SegmenterPlan.load(plan_file(file))
    if plan.mean is None or plan.std is None:
        raise InputError(f"{plan_file(file)} does not say how images are normalised: mean and std.")
    network = NetworkOptions(model="tokensieve.segmentation.plan:trained")
    preprocessing = Preprocessing(plan.crop, plan.mean, plan.std)
    spec = read_spec(network, machine, recipe="", preprocessing=preprocessing, args={"weights": file})
    return OneWindow(plan.crop, plan.stride, AsTensor(plan.mean, plan.std)), spec


def _on_pictures(point: Point, dense: float, opened: OpenedModel, images: Tensor) -> dict[str, Any]:
    """The cost of a recipe that leaves each picture its own number of tokens; these in the mean over some pictures."""
    trace = opened.fast.trace(images.to(opened.device, opened.dtype))
    assert trace.tokens is not None
    return {
        "macs": {"dense": dense, "sieved": point.macs, "proposal": 0, "ratio": point.ratio},
        "tokens": {
            "dense": trace.source.shape[1] + trace.tokens.prefix,
            "per_block": [round(float(lengths.double().mean())) for lengths in trace.lengths],
        },
    }


def _correction(folder: Path) -> Path:
    """The file for the correction's weights; one that belongs to another recipe than an earlier search's is refused."""
    from ..methods.corrected import CORRECTION
    from ..recipe import recipes_with

    file = folder / CORRECTION
    other_recipes = [path.name for path in (recipes_with(file) if file.exists() else []) if path.name != "best.json"]
    if other_recipes:
        raise InputError(f"{file} belongs to {', '.join(other_recipes)}: give another --out.")
    return file


def _proposals(names: list[str] | None, files: list[str] | None, default: str) -> dict[str, str | None]:
    names = names or [default]
    if names == ["none"]:
        names = []
    if files and len(files) != len(names):
        raise InputError(f"There are {len(files)} --proposal-weights for {len(names)} --proposal: give one for each.")
    weights: list[str | None] = [*files] if files else [None] * len(names)
    return dict(zip(names, weights, strict=True))
