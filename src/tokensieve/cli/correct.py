"""`tokensieve correct`: fit a linear map from the head's input under a recipe to its input in the dense model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..errors import InputError
from .opening import Media, read_spec, record_of
from .options import (
    JsonOption,
    NetworkOptions,
    PlaceOptions,
    PreprocessingOption,
    ProposalWeightsOption,
    RecipeOption,
)
from .output import print_record

BATCH = 32


def correct(
    *,
    recipe: RecipeOption,
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Pictures, without labels: a folder, a tar, a data set.")],
    out: Annotated[
        str, typer.Option(metavar="FILE.json", help="The recipe to write; its weights go to a .safetensors beside it.")
    ],
    network: NetworkOptions,
    proposal_weights: ProposalWeightsOption = None,
    limit: Annotated[int, typer.Option(min=10, metavar="N", help="At most N pictures, evenly spread.")] = 250,
    views: Annotated[
        int, typer.Option(min=1, metavar="N", help="Augmented versions of each picture: whole, mirrored, cropped.")
    ] = 8,
    preprocessing: PreprocessingOption = "timm",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of the crops.")] = 0,
    machine: PlaceOptions,
    as_json: JsonOption = False,
) -> None:
    """Correct the systematic error of a recipe on your own pictures, without labels.

    Fits a linear map of the class token by ridge regression; the model itself is not trained. Its cost at inference is
    negligible.
    """
    from .._files import check_place
    from ..recipe import recipes_with

    recipe_file = check_place(out, (".json",))
    file = recipe_file.with_suffix(".safetensors")
    replaced = file.exists()
    if replaced and (owners := recipes_with(file)) != [recipe_file]:
        other_names = ", ".join(owner.name for owner in owners if owner != recipe_file)
        why = f"belongs to {other_names}" if other_names else f"does not belong to {recipe_file}"
        raise InputError(f"{file} exists and {why}: give another --out, or move the file away.")
    spec = read_spec(network, machine, recipe=recipe, proposal_weights=proposal_weights, preprocessing=preprocessing)
    from ..data import load_batches
    from ..search import correction
    from ..show.files import files_record
    from ..show.progress import list_failures, working

    media = Media(data, limit=limit)
    with working("opening the model"):
        dense, fast, prepared = opened = spec.open()
    pictures = media.prepared(prepared)
    batches = load_batches(pictures, BATCH)
    with working(f"reading {batches.kind.many}") as status:
        result = correction.correct(
            dense, fast.recipe, batches, file, views=views, seed=seed, mean=prepared.mean, std=prepared.std,
            pretrained=spec.pretrained, report=status.update,
        )  # fmt: skip
    result.recipe.save(recipe_file)
    if replaced and result.ridge is None:  # it belonged to the recipe that has just been replaced
        file.unlink(missing_ok=True)
    record: dict[str, Any] = {
        **record_of(spec, opened),
        "data": data,
        "preprocessing": {"name": preprocessing, **asdict(prepared)},
        "images": result.images,
        "views": views,
        "divergence": result.divergence,
        "corrected_divergence": result.corrected_divergence,
        "agreement": result.agreement,
        "corrected_agreement": result.corrected_agreement,
        "ridge": result.ridge,
        **files_record(pictures, result.images, batches.failures),
        "out": str(recipe_file),
        "correction": str(file) if result.ridge is not None else None,
    }
    print_record(record, "correct_view.correct_view", as_json)
    list_failures(batches.failures, batches.kind)
