"""`tokensieve segment`: the class of every pixel, by a segmenter that was trained here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import DeviceOption, JsonOption, RecipeOption, ThreadsOption
from .output import print_record


def segment(
    segmenter: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME", help="NAME.safetensors of `train segment` or `train dtop`; or nano_segmenter."
        ),
    ],
    images: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|TAR|scenes",
            help="Pictures; with --layout a set with labels; scenes are generated, with labels.",
        ),
    ],
    recipe: RecipeOption = "",
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How pictures and labels lie, to be scored: folders, ade20k, camvid ...; see `train`."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which part of a set with labels; default val.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where a palette picture of each is written, in its size.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name the class of every pixel, dense and under a recipe: mean IoU where there are labels, agreement anywhere."""
    import torch

    from .._files import check_folder
    from .._spec_settings import torch_device
    from ..data import AsTensor, Preprocessing, image_set, segmentation_set
    from ..data.segmentation import SCENES
    from ..segmentation.plan import open_trained
    from ..show.files import files_record, tell_files
    from ..show.masks import segment_pictures
    from ..show.progress import Counting, list_failures, working
    from ..stream import sieve

    if threads is not None:
        torch.set_num_threads(threads)
    target = torch_device(device)
    if out is not None:
        check_folder(out)
    with working("opening the segmenter"):
        model, plan = open_trained(segmenter)
        model = model.to(target)
        fast = sieve(model, recipe) if recipe else model
    assert plan.mean is not None
    assert plan.std is not None
    reads: Any = AsTensor(plan.mean, plan.std)
    if layout is None and images != SCENES:
        pictures: Any = image_set(images, Preprocessing((1, 1), plan.mean, plan.std), limit=limit)
        pictures.transform = reads
    else:
        classes_of_plan = list(plan.classes) if layout == "folders" else None
        default = None if layout == "folders" else "val"
        pictures = segmentation_set(
            images, layout or "folders", split or default, classes=classes_of_plan, transform=reads, limit=limit
        )
        if images == SCENES and pictures.classes != plan.classes:
            raise InputError("Scenes are labelled with classes of their own, which are not this segmenter's.")
    tell_files(pictures)
    with Counting("pictures read") as counting:
        result = segment_pictures(
            fast,
            pictures,
            plan.crop,
            plan.stride,
            folder=out,
            dense=model if recipe else None,
            on_progress=counting.update,
        )
    record: dict[str, Any] = {
        "segmenter": segmenter,
        "plan": json.loads(json.dumps(plan.__dict__)),
        "recipe": recipe or None,
        "classes": list(plan.classes),
        "images": result.count,
        "crop": list(plan.crop),
        "stride": list(plan.stride),
        "macs": {"dense": result.dense_macs or result.macs, "sieved": result.macs},
        "agreement": result.agreement,
        "scores": None if result.score is None else {**result.score.figures, "iou": list(result.score.iou)},
        "dense": None if result.dense is None else {**result.dense.figures, "iou": list(result.dense.iou)},
        "out": out,
        **files_record(pictures, result.count, result.failures),
    }
    print_record(record, "segment_view.segment_view", as_json)
    list_failures(result.failures)
