"""Recipe text: keyword calls joined by `+`, in Python's grammar."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from .errors import RecipeError
from .methods import BaseMethod
from .methods.base import make

_SLICE = re.compile(r"=\s*(-?\d*\s*:\s*-?\d*(?:\s*:\s*-?\d*)?)\s*(?=[,)])")
_BARE = re.compile(r"[A-Za-z_][\w.\-/+]*")


def read_text(text: str) -> Iterator[BaseMethod]:
    """The methods of a recipe's text; none if the text is empty. Raises `RecipeError`."""
    if not text.strip():
        return
    try:
        tree = ast.parse(_quote_slices(text.strip()), mode="eval").body
    except SyntaxError as error:
        raise RecipeError(
            f"The recipe {text!r} cannot be read ({error.msg}); write calls joined by +, "
            "for example papr(keep=0.8) + tome(r=8, layers=6:12)."
        ) from None
    for call in _summands(tree):
        yield _method(call, text)


def _quote_slices(text: str) -> str:
    """`layers=6:12` -> `layers=slice(6,12)`; slices are the only syntax that Python itself does not accept here."""

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


def _method(call: ast.expr, text: str) -> BaseMethod:
    if isinstance(call, ast.Name):
        raise RecipeError(f"In the recipe {text!r}, write {call.id}(...) with its settings in brackets.")
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "cascade":
        raise RecipeError(
            f"{text!r} is a cascade of several recipes, not one recipe: tokensieve.sieve(model, text) opens a cascade, "
            "and CascadeRecipe.parse(text) reads it."
        )
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise RecipeError(f"The recipe {text!r} must be calls joined by +, for example papr(keep=0.8) + tome(r=8).")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise RecipeError(f"In the recipe {text!r}, name every argument of {call.func.id}, for example keep=0.5.")
    settings = {keyword.arg: _value(keyword.value, keyword.arg) for keyword in call.keywords if keyword.arg}
    return make(call.func.id, settings)


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


def method_text(method: BaseMethod) -> str:
    """The text of a method in a recipe, with the settings that differ from their defaults."""
    settings = []
    for field in fields(method):
        value = getattr(method, field.name)
        if field.compare and value != field.default:
            settings.append(f"{field.name}={_spell(value)}")
    return f"{method.name}({', '.join(settings)})"


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
