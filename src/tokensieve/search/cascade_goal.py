"""The objective of a search for cascades: the cost of a cascade whose first member is a given recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cascade_recipe import CascadeRecipe
from ..cascades.cascade import Cascade
from ..cascades.certifying import lower_bound
from ..cascades.scores import sureness
from ..measure.macs import reading_macs
from ..recipe import Recipe
from ..stream import sieve
from .evaluator import Evaluator

AROUND = (0.75, 1.0, 1.25, 1.5)
"""Multiples of the allowed disagreement over which the cost is averaged, so that it does not depend on one image."""


def agreement_needed(agree: float, confidence: float, images: int) -> float:
    """The share of `images` that must agree for the promise to be certified; 1 if they are too few to certify it."""
    low, high = 0, images  # bounds of the number of images that may disagree
    if lower_bound(images, images, confidence) < agree:
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lower_bound(images - middle, images, confidence) >= agree else (low, middle)
    return 1 - low / images


def smallest_share_passed_on(
    scores: NDArray[np.float64], same: NDArray[np.bool_], needed: float
) -> tuple[float, float]:
    """The smallest share of images that must go on to the next member so that a share `needed` of all agrees, and the
    threshold for it.

    `scores` and `same` (N,) are those of the first member; all images that go on agree.
    """
    order = np.argsort(scores)
    wrong = np.cumsum((~same[order])[::-1])[::-1]  # errors if all images from this one on are accepted
    allowed = (1 - needed) * len(scores) + 1e-9
    allowed_counts = np.flatnonzero(np.append(wrong, 0) <= allowed)
    first = int(allowed_counts[0])
    if first == 0:
        return 0.0, 0.0
    top = scores[order[first - 1]]
    above = scores[order[first]] if first < len(order) else 1.0
    return first / len(scores), float((top + above) / 2)


@dataclass
class CascadeGoal:
    """Objective: the MACs of a cascade of a recipe and the last member, as a share of the dense model's.

    The threshold is the lowest that keeps the promise on the given images.

    Args:
        evaluator: the evaluator of the model.
        needed: the share of the images that must agree.
        last: the recipe of the last member, "" or "readout()".
        dense: MACs of the dense model.
        score: as for `CascadeRecipe`.
    """

    evaluator: Evaluator
    needed: float
    last: Recipe
    dense: float
    score: str

    def __call__(self, recipe: Recipe, outputs: Tensor, dense: Tensor) -> float:
        """The cost, as a mean over agreements around the needed one (see `AROUND`)."""
        first, last = self.added([recipe, self.last])
        scores, same = answers(outputs, dense, self.score)
        shares = [smallest_share_passed_on(scores, same, 1 - (1 - self.needed) * part)[0] for part in AROUND]
        return (first + float(np.mean(shares)) * last) / self.dense

    def added(self, recipes: Sequence[Recipe]) -> tuple[float, ...]:
        """MACs that each member adds for an image that reaches it, proposals included."""
        return reading_macs(self.cascade(recipes), self.evaluator.input_size)

    def cascade(self, recipes: Sequence[Recipe], thresholds: Sequence[float] | None = None) -> Cascade:
        """The recipes as a cascade, without a promise."""
        thresholds_used = thresholds or (0.5,) * (len(recipes) - 1)
        members = [sieve(self.evaluator.host_model, recipe, **self.evaluator.settings) for recipe in recipes]
        return Cascade(members, CascadeRecipe(tuple(recipes), tuple(thresholds_used), self.score))


def answers(outputs: Tensor, dense: Tensor, score: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The score of each output (N,), and whether its class is the dense model's (N,)."""
    with torch.no_grad():
        return sureness(outputs, score).double().numpy(), (outputs.argmax(1) == dense.argmax(1)).numpy()
