"""The publishable part of a record of `tokensieve eval`, and a check that it belongs to a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cascade_recipe import CascadeRecipe, recipe_from_json
from ..errors import InputError
from ..methods import BaseMethod
from ..recipe import Recipe

Record = dict[str, Any]

NEEDED = (
    *("model", "recipe_json", "images", "data", "dense", "sieved", "change", "agreement", "cosine", "macs", "machine"),
    *("dtype", "versions", "input_size", "layout"),
)
ENDS = ("", "_low", "_high")
PUBLIC = (
    *NEEDED,
    *("recipe", "pretrained", "device", "threads", "tokens", "stages", "kind", "agreement_stderr", "files"),
    *(f"{name}{end}" for name in ("dense", "sieved", "change") for end in ENDS[1:]),
    *(f"{name}{end}" for name in ("agreement", "kl", "cosine", "divergence", "neighbours") for end in ENDS),
)
"""Entries that are published. The others contain paths of the machine on which it was measured."""


def read_evaluation(source: Mapping[str, Any] | str | os.PathLike[str]) -> Record:
    """The publishable part of a record, given as a dictionary or a JSON file.

    Raises:
        InputError: it is not an output of `tokensieve eval --json`.
    """
    record: Any = source
    if isinstance(source, str | os.PathLike):
        try:
            record = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"The evaluation {os.fspath(source)} cannot be read: {reason}.") from None
    missing = [] if isinstance(record, Mapping) else list(NEEDED)
    missing = missing or [name for name in NEEDED if name not in record]
    if missing:
        raise InputError(f"An evaluation must be the output of tokensieve eval --json; this one has no {missing[0]!r}.")
    public = {name: record[name] for name in dict.fromkeys(PUBLIC) if name in record}
    public["data"] = os.path.basename(str(record["data"]).rstrip("/\\")) or str(record["data"])
    recipe_json = _without_folders(record["recipe_json"])
    public |= {"recipe": recipe_json["text"], "recipe_json": recipe_json}
    if cascade := record.get("cascade"):
        recipes = [each["text"] for each in recipe_json["recipes"]]
        members = [member | {"recipe": text} for member, text in zip(cascade["members"], recipes, strict=True)]
        public["cascade"] = {**cascade, "members": members}
    return public


def _without_folders(data: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a recipe or cascade with the names of weights files, without the folders of this machine."""
    recipe = recipe_from_json(json.dumps(data)).with_paths(os.path.basename)
    changed: dict[str, Any] = {**data, "text": str(recipe)}
    if isinstance(recipe, CascadeRecipe):
        return changed | {"recipes": [_without_folders(each) for each in data["recipes"]]}
    entries = zip(data["methods"], recipe, strict=True)
    return changed | {"methods": [{**entry, **method.paths()} for entry, method in entries]}


def check_evaluation(record: Record, recipe: Recipe | CascadeRecipe, model: str | None) -> None:
    """Check that an evaluation is of this recipe and this model; names of weights files may differ, and so may what a
    cascade knows of its calibration.

    Raises:
        InputError: it is of another recipe or model.
    """
    measured = recipe_from_json(json.dumps(record["recipe_json"]))
    if _compared(measured) != _compared(recipe):
        raise InputError(f"The evaluation is of the recipe {measured}, but this recipe is {recipe}.")
    if model is not None and model != record["model"]:
        raise InputError(f"The evaluation is of the model {record['model']}, but model={model!r}.")


def _compared(recipe: Recipe | CascadeRecipe) -> Any:
    """What makes a recipe the same as another, whatever its files are called."""
    if isinstance(recipe, CascadeRecipe):
        return [_compared(each) for each in recipe.recipes], recipe.thresholds, recipe.score
    return [_without_files(method) for method in recipe]


def _without_files(method: BaseMethod) -> BaseMethod:
    """The method without the paths and SHA-256 of its weights files."""
    no_files: dict[str, Any] = {name: None for pair in method.files.items() for name in pair}
    return replace(method, **no_files)
