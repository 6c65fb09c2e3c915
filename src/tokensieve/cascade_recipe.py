"""CascadeRecipe: several recipes of one host, from cheap to dense, and the thresholds that decide when to go on."""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ._files import check_place, draft, joined_path
from ._recipe_folder import RECIPE
from .errors import RecipeError, nearest
from .methods import BaseMethod
from .recipe import Recipe, names_a_file, read_file, write_folder

VERSION = 1
"""Version of the JSON that `CascadeRecipe.to_json` writes."""
VERSION_KEY = "tokensieve_cascade"
"""Key of the version in the JSON; it tells a cascade from a recipe."""
NAME = "cascade"
SCORES = ("margin", "probability", "entropy")
"""Measures of how sure an answer is; see `cascades.scores`."""


@dataclass(frozen=True)
class CascadeRecipe:
    """Recipes from cheap to dense; an image goes on to the next one while the answer is not confident enough.

    As text it is one call, `cascade(recipes=("papr(keep=0.5)", ""), thresholds=(0.31,), score="margin")`; as JSON an
    object with the JSON of each recipe. Both contain the results of a calibration.

    Args:
        recipes: two or more, in the order they are run; "" is the dense model. Text, methods or recipes.
        thresholds: one for each recipe but the last, 0 to 1: an image whose answer scores lower goes to the next
            recipe. At 0 none goes on; at 1 all do, and that recipe is not run.
        score: confidence of an answer, 0 to 1: "margin", the largest probability minus the second; "probability",
            the largest; "entropy", 1 minus the entropy divided by its maximum. Or a function from the host's output
            to logits (B, K), whose margin is the score; a cascade with a function cannot be saved.
        agree, confidence: the agreement with the dense model that the thresholds were calibrated for, and how certain
            it is; None if they were not calibrated.
        images: number of images in the calibration.
        shares: the share of these images that each recipe read; the first is 1.

    Raises:
        RecipeError: fewer than two recipes, a wrong number of thresholds, an unknown score.
    """

    recipes: tuple[Recipe, ...]
    thresholds: tuple[float, ...]
    score: str | Callable[[Any], Any] = "margin"
    agree: float | None = None
    confidence: float | None = None
    images: int | None = None
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        recipes: Any = self.recipes
        if isinstance(recipes, str | Recipe | BaseMethod) or not isinstance(recipes, Sequence) or len(recipes) < 2:
            raise RecipeError(
                'A cascade has two recipes or more, from cheap to dense, such as recipes=("papr(keep=0.5)", "").'
            )
        values: dict[str, Any] = {"recipes": tuple(map(Recipe.of, recipes))}
        values["thresholds"] = _numbers("thresholds", self.thresholds, len(recipes) - 1)
        if self.shares is not None:
            values["shares"] = _numbers("shares", self.shares, len(recipes))
        check_score(self.score)
        for name in ("agree", "confidence"):
            value = getattr(self, name)
            if value is not None:
                check_share(name, value)
        if self.images is not None and (type(self.images) is not int or self.images < 1):
            raise RecipeError(
                f"images is the number of images that a cascade was calibrated on, an integer, not {self.images!r}."
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, text: str) -> CascadeRecipe:
        """Read the text of a cascade. Raises `RecipeError`."""
        try:
            call = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise _unreadable(text, error.msg) from None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != NAME:
            raise _unreadable(text, "it is not one call of cascade")
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise _unreadable(text, "every argument must be named")
        try:
            settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (ValueError, SyntaxError):
            raise _unreadable(text, "recipes must be in quotes, and the rest numbers") from None
        recipes = settings.get("recipes")
        if isinstance(recipes, tuple | list) and all(isinstance(recipe, str) for recipe in recipes):
            settings["recipes"] = tuple(map(Recipe.parse, recipes))  # always text, never the path of a file
        return cls._of(settings)

    @classmethod
    def from_json(cls, text: str, folder: str | os.PathLike[str] | None = None) -> CascadeRecipe:
        """Read the JSON of `to_json`; its paths are relative to `folder`, or to the working directory.

        Raises:
            RecipeError: the text is not the JSON of a cascade, or has another version.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"The cascade's file is not JSON: {error}.") from None
        if not isinstance(data, dict) or not isinstance(data.get("recipes"), list):
            raise RecipeError(f'A cascade\'s file is an object like {{"{VERSION_KEY}": 1, "recipes": [...], ...}}.')
        if data.get(VERSION_KEY) != VERSION:
            raise RecipeError(
                f"The cascade's file has version {data.get(VERSION_KEY)!r}; this release reads version {VERSION}: "
                "update tokensieve, or write it again with this release."
            )
        settings = {key: value for key, value in data.items() if key not in (VERSION_KEY, "text")}
        settings["recipes"] = tuple(Recipe.from_json(json.dumps(entry), folder) for entry in settings["recipes"])
        return cls._of(settings)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> CascadeRecipe:
        """A cascade from text, or from a file that holds text or JSON; paths in a file are relative to its folder."""
        recipe = read_recipe(source)
        if not isinstance(recipe, CascadeRecipe):
            raise RecipeError(f"{os.fspath(source)} is a single recipe, not a cascade.")
        return recipe

    @classmethod
    def _of(cls, settings: Mapping[str, Any]) -> CascadeRecipe:
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise RecipeError(f"A cascade has no setting {name!r}{nearest(name, known)}: {', '.join(known)}.")
        for name in ("recipes", "thresholds"):
            if name not in settings:
                raise RecipeError(f"A cascade needs {name}=; its settings: {', '.join(known)}.")
        return cls(**settings)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file, completely or not at all; `sieve`, `load` and the command line's `--recipe` read it. Paths
        and errors are as for `Recipe.save`."""
        path = check_place(path)
        text = self.to_json(path.parent)
        with draft(path) as file:
            file.write_text(text + "\n", encoding="utf-8")
        return path

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        parts: Sequence[nn.ModuleDict | Mapping[str, nn.Module] | None] | None = None,
    ) -> Path:
        """Write a folder with the cascade and all weights of its recipes; as `Recipe.save_pretrained`.

        Args:
            folder: made if it does not exist; its parent must exist.
            parts: learned layers for each recipe, `[member.parts for member in fast.members]`, saved as they are now
                instead of the files that the recipes name.

        Raises:
            RecipeError: as `Recipe.save_pretrained`; also if the score is a function, or `parts` has another length.
            InputError: as `Recipe.save_pretrained`.
        """
        layers = [None] * len(self.recipes) if parts is None else list(parts)
        if len(layers) != len(self.recipes):
            raise RecipeError(
                f"parts has learned layers for {len(layers)} recipes, and the cascade has {len(self.recipes)}: give "
                "[member.parts for member in fast.members]."
            )

        def stored_in(draft_folder: Path) -> CascadeRecipe:
            pairs = zip(self.recipes, layers, strict=True)
            return replace(self, recipes=tuple(recipe.stored_in(draft_folder, layer) for recipe, layer in pairs))

        return write_folder(folder, stored_in)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> CascadeRecipe:
        """Read the cascade in a folder of `save_pretrained`; runs no code. Errors as for `Recipe.from_pretrained`."""
        found = read_folder(folder)
        if not isinstance(found, CascadeRecipe):
            raise RecipeError(f"{os.fspath(folder)} has a single recipe, not a cascade: use Recipe.from_pretrained.")
        return found

    def to_json(self, folder: str | os.PathLike[str] | None = None) -> str:
        """JSON with every setting of every recipe, a version and the SHA-256 of weights; as `Recipe.to_json`."""
        if callable(self.score):
            raise RecipeError("A cascade whose score is a function cannot be written to a file: name a score.")
        recipes = [json.loads(recipe.to_json(folder)) for recipe in self.recipes]
        settings = {name: value for name, value in self._settings().items() if name != "recipes"}
        text = str(self.with_hashes().relative_to(folder))
        return json.dumps({VERSION_KEY: VERSION, "text": text, "recipes": recipes, **settings}, indent=2)

    def with_hashes(self) -> CascadeRecipe:
        """The same cascade with the SHA-256 of its weights; as `Recipe.with_hashes`."""
        return self.each(Recipe.with_hashes)

    def relative_to(self, folder: str | os.PathLike[str] | None) -> CascadeRecipe:
        """The same cascade with paths relative to `folder`; as `Recipe.relative_to`."""
        return self.each(lambda recipe: recipe.relative_to(folder))

    def paths(self) -> list[str]:
        """The files of weights that its recipes name."""
        return [path for recipe in self.recipes for path in recipe.paths()]

    def with_paths(self, change: Callable[[str], str]) -> CascadeRecipe:
        """The same cascade with `change` applied to every path of weights."""
        return self.each(lambda recipe: recipe.with_paths(change))

    def each(self, change: Callable[[Recipe], Recipe]) -> CascadeRecipe:
        """The same cascade with `change` applied to every recipe."""
        return replace(self, recipes=tuple(map(change, self.recipes)))

    def __iter__(self) -> Iterator[BaseMethod]:
        """The methods of all recipes, in their order."""
        return (method for recipe in self.recipes for method in recipe)

    def __str__(self) -> str:
        settings = self._settings() | {"recipes": tuple(map(str, self.recipes))}
        # json.dumps gives double quotes: the text of a recipe has single ones only.
        recipes = ", ".join(json.dumps(recipe, ensure_ascii=False) for recipe in settings.pop("recipes"))
        arguments = [f"recipes=({recipes})", *(f"{name}={_spell(value)}" for name, value in settings.items())]
        return f"{NAME}({', '.join(arguments)})"

    def _settings(self) -> dict[str, Any]:
        """All settings that are not None."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


def read_recipe(source: Recipe | CascadeRecipe | BaseMethod | str | os.PathLike[str]) -> Recipe | CascadeRecipe:
    """A recipe or a cascade from text, a file, a method, a `Recipe` or a `CascadeRecipe`."""
    if isinstance(source, CascadeRecipe):
        return source
    if not isinstance(source, str | os.PathLike):
        return Recipe.of(source)
    if isinstance(source, str) and not names_a_file(source):
        return CascadeRecipe.parse(source) if is_cascade(source) else Recipe.parse(source)
    text, folder = read_file(source), Path(source).parent
    if not is_cascade(text):
        return Recipe.load(source)
    if text.lstrip().startswith("{"):
        return CascadeRecipe.from_json(text, folder)
    return CascadeRecipe.parse(text).with_paths(partial(joined_path, folder=folder))


def parse_recipe(text: str) -> Recipe | CascadeRecipe:
    """Parse the text of a recipe or of a cascade; never the path of a file."""
    return CascadeRecipe.parse(text) if is_cascade(text) else Recipe.parse(text)


def recipe_from_json(text: str) -> Recipe | CascadeRecipe:
    """A recipe or a cascade from its JSON, with paths as they are written."""
    return CascadeRecipe.from_json(text) if is_cascade(text) else Recipe.from_json(text)


def read_folder(folder: str | os.PathLike[str]) -> Recipe | CascadeRecipe:
    """The recipe or cascade in a folder of `save_pretrained`; errors are as for `Recipe.from_pretrained`."""
    folder = Path(folder)
    text = read_file(folder / RECIPE)
    if not is_cascade(text):
        return Recipe.from_json(text).opened_in(folder)
    return CascadeRecipe.from_json(text).each(lambda recipe: recipe.opened_in(folder))


def is_cascade(text: str) -> bool:
    """Whether text or JSON is meant to be a cascade, valid or not."""
    text = text.lstrip()
    return text.startswith(f"{NAME}(") or (text.startswith("{") and f'"{VERSION_KEY}"' in text)


def check_score(score: Any) -> None:
    """Raise `RecipeError` for a name that is not in `SCORES`."""
    if not callable(score) and score not in SCORES:
        raise RecipeError(f"score is one of {', '.join(SCORES)}, or a function, not {score!r}.")


def check_share(name: str, value: Any) -> None:
    """Raise `RecipeError` for a value that is not a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise RecipeError(f"{name} is a share between 0 and 1, such as 0.98, not {value!r}.")


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    fits = len(numbers) == count and all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    if not fits or not all(math.isfinite(x) and 0 <= x <= 1 for x in numbers):
        raise RecipeError(f"{name} of this cascade must be {count} numbers from 0 to 1, not {values!r}.")
    return tuple(float(x) for x in numbers)


def _spell(value: Any) -> str:
    return (
        json.dumps(value) if isinstance(value, str) else f"<{type(value).__name__}>" if callable(value) else repr(value)
    )


def _unreadable(text: str, why: str) -> RecipeError:
    return RecipeError(
        f'The cascade {text!r} cannot be read ({why}); write it as cascade(recipes=("papr(keep=0.5)", ""), '
        "thresholds=(0.3,))."
    )
