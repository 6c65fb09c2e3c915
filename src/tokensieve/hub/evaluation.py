"""What of `tokensieve eval`'s record is published, and whether it is of the recipe that it is published with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
"""Entries that are published. Others name files and folders of the machine that measured."""


def read_evaluation(source: Mapping[str, Any] | str | os.PathLike[str]) -> Record:
    """The publishable part of a record, given as a dictionary or a file of JSON.

    Raises:
        InputError: it is not what `tokensieve eval --json` prints.
    """
    record: Any = source
    if isinstance(source, str | os.PathLike):
        try:
            record = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"The evaluation {os.fspath(source)} cannot be read: {why}.") from None
    missing = [] if isinstance(record, Mapping) else list(NEEDED)
    missing = missing or [name for name in NEEDED if name not in record]
    if missing:
        raise InputError(f"An evaluation is what tokensieve eval --json prints; this one has no {missing[0]!r}.")
    public = {name: record[name] for name in dict.fromkeys(PUBLIC) if name in record}
    public["data"] = os.path.basename(str(record["data"]).rstrip("/\\")) or str(record["data"])
    named = _recipe_of(record)
    short = named.with_paths(os.path.basename)
    entries = [{**entry} for entry in record["recipe_json"]["methods"]]
    for entry, method in zip(entries, short, strict=True):
        entry |= method.paths()
    public |= {"recipe": str(short), "recipe_json": {**record["recipe_json"], "text": str(short), "methods": entries}}
    return public


def check_evaluation(record: Record, recipe: Recipe, model: str | None) -> None:
    """Refuse the figures of another recipe or another model.

    Files of weights may have other names: what was measured in one file is stored in another.

    Raises:
        InputError: they are.
    """
    measured = _recipe_of(record)
    if [_without_files(method) for method in measured] != [_without_files(method) for method in recipe]:
        raise InputError(f"The evaluation is of the recipe {measured}, and this is {recipe}.")
    if model is not None and model != record["model"]:
        raise InputError(f"The evaluation is of the model {record['model']}, and the recipe is said to be for {model}.")


def _recipe_of(record: Mapping[str, Any]) -> Recipe:
    return Recipe.from_json(json.dumps(record["recipe_json"]))


def _without_files(method: BaseMethod) -> BaseMethod:
    nothing: dict[str, Any] = {name: None for pair in method.files.items() for name in pair}
    return replace(method, **nothing)
