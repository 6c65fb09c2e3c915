"""`tokensieve segment`: predict the class of every pixel with a segmenter trained by tokensieve."""

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
            metavar="FILE|NAME", help="NAME.safetensors from `train segment` or `train dtop`; or nano_segmenter."
        ),
    ],
    images: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|TAR|scenes",
            help="Pictures; with --layout a dataset with labels; or `scenes`, generated with labels.",
        ),
    ],
    recipe: RecipeOption = "",
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Layout of a dataset with labels: folders, ade20k, camvid ...; see `train segment`."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of a dataset with labels; default val.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder for the predicted label maps, as palette images.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment pictures with the dense model and with a recipe; report agreement, and mean IoU if there are labels."""
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
    transform: Any = AsTensor(plan.mean, plan.std)
    if layout is None and images != SCENES:
        pictures: Any = image_set(images, Preprocessing((1, 1), plan.mean, plan.std), limit=limit)
        pictures.transform = transform
    else:
        classes_of_plan = list(plan.classes) if layout == "folders" else None
        default = None if layout == "folders" else "val"
        pictures = segmentation_set(
            images, layout or "folders", split or default, classes=classes_of_plan, transform=transform, limit=limit
        )
        if images == SCENES and pictures.classes != plan.classes:
            raise InputError("The classes of the generated scenes are not the classes of this segmenter.")
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
