"""The contract of a method: what happens to tokens, and where in the stream."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from ..errors import RecipeError, nearest
from ..tokens import Tokens

if TYPE_CHECKING:
    from ..recipe import Recipe


@dataclass(frozen=True)
class Evidence:
    """What a method may look at when it acts."""

    significance: Tensor | None = None
    """(B, P) how much each patch matters, fp32; for methods with `needs_significance`."""
    keys: Tensor | None = None
    """(B, H, N, d_h) this block's keys after key norm, before rotary embedding; for methods inside a block."""


@dataclass(frozen=True)
class Method(ABC):
    """Parent of all methods: a frozen dataclass whose fields are the settings in the paper's words.

    A method is plain tensor mathematics. It never sees a model, keeps nothing between calls, and decides how many
    tokens it leaves from Python integers alone, so that every shape is known before the first image.
    """

    name: ClassVar[str]
    """What the method is called in recipe text and JSON."""
    place: ClassVar[Literal["start", "inside"]]
    """`start`: once, before block 0. `inside`: in a block, between attention and MLP."""
    needs_significance: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    """Averages tokens, so that pooling and attention must know their sizes."""

    @abstractmethod
    def left(self, block: int, depth: int, tokens: int, prefix: int) -> int:
        """How many of `tokens` (prefix included) remain after this method in block `block` of `depth`.

        The answer `tokens` means that the method does not act there.
        """

    @abstractmethod
    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        """Reduce to `left` tokens, prefix included. Called only where `left` is smaller than what is there."""

    def settings(self) -> dict[str, Any]:
        """Field name -> value, all of them, as a recipe file records them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: Method | Recipe | str) -> Recipe:
        from ..recipe import Recipe  # a recipe is made of methods; the sum alone looks the other way

        return Recipe.of(self) + other

    def __str__(self) -> str:
        from ..recipe import Recipe

        return str(Recipe.of(self))


METHODS: dict[str, type[Method]] = {}
"""Recipe name -> class. Filled by `register`."""

SHORTHANDS: dict[str, Callable[..., Method]] = {}
"""Further names that recipe text may use for a method with certain settings."""


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known to recipes under its `name`."""
    METHODS[cls.name] = cls
    return cls


def make(name: str, settings: dict[str, Any]) -> Method:
    """The method called `name` with these settings; what is unknown is refused, naming the nearest valid word."""
    known: dict[str, Callable[..., Method]] = {**METHODS, **SHORTHANDS}
    if name not in known:
        raise RecipeError(f"There is no method {name!r}{nearest(name, known)}. Known: {', '.join(sorted(known))}.")
    parameters = inspect.signature(known[name]).parameters
    valid = list(parameters)
    for word in settings:
        if word not in valid:
            raise RecipeError(
                f"{name} has no setting {word!r}{nearest(word, valid)}. Its settings: {', '.join(valid)}."
            )
    for word, parameter in parameters.items():
        if parameter.default is parameter.empty and word not in settings:
            raise RecipeError(f"{name} needs {word}=; its settings: {', '.join(valid)}.")
    return known[name](**settings)
