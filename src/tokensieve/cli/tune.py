"""`tokensieve tune`: search recipes for the user's own model, pictures and budget."""

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
"""The default proposals: a network for images; for videos motion, which needs no network."""


def tune(
    *,
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="Pictures or videos: a folder, a tar, a timm dataset, a list.")
    ],
    network: NetworkOptions,
    segmenter: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="NAME.safetensors of `train segment` instead of --model; reads windows."),
    ] = None,
    macs: Annotated[float | None, typer.Option(metavar="X", help="Budget: X times fewer MACs.")] = None,
    time: Annotated[
        float | None, typer.Option(metavar="X", help="Budget: X times as fast, measured on this machine.")
    ] = None,
    divergence: Annotated[
        float | None, typer.Option(metavar="KL", help="Budget: at most this divergence, with as few MACs as possible.")
    ] = None,
    agree: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Budget: this share of equal predictions, e.g. 0.98; searches cascades."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="Confidence level for --agree.")] = 0.95,
    limit: Annotated[
        int | None,
        typer.Option(min=4, metavar="N", help="At most N pictures, evenly spread; default 250, with --agree 1000."),
    ] = None,
    trials: Annotated[int, typer.Option(min=0, metavar="N", help="Number of recipes to try.")] = 200,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Time limit of the search.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="FILE.db", help="Store the trials here; the same command resumes from them.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Folder for recipes and front.csv, .json, .png.")] = FOLDER,
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Search only this family; may be repeated.")
    ] = None,
    proposal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|none", help="Proposal to try; may be repeated. Default mobileone_s0, for videos motion."
        ),
    ] = None,
    proposal_weights: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Weights of each --proposal, in their order.")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of held-out pictures; default 0.3, with --agree 0.5."),
    ] = None,
    correct: Annotated[
        bool, typer.Option(help="Correct the systematic error of the recommended recipe; see `tokensieve correct`.")
    ] = True,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels", help="The folders are the model's classes: report accuracy too. Implied by --classes."
        ),
    ] = False,
    classes: ClassesOption = None,
    preprocessing: PreprocessingOption = "timm",
    batch: BatchOption = 32,
    workers: WorkersOption = 0,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Random seed of the search and of the held-out pictures.")
    ] = 0,
    clips: SetOptions,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Search recipes for your model on your own pictures or videos within a budget; no labels needed."""
    if clips.views is not None:
        raise InputError("tune reads one clip of each video: leave out --views, which tokensieve eval averages over.")
    from .._files import check_folder

    check_folder(out)
    if agree is not None and segmenter is not None:
        raise InputError("--agree is for classifiers: for segmenters give --macs, --time or --divergence.")
    limit = limit or (250 if agree is None else 1000)
    holdout = (0.3 if agree is None else 0.5) if holdout is None else holdout
    correction = _correction(Path(out)) if correct and segmenter is None and agree is None else None
    if segmenter is None:
        window, spec = None, read_spec(network, machine, clips, recipe="", preprocessing=preprocessing)
    else:
        if network.weights is not None or labels or classes is not None or machine.size is not None:
            raise InputError(
                "--segmenter has its own weights, size and classes: leave out --weights, --size, --classes, --labels."
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
            f"--labels: the {folders} class folders are not the {class_count(dense)} classes of the model; map folders "
            "to classes with --classes FILE."
        )
    if labelled and (unlabelled := getattr(pictures, "unlabelled", 0)):
        raise InputError(
            f"Accuracy needs a label for every {kind.one}, and {unlabelled} are not in a class folder: move them."
        )

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
    """The transform from a picture to a window of the segmenter's size, and the `ModelSpec` of the segmenter."""
    from ..data import AsTensor, Preprocessing
    from ..segmentation.plan import SegmenterPlan, plan_file
    from ..segmentation.sliding import OneWindow

    plan = SegmenterPlan.load(plan_file(file))
    if plan.mean is None or plan.std is None:
        raise InputError(f"{plan_file(file)} lacks the normalisation of images: mean and std.")
    network = NetworkOptions(model="tokensieve.segmentation.plan:trained")
    preprocessing = Preprocessing(plan.crop, plan.mean, plan.std)
    spec = read_spec(network, machine, recipe="", preprocessing=preprocessing, args={"weights": file})
    return OneWindow(plan.crop, plan.stride, AsTensor(plan.mean, plan.std)), spec


def _on_pictures(point: Point, dense: float, opened: OpenedModel, images: Tensor) -> dict[str, Any]:
    """MACs and mean token counts, on some pictures, of a recipe with a different number of tokens for each picture."""
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
    """The file for the correction's weights. Raises `InputError` if it exists and belongs to another recipe."""
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
