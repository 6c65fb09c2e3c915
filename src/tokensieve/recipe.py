"""Recipe: a sequence of methods, as text or JSON, and the files it is saved in, with or without its weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from torch import nn

from ._files import check_place, draft, joined_path, made_folder, relative_path, same_file
from ._recipe_folder import RECIPE, check_stored, store, weights_in
from ._recipe_text import method_text, read_text
from .errors import RecipeError, nearest
from .methods import BaseMethod
from .methods.base import make

if TYPE_CHECKING:
    from .cascade_recipe import CascadeRecipe

VERSION = 2
"""Version of recipe files. In version 1 paths were relative to the working directory, and only proposals had a hash."""
LARGE = 2**20
"""Bytes; larger JSON files are not checked for being recipes."""


@dataclass(frozen=True)
class Recipe:
    """A sequence of methods for `sieve` to apply. It can be written as text, on a command line, and as JSON, in a file.

    Text is keyword calls joined by `+`, `papr(keep=0.8) + tome(r=8, layers=6:12)`; arguments are literals, bare names
    or slices, always named. JSON holds the same with every setting written out.

    Paths of weights are relative to the working directory in text, and to the file's folder in a file: a folder with a
    recipe and its weights can be moved. JSON also records the SHA-256 of weights; `sieve` refuses other weights.
    """

    methods: tuple[BaseMethod, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe | BaseMethod | str | os.PathLike[str]) -> Recipe:
        """A recipe from text, the path of a recipe file, a method, or a recipe."""
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
        """Read recipe text. The empty text is the empty recipe, which leaves the host as it is."""
        return cls(tuple(read_text(text)))

    @classmethod
    def from_json(cls, text: str, folder: str | os.PathLike[str] | None = None) -> Recipe:
        """Read the JSON of `to_json`. Missing settings have their defaults.

        Args:
            text: JSON.
            folder: the folder that paths in the JSON are relative to; None is the working directory.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"The recipe file is not JSON: {error}.") from None
        if not isinstance(data, dict) or "tokensieve" not in data or not isinstance(data.get("methods"), list):
            cascade = isinstance(data, dict) and "recipes" in data
            raise RecipeError(
                'A recipe file is an object like {"tokensieve": 2, "methods": [{"name": "papr", ...}]}.'
                + (" This one is a cascade: read it by CascadeRecipe." if cascade else "")
            )
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
        """A recipe from text, or from a file that holds text or JSON. Paths in a file are relative to its folder.

        Weights are not read here; `sieve` refuses those whose SHA-256 is not the recorded one.

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
        """Write a recipe file in JSON, completely or not at all; `load`, `sieve` and `--recipe` read it.

        Weights stay where they are. The file holds their SHA-256 and their paths relative to its own folder, with ".."
        if they are elsewhere, absolute if they are on another drive, and with "/" on every system.

        Returns:
            The path.

        Raises:
            RecipeError: a setting is a module or a tensor.
            InputError: a weights file does not exist, or `path` cannot be written.
        """
        path = check_place(path)
        text = self.to_json(path.parent)
        with draft(path) as file:
            file.write_text(text + "\n", encoding="utf-8")
        return path

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, parts: nn.ModuleDict | Mapping[str, nn.Module] | None = None
    ) -> Path:
        """Write a folder with the recipe and all its weights: `recipe.json` and safetensors files.

        `from_pretrained` opens the folder, also on another machine. Weights are copied, or converted if their file is
        not in the safetensors format, and named by their hash. `recipe.json` is replaced last, so an earlier recipe in
        the folder stays valid until then. Afterwards, weights that `save_pretrained` wrote there and that no recipe in
        the folder names are removed. Models named without a file remain names.

        Args:
            folder: made if it does not exist; its parent must exist.
            parts: `fast.parts` of a model sieved with this recipe: learned layers by the method's index. They are
                saved as they are now, trained or not, instead of the files that the recipe names.

        Returns:
            The folder.

        Raises:
            RecipeError: a setting is a module or a tensor, a method lacks its weights, or `parts` are not its layers.
            InputError: weights do not exist or have another SHA-256, or the folder cannot be written.
        """
        return write_folder(folder, lambda draft_folder: self.stored_in(draft_folder, parts))

    def stored_in(self, folder: Path, parts: nn.ModuleDict | Mapping[str, nn.Module] | None) -> Recipe:
        """The same recipe with its weights copied into `folder`; see `save_pretrained`."""
        return replace(self, methods=store(self.methods, {} if parts is None else dict(parts.items()), folder))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Recipe:
        """Read the recipe in a folder of `save_pretrained`, with the paths of its weights there; runs no code.

        Raises:
            RecipeError: the folder has no recipe, one of an unknown version, or one with weights outside the folder.
            InputError: weights do not exist, or their SHA-256 is not the recorded one.
        """
        folder = Path(folder)
        return cls.from_json(read_file(folder / RECIPE)).opened_in(folder)

    def opened_in(self, folder: Path) -> Recipe:
        """The same recipe with the paths of its weights in `folder`, which are checked; see `from_pretrained`."""
        for method in self:
            check_stored(method, folder)
        return self.with_paths(partial(joined_path, folder=folder))

    def to_json(self, folder: str | os.PathLike[str] | None = None) -> str:
        """JSON with every setting, a version and the SHA-256 of weights; `from_json` returns an equal recipe.

        Args:
            folder: paths are written relative to this folder; None leaves them as they are, relative to the working
                directory.

        Raises:
            RecipeError: a setting is a module or a tensor.
            InputError: a weights file does not exist.
        """
        recorded = self.with_hashes().relative_to(folder)
        entries = [
            {"name": method.name, **{key: _jsonable(method, key, value) for key, value in method.settings().items()}}
            for method in recorded
        ]
        text = json.dumps({"tokensieve": VERSION, "text": str(recorded), "methods": entries}, indent=2)
        # Put each list of numbers on one line. The pattern cannot match inside a string, which holds no raw newline.
        return re.sub(r"\[\n[\d\s,.-]+\]", lambda numbers: " ".join(numbers[0].split()), text)

    def with_hashes(self) -> Recipe:
        """The same recipe with the SHA-256 of its weights, which `sieve` then checks.

        Raises:
            InputError: a weights file does not exist.
        """
        return replace(self, methods=tuple(method.with_hashes() for method in self.methods))

    def relative_to(self, folder: str | os.PathLike[str] | None) -> Recipe:
        """The same recipe with paths relative to `folder`, written with "/"; None leaves them as they are."""

        def spell(path: str) -> str:
            return (path if folder is None else relative_path(path, folder)).replace(os.sep, "/")

        return self.with_paths(spell)

    def paths(self) -> list[str]:
        """The files of weights that the methods name."""
        return [path for method in self.methods for path in method.paths().values()]

    def with_paths(self, change: Callable[[str], str]) -> Recipe:
        """The same recipe with `change` applied to every path of weights."""

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
    """Whether text is the path of a file: by its ending, or because it has no bracket and such a file exists."""
    return text.endswith((".json", ".recipe", ".txt")) or ("(" not in text and os.path.isfile(text))


def _of_version_1(path: str, folder: str | os.PathLike[str]) -> str:
    """The path of the weights file named `path` in a recipe file of version 1 in `folder`.

    It is relative to a working directory that is not known; but commands wrote weights beside the recipe.
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


def write_folder(folder: str | os.PathLike[str], stored_in: Callable[[Path], Recipe | CascadeRecipe]) -> Path:
    """Write `recipe.json`, from what `stored_in` returns for the folder it copies weights into; then remove weights
    that no recipe in the folder names. The folder is made if it does not exist."""
    with made_folder(folder) as folder, draft(folder / RECIPE) as file:
        file.write_text(stored_in(file.parent).to_json(file.parent) + "\n", encoding="utf-8")
    for weights in weights_in(folder):
        if not recipes_with(weights):
            weights.unlink()
    return folder


def recipes_with(weights: Path) -> list[Path]:
    """The recipe and cascade files in the folder of a weights file that name it, and so need it."""
    from .cascade_recipe import read_recipe

    recipes = []
    for path in sorted(weights.parent.iterdir()):
        with suppress(OSError, ValueError):  # not a recipe file; RecipeError is a ValueError
            if path.suffix.lower() == ".json" and path.stat().st_size <= LARGE:
                recipe = read_recipe(path)
                if any(same_file(weights, file) for file in recipe.paths()):
                    recipes.append(path)
    return recipes
