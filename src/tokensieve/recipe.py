"""Recipe: a sequence of methods, written as text or as JSON."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import RecipeError, nearest
from .methods import Method
from .methods.base import make

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """A sequence of methods: what `sieve` applies, a command line names, a file keeps and a result row repeats.

    Text is keyword calls joined by `+`, `papr(keep=0.8) + tome(r=8, layers=6:12)`; arguments are literals, bare names
    or slices, always named. JSON says the same with every setting written out.
    """

    methods: tuple[Method, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe | Method | str) -> Recipe:
        """A recipe from whatever the user wrote: text, a method, or a recipe."""
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, Method):
            return cls((recipe,))
        if isinstance(recipe, str):
            return cls.parse(recipe)
        raise RecipeError(
            f"A recipe is text, a method, a sum of methods or a Recipe, not {type(recipe).__name__}; "
            'for example "papr(keep=0.5)" or PaPr(keep=0.5).'
        )

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read recipe text. The empty text is the empty recipe: the host as it is."""
        if not text.strip():
            return cls()
        try:
            tree = ast.parse(_quote_slices(text.strip()), mode="eval").body
        except SyntaxError as error:
            raise RecipeError(
                f"The recipe {text!r} cannot be read ({error.msg}); write calls joined by +, "
                "for example papr(keep=0.8) + tome(r=8, layers=6:12)."
            ) from None
        return cls(tuple(_method(call, text) for call in _summands(tree)))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote. Settings that are left out keep their defaults."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"The recipe file is not JSON: {error}.") from None
        if not isinstance(data, dict) or "tokensieve" not in data or not isinstance(data.get("methods"), list):
            raise RecipeError('A recipe file is an object like {"tokensieve": 1, "methods": [{"name": "papr", ...}]}.')
        if data["tokensieve"] != VERSION:
            raise RecipeError(
                f"The recipe file has version {data['tokensieve']!r}; this release reads version {VERSION}. "
                "Write it again with the release that made it, as text, or update tokensieve."
            )
        for key in data:
            if key not in ("tokensieve", "methods", "text"):
                raise RecipeError(f"A recipe file has no entry {key!r}{nearest(key, ('methods', 'text'))}.")
        return cls(tuple(_from_entry(entry) for entry in data["methods"]))

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Recipe:
        """A recipe from text, or from a file that holds text or JSON."""
        if isinstance(source, os.PathLike) or (isinstance(source, str) and _names_a_file(source)):
            try:
                text = Path(source).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RecipeError(f"The recipe file {os.fspath(source)!r} cannot be read: {error}.") from None
            return cls.from_json(text) if text.lstrip().startswith("{") else cls.parse(text)
        return cls.parse(source)

    def to_json(self) -> str:
        """Every setting, with a version; `from_json` gives back an equal recipe."""
        entries = [
            {"name": method.name, **{key: _jsonable(method, key, value) for key, value in method.settings().items()}}
            for method in self.methods
        ]
        text = json.dumps({"tokensieve": VERSION, "text": str(self), "methods": entries}, indent=2)
        return re.sub(r"\[[\d\s,.-]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # a line for each list

    def __str__(self) -> str:
        return " + ".join(_text(method) for method in self.methods)

    def __add__(self, other: Recipe | Method | str) -> Recipe:
        return Recipe(self.methods + Recipe.of(other).methods)

    def __radd__(self, other: Method | str) -> Recipe:
        return Recipe.of(other) + self

    def __iter__(self) -> Iterator[Method]:
        return iter(self.methods)

    def __len__(self) -> int:
        return len(self.methods)


_SLICE = re.compile(r"=\s*(-?\d*\s*:\s*-?\d*(?:\s*:\s*-?\d*)?)\s*(?=[,)])")
_BARE = re.compile(r"[A-Za-z_][\w.\-/+]*")


def _quote_slices(text: str) -> str:
    """`layers=6:12` -> `layers=slice(6,12)`, the only liberty taken with Python's own grammar."""

    def spell(match: re.Match[str]) -> str:
        parts = [part.strip() or "None" for part in match[1].split(":")]
        return f"=slice({','.join(parts)})"

    return _SLICE.sub(spell, text)


def _summands(tree: ast.expr) -> Iterator[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        yield from _summands(tree.left)
        yield from _summands(tree.right)
    else:
        yield tree


def _method(call: ast.expr, text: str) -> Method:
    if isinstance(call, ast.Name):
        raise RecipeError(f"In the recipe {text!r}, write {call.id}(...) with its settings in brackets.")
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise RecipeError(f"The recipe {text!r} must be calls joined by +, for example papr(keep=0.8) + tome(r=8).")
    if call.args or any(word.arg is None for word in call.keywords):
        raise RecipeError(f"In the recipe {text!r}, name every argument of {call.func.id}, for example keep=0.5.")
    return make(call.func.id, {word.arg: _value(word.value, word.arg) for word in call.keywords if word.arg})


def _value(node: ast.expr, setting: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "slice":
        return slice(*(ast.literal_eval(part) for part in node.args))
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    bare = ast.unparse(node).replace(" ", "")
    if _BARE.fullmatch(bare):
        return bare
    raise RecipeError(f"{setting}={ast.unparse(node)} is neither a literal, a bare name nor a slice; quote it.")


def _text(method: Method) -> str:
    shown = []
    for field in fields(method):
        value = getattr(method, field.name)
        if field.compare and value != field.default:
            shown.append(f"{field.name}={_spell(value)}")
    return f"{method.name}({', '.join(shown)})"


def _spell(value: Any) -> str:
    if isinstance(value, slice):
        parts = [value.start, value.stop] + ([] if value.step is None else [value.step])
        return ":".join("" if part is None else str(part) for part in parts)
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value) and value not in ("None", "True", "False")
        return value if plain else repr(value)
    if value is None or isinstance(value, bool | int | float | tuple | list | dict):
        return repr(value)
    return f"<{type(value).__name__}>"


def _jsonable(method: Method, setting: str, value: Any) -> Any:
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


def _from_entry(entry: Any) -> Method:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise RecipeError('Each method of a recipe file is an object with a "name".')
    return make(entry["name"], {key: _from_json_value(value) for key, value in entry.items() if key != "name"})


def _from_json_value(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"slice"}:
        return slice(*value["slice"])
    if isinstance(value, list):
        return tuple(_from_json_value(part) for part in value)
    return value


def _names_a_file(text: str) -> bool:
    return "(" not in text and (text.endswith((".json", ".recipe", ".txt")) or (bool(text) and Path(text).is_file()))
