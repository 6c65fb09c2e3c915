"""Recipe: a sequence of methods, written as text or as JSON, and kept in files that can be moved with their weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from torch import nn

from ._files import check_place, draft, joined_path, made_folder, relative_path, same_file
from ._recipe_folder import RECIPE, check_stored, store, weights_in
from ._recipe_text import method_text, read_text
from .errors import RecipeError, nearest
from .methods import BaseMethod
from .methods.base import make

VERSION = 2
"""Of recipe files. In version 1 paths were relative to the working directory, and only proposals had a hash."""
LARGE = 2**20
"""Bytes; larger JSON files are not looked at for whether they are recipes."""


@dataclass(frozen=True)
class Recipe:
    """A sequence of methods: what `sieve` applies, a command line names, a file keeps and a result row repeats.

    Text is keyword calls joined by `+`, `papr(keep=0.8) + tome(r=8, layers=6:12)`; arguments are literals, bare names
    or slices, always named. JSON says the same with every setting written out.

    Paths of weights are relative to the working directory in text, and in a file relative to that file: a folder with a
    recipe and its weights can be moved. JSON keeps the SHA-256 of weights too, and others are refused by `sieve`.
    """

    methods: tuple[BaseMethod, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe | BaseMethod | str | os.PathLike[str]) -> Recipe:
        """A recipe from whatever the user wrote: text, the path of a recipe file, a method, or a recipe."""
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, BaseMethod):
            return cls((recipe,))
        if isinstance(recipe, str | os.PathLike):
            return cls.load(recipe)
        raise RecipeError(
            f"A recipe is text, a file, a method, a sum of methods or a Recipe, not {type(recipe).__name__}; "
            'for example "papr(keep=0.5)" or PaPr(keep=0.5).'
        )

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read recipe text. The empty text is the empty recipe: the host as it is."""
        return cls(tuple(read_text(text)))

    @classmethod
    def from_json(cls, text: str, folder: str | os.PathLike[str] | None = None) -> Recipe:
        """Read what `to_json` wrote. Settings that are left out keep their defaults.

        Args:
            text: JSON.
            folder: where the paths in it begin; None is the working directory.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"The recipe file is not JSON: {error}.") from None
        if not isinstance(data, dict) or "tokensieve" not in data or not isinstance(data.get("methods"), list):
            raise RecipeError('A recipe file is an object like {"tokensieve": 2, "methods": [{"name": "papr", ...}]}.')
        if data["tokensieve"] not in (1, VERSION):
            raise RecipeError(
                f"The recipe file has version {data['tokensieve']!r}; this release reads versions 1 and {VERSION}. "
                "Write it again with the release that made it, as text, or update tokensieve."
            )
        for key in data:
            if key not in ("tokensieve", "methods", "text"):
                raise RecipeError(f"A recipe file has no entry {key!r}{nearest(key, ('methods', 'text'))}.")
        recipe = cls(tuple(_from_entry(entry) for entry in data["methods"]))
        if folder is None:
            return recipe
        return recipe.with_paths(partial(_of_version_1 if data["tokensieve"] == 1 else joined_path, folder=folder))

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Recipe:
        """A recipe from text, or from a file that holds text or JSON. Paths in a file begin in its folder.

        Weights are looked at by `sieve`, which refuses those whose SHA-256 is not the one that the file records.

        Raises:
            RecipeError: the file or the text cannot be read.
        """
        if isinstance(source, str) and not names_a_file(source):
            return cls.parse(source)
        path, text = Path(source), read_file(source)
        if text.lstrip().startswith("{"):
            return cls.from_json(text, path.parent)
        return cls.parse(text).with_paths(partial(joined_path, folder=path.parent))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a recipe file, JSON, whole or not at all; `load`, `sieve` and the command line's `--recipe` read it.

        Weights stay where they are. The file names them relative to its own folder, with ".." where they lie elsewhere
        and in full on another drive, by "/" on every system; and it records their SHA-256.

        Returns:
            The path.

        Raises:
            RecipeError: a setting is a module or a tensor.
            InputError: weights are not there, or `path` cannot be written.
        """
        path = check_place(path)
        text = self.to_json(path.parent)
        with draft(path) as file:
            file.write_text(text + "\n", encoding="utf-8")
        return path

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, parts: nn.ModuleDict | Mapping[str, nn.Module] | None = None
    ) -> Path:
        """Write a folder that holds the recipe and all weights that it names: `recipe.json` and safetensors files.

        The folder alone, on another machine, is opened by `from_pretrained`. Weights are copied, or stored anew where
        their file is no safetensors file, and named by their hash; so a recipe that the folder held before stays
        whole until `recipe.json` is replaced, last. Then weights that `save_pretrained` wrote there and no recipe
        in the folder names are removed. Models named without a file stay names.

        Args:
            folder: made if it is not there and the one above it is.
            parts: `fast.parts` of a model sieved with this recipe: learned layers by the method's number. They are
                stored as they are now, trained or not, in the place of the files that the recipe names.

        Returns:
            The folder.

        Raises:
            RecipeError: a setting is a module or a tensor, a method lacks its weights, or `parts` are not its layers.
            InputError: weights are not there or not those that are recorded, or the folder cannot be written.
        """
        with made_folder(folder) as folder, draft(folder / RECIPE) as file:
            methods = store(self.methods, {} if parts is None else dict(parts.items()), file.parent)
            file.write_text(replace(self, methods=methods).to_json(file.parent) + "\n", encoding="utf-8")
        for weights in weights_in(folder):
            if not recipes_with(weights):
                weights.unlink()
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Recipe:
        """The recipe in a folder that `save_pretrained` wrote, with the paths of its weights there; runs no code.

        Raises:
            RecipeError: the folder holds no recipe, one of an unknown version, or one that names weights elsewhere.
            InputError: weights are not there, or their SHA-256 is not the recorded one.
        """
        folder = Path(folder)
        recipe = cls.from_json(read_file(folder / RECIPE))
        for method in recipe:
            check_stored(method, folder)
        return recipe.with_paths(partial(joined_path, folder=folder))

    def to_json(self, folder: str | os.PathLike[str] | None = None) -> str:
        """Every setting, with a version and the SHA-256 of weights; `from_json` gives back an equal recipe.

        Args:
            folder: where the paths in it shall begin; None leaves them as they are, for the working directory.

        Raises:
            RecipeError: a setting is a module or a tensor.
            InputError: weights are not there.
        """
        recorded = self.with_hashes().relative_to(folder)
        entries = [
            {"name": method.name, **{key: _jsonable(method, key, value) for key, value in method.settings().items()}}
            for method in recorded
        ]
        text = json.dumps({"tokensieve": VERSION, "text": str(recorded), "methods": entries}, indent=2)
        # A line for each list of numbers. What a string holds is never broken into lines.
        return re.sub(r"\[\n[\d\s,.-]+\]", lambda numbers: " ".join(numbers[0].split()), text)

    def with_hashes(self) -> Recipe:
        """The same recipe, bound to the weights as they are now: with their SHA-256, which `sieve` checks.

        Raises:
            InputError: weights are not there.
        """
        return replace(self, methods=tuple(method.with_hashes() for method in self.methods))

    def relative_to(self, folder: str | os.PathLike[str] | None) -> Recipe:
        """The same recipe as a file in `folder` says it: paths from there, with "/". None leaves where they begin."""

        def spell(path: str) -> str:
            return (path if folder is None else relative_path(path, folder)).replace(os.sep, "/")

        return self.with_paths(spell)

    def paths(self) -> list[str]:
        """The files of weights that the methods name."""
        return [path for method in self.methods for path in method.paths().values()]

    def with_paths(self, change: Callable[[str], str]) -> Recipe:
        """The same recipe with `change` of every path of weights."""

        def changed(method: BaseMethod) -> BaseMethod:
            return replace(method, **{setting: change(path) for setting, path in method.paths().items()})

        return replace(self, methods=tuple(changed(method) for method in self.methods))

    def __str__(self) -> str:
        return " + ".join(method_text(method) for method in self.methods)

    def __add__(self, other: Recipe | BaseMethod | str) -> Recipe:
        return Recipe(self.methods + Recipe.of(other).methods)

    def __radd__(self, other: BaseMethod | str) -> Recipe:
        return Recipe.of(other) + self

    def __iter__(self) -> Iterator[BaseMethod]:
        return iter(self.methods)

    def __len__(self) -> int:
        return len(self.methods)


def _jsonable(method: BaseMethod, setting: str, value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    try:
        json.dumps(value)
    except TypeError:
        raise RecipeError(
            f"{method.name}: {setting} is a {type(value).__name__}, which a recipe file cannot hold; "
            "name a model and its weights file instead."
        ) from None
    return value


def _from_entry(entry: Any) -> BaseMethod:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise RecipeError('Each method of a recipe file is an object with a "name".')
    return make(entry["name"], {key: _from_json_value(value) for key, value in entry.items() if key != "name"})


def _from_json_value(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"slice"}:
        return slice(*value["slice"])
    if isinstance(value, list):
        return tuple(_from_json_value(part) for part in value)
    return value


def read_file(path: str | os.PathLike[str]) -> str:
    """The text of a recipe file. Raises `RecipeError`."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"The recipe file {os.fspath(path)!r} cannot be read: {why}.") from None


def names_a_file(text: str) -> bool:
    """Text of a recipe ends in a bracket; without any it may be a file of whatever name."""
    return text.endswith((".json", ".recipe", ".txt")) or ("(" not in text and os.path.isfile(text))


def _of_version_1(path: str, folder: str | os.PathLike[str]) -> str:
    """The path that `path` means in a file of version 1 in `folder`.

    It was meant relative to a working directory that is not known; but commands wrote weights beside the recipe.
    """
    in_folder, as_recorded = joined_path(PureWindowsPath(path).name, folder), joined_path(path, folder)
    candidates = [as_recorded, in_folder] if os.path.isabs(path) else [as_recorded, path, in_folder]
    existing = [candidate for candidate in candidates if os.path.isfile(candidate)]
    if (
        existing
        and not os.path.isabs(path)
        and (others := [other for other in existing if not same_file(other, existing[0])])
    ):
        raise RecipeError(
            f"A recipe file in {os.fspath(folder)} was written by an older release and names {path}, which may be "
            f"{existing[0]} or {others[0]}: write the path into it in full."
        )
    return existing[0] if existing else as_recorded


def recipes_with(weights: Path) -> list[Path]:
    """The recipe files in the folder of a file of weights that name it, cascades too: what would break without it."""
    from .cascade_recipe import read_recipe

    recipes = []
    for path in sorted(weights.parent.iterdir()):
        with suppress(OSError, ValueError):  # what cannot be read as a recipe is none; RecipeError is a ValueError
            if path.suffix.lower() == ".json" and path.stat().st_size <= LARGE:
                recipe = read_recipe(path)
                if any(same_file(weights, file) for file in recipe.paths()):
                    recipes.append(path)
    return recipes
