"""CascadeRecipe: several recipes of one host, from cheap to dense, and the rule by which one of them answers."""

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

from ._files import check_place, draft, joined_path
from .errors import RecipeError, nearest
from .methods import BaseMethod
from .recipe import Recipe, names_a_file, read_file

VERSION = 1
"""Version of the JSON that `CascadeRecipe.to_json` writes."""
VERSION_KEY = "tokensieve_cascade"
"""Key of the version in the JSON; it tells a cascade from a recipe."""
NAME = "cascade"
SCORES = ("margin", "probability", "entropy")
"""Measures of how sure an answer is; see `cascades.scores`."""


@dataclass(frozen=True)
class CascadeRecipe:
    """Recipes from cheap to dense; an image is read by the next one while its answer is not sure enough.

    As text it is one call, `cascade(recipes=("papr(keep=0.5)", ""), thresholds=(0.31,), score="margin")`; as JSON an
    object with the JSON of each recipe. Both contain the results of a calibration.

    Args:
        recipes: two or more, the first read first; "" is the dense model. Text, methods or recipes.
        thresholds: one for each recipe but the last, 0 to 1: an answer whose score is below is read again; 0 never
            reads again, 1 always does, and then that recipe is not run.
        score: how sure an answer is, 0 to 1: "margin", the largest probability minus the second; "probability",
            the largest; "entropy", 1 minus the entropy divided by its maximum. Or a function from what the host returns
            to logits (B, K), of which the margin is taken; such a cascade cannot be saved.
        agree, confidence: the promise that the thresholds were calibrated for; None where they were not.
        images: how many images they were calibrated on.
        shares: the share of these images that each recipe read; the first is 1.

    Raises:
        RecipeError: fewer than two recipes, thresholds that do not fit, an unknown score.
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
            raise RecipeError(f"images is how many a cascade was calibrated on, not {self.images!r}.")
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
        if call.args or any(word.arg is None for word in call.keywords):
            raise _unreadable(text, "every argument is named")
        try:
            settings = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        except (ValueError, SyntaxError):
            raise _unreadable(text, "the recipes stand in quotes, and the rest are numbers") from None
        recipes = settings.get("recipes")
        if isinstance(recipes, tuple | list) and all(isinstance(each, str) for each in recipes):
            settings["recipes"] = tuple(map(Recipe.parse, recipes))  # the text itself: never the name of a file
        return cls._of(settings)

    @classmethod
    def from_json(cls, text: str, folder: str | os.PathLike[str] | None = None) -> CascadeRecipe:
        """Read what `to_json` wrote; paths in it begin in `folder`, or in the working directory.

        Raises:
            RecipeError: it is no JSON of a cascade, or of another version.
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
        settings["recipes"] = tuple(Recipe.from_json(json.dumps(each), folder) for each in settings["recipes"])
        return cls._of(settings)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> CascadeRecipe:
        """A cascade from text, or from a file that holds text or JSON; paths in a file begin in its folder."""
        recipe = read_recipe(source)
        if not isinstance(recipe, CascadeRecipe):
            raise RecipeError(f"{os.fspath(source)} is a recipe, and no cascade of several.")
        return recipe

    @classmethod
    def _of(cls, settings: Mapping[str, Any]) -> CascadeRecipe:
        known = [each.name for each in fields(cls)]
        for name in settings:
            if name not in known:
                raise RecipeError(f"A cascade has no setting {name!r}{nearest(name, known)}: {', '.join(known)}.")
        for name in ("recipes", "thresholds"):
            if name not in settings:
                raise RecipeError(f"A cascade needs {name}=; its settings: {', '.join(known)}.")
        return cls(**settings)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file, JSON, whole or not at all; `sieve`, `load` and the command line's `--recipe` read it. Paths and
        errors as of `Recipe.save`."""
        path = check_place(path)
        text = self.to_json(path.parent)
        with draft(path) as file:
            file.write_text(text + "\n", encoding="utf-8")
        return path

    def to_json(self, folder: str | os.PathLike[str] | None = None) -> str:
        """Every setting of every recipe, with a version and the SHA-256 of weights; as `Recipe.to_json`."""
        if callable(self.score):
            raise RecipeError("A cascade whose score is a function cannot be written to a file: name a score.")
        recipes = [json.loads(recipe.to_json(folder)) for recipe in self.recipes]
        settings = {name: value for name, value in self._given().items() if name != "recipes"}
        text = str(self.with_hashes().relative_to(folder))
        return json.dumps({VERSION_KEY: VERSION, "text": text, "recipes": recipes, **settings}, indent=2)

    def with_hashes(self) -> CascadeRecipe:
        """The same, bound to the weights as they are now; as `Recipe.with_hashes`."""
        return self.each(Recipe.with_hashes)

    def relative_to(self, folder: str | os.PathLike[str] | None) -> CascadeRecipe:
        """The same as a file in `folder` says it; as `Recipe.relative_to`."""
        return self.each(lambda recipe: recipe.relative_to(folder))

    def paths(self) -> list[str]:
        """The files of weights that its recipes name."""
        return [path for recipe in self.recipes for path in recipe.paths()]

    def with_paths(self, change: Callable[[str], str]) -> CascadeRecipe:
        """The same with `change` of every path of weights."""
        return self.each(lambda recipe: recipe.with_paths(change))

    def each(self, change: Callable[[Recipe], Recipe]) -> CascadeRecipe:
        """The same with `change` of every recipe."""
        return replace(self, recipes=tuple(map(change, self.recipes)))

    def __iter__(self) -> Iterator[BaseMethod]:
        """The methods of all recipes, in their order."""
        return (method for recipe in self.recipes for method in recipe)

    def __str__(self) -> str:
        settings = self._given() | {"recipes": tuple(map(str, self.recipes))}
        # json.dumps gives double quotes: the text of a recipe has single ones only.
        recipes = ", ".join(json.dumps(each, ensure_ascii=False) for each in settings.pop("recipes"))
        arguments = [f"recipes=({recipes})", *(f"{name}={_spell(value)}" for name, value in settings.items())]
        return f"{NAME}({', '.join(arguments)})"

    def _given(self) -> dict[str, Any]:
        """All settings that are not None."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}


def read_recipe(source: Recipe | CascadeRecipe | BaseMethod | str | os.PathLike[str]) -> Recipe | CascadeRecipe:
    """A recipe or a cascade from whatever the user wrote: text, a file, a method, or one of the two."""
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
    """The text of a recipe or of a cascade, never the name of a file."""
    return CascadeRecipe.parse(text) if is_cascade(text) else Recipe.parse(text)


def is_cascade(text: str) -> bool:
    """Whether text or JSON is of a cascade, well written or not."""
    text = text.lstrip()
    return text.startswith(f"{NAME}(") or (text.startswith("{") and f'"{VERSION_KEY}"' in text)


def check_score(score: Any) -> None:
    """Raises `RecipeError` for a name that is none of `SCORES`."""
    if not callable(score) and score not in SCORES:
        raise RecipeError(f"score is {', '.join(SCORES)}, one of them, or a function, not {score!r}.")


def check_share(name: str, value: Any) -> None:
    """Raises `RecipeError` for what is no number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise RecipeError(f"{name} is a share between 0 and 1, such as 0.98, not {value!r}.")


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    given = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    fits = len(given) == count and all(isinstance(each, int | float) and not isinstance(each, bool) for each in given)
    if not fits or not all(math.isfinite(each) and 0 <= each <= 1 for each in given):
        raise RecipeError(f"{name} of a cascade here are {count} numbers from 0 to 1, not {values!r}.")
    return tuple(float(each) for each in given)


def _spell(value: Any) -> str:
    return (
        json.dumps(value) if isinstance(value, str) else f"<{type(value).__name__}>" if callable(value) else repr(value)
    )


def _unreadable(text: str, why: str) -> RecipeError:
    return RecipeError(
        f'The cascade {text!r} cannot be read ({why}); write it as cascade(recipes=("papr(keep=0.5)", ""), '
        "thresholds=(0.3,))."
    )
