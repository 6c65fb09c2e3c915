"""Checks the settings of a `ModelSpec` and brings each into the form in which it is stored."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .cascade_recipe import CascadeRecipe, parse_recipe, read_recipe
from .data import Preprocessing, VideoPreprocessing
from .errors import InputError, RecipeError, SettingError, nearest
from .methods import PaPr
from .recipe import Recipe

SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def model(value: object) -> str:
    """Check the model's name, or the import path of a callable."""
    if not isinstance(value, str) or not value:
        raise SettingError("model", f"must be a name or 'package.module:function', not {value!r}.")
    if ":" in value and not is_import_path(value):
        raise SettingError("model", f"{value!r} is no import path: write 'package.module:function'.")
    return value


def is_import_path(name: str) -> bool:
    """Whether a model's name is "package.module:function"."""
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *function.split(".")])


def recipe(value: Any) -> Recipe | CascadeRecipe:
    """A recipe or cascade that can be written as text. Raises `RecipeError` for one that holds a module or a tensor."""
    parsed = read_recipe(value)
    try:
        parse_recipe(str(parsed))
    except RecipeError as error:
        raise RecipeError(
            f'"{parsed}" cannot be stored: a ModelSpec holds its recipe as text, which can name a proposal and its '
            "weights file, but cannot hold a module or a tensor."
        ) from error
    return parsed


def path(setting: str, value: object) -> str | None:
    """The path of a file, which need not exist."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str | None) or value == "":
        raise SettingError(setting, f"must be the name of a file, not {value!r}.")
    return value


def flag(setting: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError(setting, f"must be True or False, not {value!r}.")
    return value


def precision(value: object, known: Mapping[str, str]) -> str:
    """A precision by its short name."""
    name = str(value).removeprefix("torch.")
    for short, long in known.items():
        if name in (short, long):
            return short
    raise SettingError("precision", f"must be one of {', '.join(known)}, not {value!r}.")


def device(value: object) -> str:
    """A device's name, whether this machine has it or not."""
    name = str(value)
    kind, colon, index = name.partition(":")
    numbered = kind == "cuda" and index.isdecimal()
    if kind not in ("cpu", "cuda", "auto") or (colon and not numbered):
        raise SettingError("device", f"must be cpu, cuda, cuda:0 or auto, not {name!r}.")
    return name


def torch_device(name: str) -> torch.device:
    """The torch.device on this machine; raises `InputError` if it does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SettingError("device", f"{name} does not exist: torch sees {torch.cuda.device_count()} CUDA devices.")
    return torch.device(name)


def size(value: Any, preprocessing: str | Preprocessing | VideoPreprocessing) -> tuple[int, int] | None:
    """Height and width in pixels; they must equal the input size of a `preprocessing` object, if one is given."""
    if value is None:
        return None
    sides: Any = value
    if isinstance(value, str):
        parts = [part.strip() for part in value.lower().split("x")]
        sides = [int(part) for part in parts] if all(part.isdecimal() for part in parts) else []
    elif isinstance(value, int):
        sides = [value]
    fits = isinstance(sides, Sequence) and len(sides) in (1, 2)
    if not fits or not all(type(side) is int and side > 0 for side in sides):
        raise SettingError("size", f"must be a side in pixels or HEIGHTxWIDTH, such as 224x256, not {value!r}.")
    height_width = (sides[0], sides[-1])
    if not isinstance(preprocessing, str) and preprocessing.input_size != height_width:
        raise SettingError(
            "size", f"is {size_text(height_width)}, and the preprocessing makes {size_text(preprocessing.input_size)}."
        )
    return height_width


def size_text(sides: tuple[int, int]) -> str:
    """(224, 224) -> "224", (224, 256) -> "224x256"."""
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"


def preprocessing(value: Any, known: Sequence[str]) -> str | Preprocessing | VideoPreprocessing:
    """One of the names in `known`, or a `Preprocessing` or `VideoPreprocessing`, also as a mapping of its fields."""
    if isinstance(value, Mapping):
        kind = VideoPreprocessing if "frames" in value else Preprocessing
        try:
            return kind(**value)
        except TypeError as error:
            raise SettingError("preprocessing", f"is not the fields of a {kind.__name__}: {error}.") from None
    if not isinstance(value, Preprocessing | VideoPreprocessing) and value not in known:
        raise RecipeError(f"The preprocessing {value!r} is unknown: choose {' or '.join(known)}.")
    return value


CLIPS = ("frames", "stride", "sampling", "views", "short_side")
"""Settings of `VideoPreprocessing` that a spec may change."""


def clips(value: Any, preprocessing: str | Preprocessing | VideoPreprocessing) -> dict[str, Any]:
    """Check settings that replace the model's own `VideoPreprocessing` settings."""
    if not isinstance(value, Mapping):
        raise SettingError("clips", f"must be settings by their names, not {value!r}.")
    for name in value:
        if name not in CLIPS:
            raise SettingError("clips", f"has no setting {name!r}{nearest(str(name), CLIPS)}: {', '.join(CLIPS)}.")
    if value and not isinstance(preprocessing, str):
        raise SettingError("clips", "cannot be given together with a preprocessing object: set them in that object.")
    VideoPreprocessing((1, 1), (0.5,) * 3, (0.5,) * 3, **value)
    return dict(value)


def args(value: object) -> dict[str, Any]:
    """Keyword arguments as they come back from JSON, with lists for tuples."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise SettingError("args", f"must be keyword arguments by their names, not {value!r}.")
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SettingError("args", f"must be plain JSON: {error}.") from None


def sha256(value: object) -> dict[str, str]:
    """Paths -> SHA-256 in lower case."""
    if not isinstance(value, Mapping) or not all(isinstance(file, str) for file in value):
        raise SettingError("sha256", f"must be paths with their SHA-256, not {value!r}.")
    for file, digest in value.items():
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise SettingError("sha256", f"of {file} must be 64 hexadecimal digits, not {digest!r}.")
    return {file: digest.lower() for file, digest in value.items()}


def recorded_hashes(recipe: Recipe | CascadeRecipe) -> dict[str, str]:
    """Path -> SHA-256 of the recipe's weights files for which one is recorded."""
    return {
        file: known
        for method in recipe
        for setting, file in method.paths().items()
        if (known := getattr(method, method.files[setting])) is not None
    }


def with_hashes(recipe: Recipe | CascadeRecipe, known: Mapping[str, str]) -> Recipe | CascadeRecipe:
    """The same recipe with the SHA-256 in `known` (path -> SHA-256) recorded for its weights."""

    def hashed(method: Any) -> Any:
        digests = {method.files[setting]: known[file] for setting, file in method.paths().items() if file in known}
        return replace(method, **digests) if digests else method

    def single(plain: Recipe) -> Recipe:
        return replace(plain, methods=tuple(map(hashed, plain)))

    return recipe.each(single) if isinstance(recipe, CascadeRecipe) else single(recipe)


def with_proposal_weights(recipe: Recipe | CascadeRecipe, file: str) -> Recipe | CascadeRecipe:
    """The recipe with `file` as the weights of its proposals. Raises `RecipeError` if it uses no proposal."""

    def has_proposal(method: Any) -> bool:
        return isinstance(method, PaPr) and method.needs_proposal

    def with_file(single: Recipe) -> Recipe:
        changed = {"proposal_weights": file, "proposal_sha256": None}
        return replace(
            single, methods=tuple(replace(method, **changed) if has_proposal(method) else method for method in single)
        )

    if not any(map(has_proposal, recipe)):
        raise RecipeError(f'The proposal\'s weights cannot be used: "{recipe}" has no proposal.')
    return recipe.each(with_file) if isinstance(recipe, CascadeRecipe) else with_file(recipe)


def check_files(files: Sequence[str]) -> None:
    """Raise `InputError` for the first file that does not exist."""
    for file in files:
        if not Path(file).is_file():
            raise InputError(f"There is no weights file {file}.")
