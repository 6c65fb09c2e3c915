"""What is told of a method comes from its class."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest

from tokensieve import PaPr, RecipeError, ToMe
from tokensieve.about.methods import method_facts
from tokensieve.methods import METHODS, Method, register
from tokensieve.methods.base import SHORTHANDS


def settings(facts: dict) -> dict[str, dict]:
    return {setting["name"]: setting for setting in facts["settings"]}


def test_every_method_and_shorthand_is_told() -> None:
    assert [facts["name"] for facts in method_facts()] == [*METHODS, *SHORTHANDS]


@pytest.mark.parametrize("cls", [PaPr, ToMe])
def test_every_setting_has_its_default_and_its_meaning(cls: type[Method]) -> None:
    (facts,) = method_facts(cls.name)
    told = settings(facts)
    assert list(told) == [f.name for f in fields(cls)]
    for setting in told.values():
        assert setting["doc"].endswith("."), setting
        assert "  " not in setting["doc"]
    assert (facts["place"], facts["merges"]) == (cls.place, cls.merges)
    assert facts["needs_significance"] == cls.needs_significance


def test_papr() -> None:
    (facts,) = method_facts("papr")
    assert facts["summary"] == (PaPr.__doc__ or "").splitlines()[0]
    told = settings(facts)
    assert (told["keep"]["required"], told["keep"]["default"]) == (True, None)
    assert (told["seed"]["required"], told["seed"]["default"], told["seed"]["type"]) == (False, 0, "int")
    assert told["keep"]["doc"].startswith("share of tokens to keep, in (0, 1]. `int(")
    assert told["keep"]["doc"].endswith("and the proposal does not run.")


def test_paragraphs_before_the_arguments_are_kept() -> None:
    (facts,) = method_facts("ToMe")
    assert facts["notes"].startswith("At most half of the patch tokens")
    assert "proportional" not in facts["notes"]


def test_a_shorthand_says_what_it_is_short_for() -> None:
    (facts,) = method_facts("random")
    assert facts["short_for"] == "papr(keep=0.5, significance=random)"
    told = settings(facts)
    assert list(told) == ["keep", "seed"]
    assert told["keep"]["doc"] == settings(method_facts("papr")[0])["keep"]["doc"]


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if method.__module__.startswith("tokensieve.")]
)
def test_no_line_of_a_docstring_is_lost(name: str) -> None:
    """Google's style has nothing behind the arguments: a paragraph that stands there would not be read."""
    (facts,) = method_facts(name)
    told = " ".join([facts["summary"], facts["notes"], *(setting["doc"] for setting in facts["settings"])])
    for line in inspect.cleandoc(METHODS[name].__doc__ or "").splitlines():
        if line != "Args:":
            assert re.sub(r"^ {4}\w+(, \w+)*: ", "", line).strip() in " ".join(told.split())


@pytest.fixture
def mine():
    """Registers a method for one test, and a shorthand that takes a count."""
    before, short = dict(METHODS), dict(SHORTHANDS)

    @register
    @dataclass(frozen=True)
    class Mine(Method):
        """Does what it must.

        First paragraph,
        in two lines.

        Second paragraph.

        Args:
            low, high: the two ends,
                of which more here: see there.
            names: with a default made anew.
        """

        low: int
        high: int
        names: tuple[str, ...] = field(default_factory=lambda: ("a", "b"))
        bare: bool = False

        name: ClassVar[str] = "mine"
        place: ClassVar[str] = "inside"

        def __post_init__(self) -> None:
            if self.low != int(self.low):
                raise RecipeError("mine: low must be whole.")

        def left(self, here):
            return here.tokens

        def reduce(self, tokens, left, evidence):
            return tokens

    SHORTHANDS["ours"] = lambda low: Mine(low=low, high=2)
    yield Mine
    for known, old in ((METHODS, before), (SHORTHANDS, short)):
        known.clear()
        known.update(old)


def test_a_new_method_is_told_without_a_word_more(mine: type[Method]) -> None:
    (facts,) = method_facts("mine")
    assert facts["notes"] == "First paragraph, in two lines.\n\nSecond paragraph."
    told = settings(facts)
    assert told["low"]["doc"] == told["high"]["doc"] == "the two ends, of which more here: see there."
    assert told["names"]["default"] == ("a", "b")
    assert (told["bare"]["doc"], told["bare"]["default"]) == ("", False)
    assert method_facts("ours")[0]["short_for"].startswith("mine(low=1, high=2")


def test_a_method_without_a_docstring(mine: type[Method]) -> None:
    mine.__doc__ = None
    assert method_facts("mine")[0]["summary"] == ""


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no method 'tomee'; the nearest are tome"):
        method_facts("tomee")
