"""A folder with the weights of a recipe, which can be moved and opened anywhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from safetensors.torch import save_file
from torch import nn

from .errors import RecipeError
from .methods import METHODS, BaseMethod
from .methods.weights import part_state

RECIPE = "recipe.json"
"""File name of the recipe; the weights are in the same folder."""
STORED = re.compile(r"(\w+)-[0-9a-f]{16}\.safetensors")
"""File names of weights: the method's name and the beginning of the file's SHA-256."""


def store(methods: Sequence[BaseMethod], parts: Mapping[str, nn.Module], folder: Path) -> tuple[BaseMethod, ...]:
    """Write the weights of all methods into `folder`: from `parts`, by the method's index, or else from their files.

    Returns:
        The methods with the paths and SHA-256 of the files written.

    Raises:
        RecipeError: a method lacks weights or a setting for them, or `parts` has an index that no method has.
        InputError: weights do not exist, or their SHA-256 is not the recorded one.
    """
    numbers = [str(index) for index in range(len(methods))]
    if unknown := [number for number in parts if number not in numbers]:
        raise RecipeError(
            f"parts has learned layers of method {unknown[0]!r}, and the recipe has {len(methods)} methods, counted "
            "from 0: give fast.parts of a model that was sieved with this recipe."
        )
    return tuple(_stored(method, parts.get(number), folder) for number, method in zip(numbers, methods, strict=True))


def _stored(method: BaseMethod, module: nn.Module | None, folder: Path) -> BaseMethod:
    trained = {} if module is None else part_state(method, module)
    if trained and "weights" not in method.files:
        raise RecipeError(
            f"{method.name} has learned layers but no setting `weights` for the path of their file: see `files` in "
            "docs/adding.md."
        )
    changed: dict[str, Any] = {}
    for setting, digest in method.files.items():
        source = method.paths().get(setting)
        if setting == "weights" and not trained and source is None:
            raise RecipeError(
                f"{method.name} names no weights: give those of a sieved model, "
                "fast.recipe.save_pretrained(folder, parts=fast.parts), or name their file, weights=FILE."
            )
        draft = folder / f"{method.name}.safetensors"
        if setting == "weights" and trained:
            save_file(trained, draft)
        elif source is not None:
            state_dict = method.read(setting)  # raises if the file is missing, cannot be read, or has changed
            if source.endswith(".safetensors"):
                shutil.copyfile(source, draft)
            else:
                save_file({name: value.contiguous().clone() for name, value in state_dict.items()}, draft)
        else:
            continue
        changed[digest] = _sha256(draft)
        changed[setting] = str(draft.replace(folder / f"{method.name}-{changed[digest][:16]}.safetensors"))
    return replace(method, **changed)


def check_stored(method: BaseMethod, folder: Path) -> None:
    """Check that a method's weights are in the recipe's folder and match the recorded SHA-256.

    Raises:
        RecipeError: they are in another folder, in another format, or without a SHA-256.
        InputError: a file does not exist, or has another SHA-256.
    """
    from .zoo.models import check_sha256

    for setting, name in method.paths().items():
        known = getattr(method, method.files[setting])
        if PureWindowsPath(name).name != name or not name.endswith(".safetensors") or known is None:
            raise RecipeError(
                f"{folder / RECIPE} was not written by save_pretrained: it names {setting}={name!r}"
                + (" without its SHA-256" if known is None else ", which is no safetensors file in its own folder")
                + ". Read it by Recipe.load if you trust it."
            )
        check_sha256(folder / name, known)


def weights_in(folder: Path) -> Iterator[Path]:
    """The weights files in a folder that `store` wrote, now or earlier."""
    for path in sorted(folder.iterdir()):
        match = STORED.fullmatch(path.name)
        if match and match[1] in METHODS and path.is_file():
            yield path


def _sha256(path: Path) -> str:
    from .zoo import file_sha256

    return file_sha256(path)
