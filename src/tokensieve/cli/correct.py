"""`tokensieve correct`: fit what the head reads under a recipe to what it reads in the dense model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .._job import Job
from ..errors import InputError
from .options import (
    DeviceOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
    ProposalWeightsOption,
    RecipeOption,
    SizeOption,
    ThreadsOption,
    WeightsOption,
)
from .output import print_record

BATCH = 32


def correct(
    recipe: RecipeOption,
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Pictures, without labels: a folder, a tar, a data set.")],
    out: Annotated[
        str, typer.Option(metavar="FILE.json", help="The recipe to write; its weights go beside it, .safetensors.")
    ],
    model: ModelOption = "vit_base_patch16_224",
    weights: WeightsOption = None,
    pretrained: PretrainedOption = True,
    proposal_weights: ProposalWeightsOption = None,
    limit: Annotated[int, typer.Option(min=10, metavar="N", help="At most N pictures, evenly spread.")] = 250,
    views: Annotated[int, typer.Option(min=1, metavar="N", help="Ways each is seen: whole, mirrored, cropped.")] = 8,
    preprocessing: Annotated[str, typer.Option(metavar="timm|papers", help="How pictures are resized.")] = "timm",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the crops.")] = 0,
    size: SizeOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct a recipe's answers on your own pictures, no labels needed: what it loses on all of them alike comes back.

    Nothing is trained: a linear map for the class token, by ridge regression. It costs next to nothing to run.
    """
    from .._files import check_place
    from ..recipe import recipes_with

    place = check_place(out, (".json",))
    file = place.with_suffix(".safetensors")
    replaced = file.exists()
    if replaced and (owners := recipes_with(file)) != [place]:
        others = ", ".join(owner.name for owner in owners if owner != place)
        why = f"belongs to {others}" if others else f"does not belong to {place}"
        raise InputError(f"{file} is there and {why}: give another --out, or move the file away.")
    job = Job(model, recipe, weights, pretrained, proposal_weights, size, "fp32", device, threads)
    from ..data import Preprocessing, image_set, load_batches
    from ..search import correction
    from ..show.files import files_record, tell_files
    from ..show.progress import list_failures, working

    pictures = image_set(data, Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3), limit=limit)
    tell_files(pictures)
    with working("opening the model"):
        dense, fast, own = opened = job.open()
        prepared = Preprocessing.named(preprocessing, dense, mean=own.mean, std=own.std, size=own.input_size)
    pictures.transform = prepared.transform()
    batches = load_batches(pictures, BATCH)
    with working("reading pictures") as status:
        found = correction.correct(
            dense, fast.recipe, batches, file, views=views, seed=seed, mean=own.mean, std=own.std,
            pretrained=pretrained, report=status.update,
        )  # fmt: skip
    found.recipe.save(place)
    if replaced and found.ridge is None:  # it was of the recipe that has just been replaced
        file.unlink(missing_ok=True)
    record: dict[str, Any] = {
        **job.record(opened),
        "data": data,
        "preprocessing": {"name": preprocessing, **asdict(prepared)},
        "images": found.images,
        "views": views,
        "loss": found.loss,
        "corrected_loss": found.corrected_loss,
        "agreement": found.agreement,
        "corrected_agreement": found.corrected_agreement,
        "ridge": found.ridge,
        **files_record(pictures, found.images, batches.failures),
        "out": str(place),
        "correction": str(file) if found.ridge is not None else None,
    }
    print_record(record, "correct_view.correct_view", as_json)
    list_failures(batches.failures)
