"""What a method is, told by its class: settings from the fields, their meaning from the docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

import docstring_parser

from ..errors import RecipeError, nearest
from ..methods import METHODS, BaseMethod, Method
from ..methods.base import SHORTHANDS


def method_facts(name: str | None = None) -> list[dict[str, Any]]:
    """Every method that recipes know, or the one called `name`, as plain JSON; then the shorthands.

    Raises:
        RecipeError: there is no method of this name.
    """
    known: dict[str, Callable[..., dict[str, Any]]] = {
        **dict.fromkeys(METHODS, _method),
        **dict.fromkeys(SHORTHANDS, _shorthand),
    }
    if name is None:
        return [describe(word) for word, describe in known.items()]
    word = name.lower()
    if word not in known:
        raise RecipeError(f"There is no method {name!r}{nearest(name, known)}. Known: {', '.join(sorted(known))}.")
    return [known[word](word)]


def _method(name: str) -> dict[str, Any]:
    cls = METHODS[name]
    summary, docs, notes = _read(cls.__doc__ or "")
    return {
        "name": name,
        "class": cls.__name__,
        "short_for": None,
        "summary": summary,
        "notes": notes,
        **_nature(cls),
        "settings": [_setting(field, docs.get(field.name, "")) for field in fields(cls)],
    }


def _shorthand(name: str) -> dict[str, Any]:
    """A shorthand is a function of settings to a method: what its settings mean, that method says."""
    function = SHORTHANDS[name]
    parameters = inspect.signature(function).parameters.values()
    method = _example(function)
    cls = type(method)
    docs = _read(cls.__doc__ or "")[1]
    settings = [
        {
            "name": parameter.name,
            "type": _spelled(parameter.annotation),
            "required": parameter.default is parameter.empty,
            "default": None if parameter.default is parameter.empty else parameter.default,
            "doc": docs.get(parameter.name, ""),
        }
        for parameter in parameters
    ]
    return {
        "name": name,
        "class": cls.__name__,
        "short_for": str(method),
        "summary": f"Short for {method}, for example.",
        "notes": "",
        **_nature(cls),
        "settings": settings,
    }


def _nature(cls: type[BaseMethod]) -> dict[str, Any]:
    kinds = {"on_tokens": cls.on_tokens, "on_pixels": cls.on_pixels}
    place, merges = (cls.place, cls.merges) if issubclass(cls, Method) else ("", False)
    return {"place": place, "merges": merges, "needs_significance": cls.needs_significance, **kinds}


def _setting(field: Field[Any], doc: str) -> dict[str, Any]:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return {
        "name": field.name,
        "type": _spelled(field.type),
        "required": default is MISSING,
        "default": None if default is MISSING else default,
        "doc": doc,
    }


def _spelled(annotation: Any) -> str:
    """A type as its author wrote it, whether or not annotations are kept as text."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _example(function: Callable[..., BaseMethod]) -> BaseMethod:
    """The function called with a value that its required settings take: a share, or else a count."""
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    try:
        return function(**dict.fromkeys(required, 0.5))
    except RecipeError:
        return function(**dict.fromkeys(required, 1))


def _read(docstring: str) -> tuple[str, dict[str, str], str]:
    """A Google-style docstring -> its first line, the meaning of each argument, and the paragraphs between the two."""
    read = docstring_parser.parse(docstring, docstring_parser.DocstringStyle.GOOGLE)
    args = {
        name: " ".join((param.description or "").split())
        for param in read.params
        for name in param.arg_name.split(", ")  # several that share a meaning
    }
    paragraphs = (read.long_description or "").split("\n\n")
    return read.short_description or "", args, "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
