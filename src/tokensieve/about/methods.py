"""Facts about a method from its class: settings from the fields, their descriptions from the docstring."""

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
    """All methods and then all shorthands, or the one called `name`, as plain JSON.

    Raises:
        RecipeError: there is no method with this name.
    """
    known: dict[str, Callable[..., dict[str, Any]]] = {
        **dict.fromkeys(METHODS, _method),
        **dict.fromkeys(SHORTHANDS, _shorthand),
    }
    if name is None:
        return [describe(method) for method, describe in known.items()]
    key = name.lower()
    if key not in known:
        raise RecipeError(f"There is no method {name!r}{nearest(name, known)}. Known: {', '.join(sorted(known))}.")
    return [known[key](key)]


def _method(name: str) -> dict[str, Any]:
    cls = METHODS[name]
    summary, docs, notes = _parse(cls.__doc__ or "")
    return {
        "name": name,
        "class": cls.__name__,
        "short_for": None,
        "summary": summary,
        "notes": notes,
        **_kind(cls),
        "settings": [_setting(field, docs.get(field.name, "")) for field in fields(cls)],
    }


def _shorthand(name: str) -> dict[str, Any]:
    """Facts about a shorthand, a function from settings to a method; that method's docstring describes the settings."""
    function = SHORTHANDS[name]
    parameters = inspect.signature(function).parameters.values()
    method = _example(function)
    cls = type(method)
    docs = _parse(cls.__doc__ or "")[1]
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
        **_kind(cls),
        "settings": settings,
    }


def _kind(cls: type[BaseMethod]) -> dict[str, Any]:
    """Where a method acts, and on what."""
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
    """A type annotation as text."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _example(function: Callable[..., BaseMethod]) -> BaseMethod:
    """Call the function with 0.5, or else 1, for its required settings."""
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    try:
        return function(**dict.fromkeys(required, 0.5))
    except RecipeError:
        return function(**dict.fromkeys(required, 1))


def _parse(docstring: str) -> tuple[str, dict[str, str], str]:
    """A Google-style docstring -> its first line, the description of each argument, and the paragraphs in between."""
    parsed = docstring_parser.parse(docstring, docstring_parser.DocstringStyle.GOOGLE)
    args = {
        name: " ".join((param.description or "").split())
        for param in parsed.params
        for name in param.arg_name.split(", ")  # arguments with a common description
    }
    paragraphs = (parsed.long_description or "").split("\n\n")
    return parsed.short_description or "", args, "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
