"""What a cascade costs that begins with a recipe: the number that a search for cascades makes small."""

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
"""Shares of the disagreement that is allowed, over which a cost is averaged: at one alone a single image decides."""


def agreement_needed(agree: float, confidence: float, images: int) -> float:
    """The share of so many images that must agree for the promise to be certified; 1 where none is enough."""
    low, high = 0, images  # the largest number of other answers
    if lower_bound(images, images, confidence) < agree:
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lower_bound(images - middle, images, confidence) >= agree else (low, middle)
    return 1 - low / images


def least_again(scores: NDArray[np.float64], same: NDArray[np.bool_], needed: float) -> tuple[float, float]:
    """The smallest share of images that must be read again so that `needed` of all agree, and the threshold for it.

    `scores` and `same` (N,) are of one reading; all that is read again agrees.
    """
    order = np.argsort(scores)
    wrong = np.cumsum((~same[order])[::-1])[::-1]  # from each image on to the surest: what is wrong if it is accepted
    allowed = (1 - needed) * len(scores) + 1e-9
    places = np.flatnonzero(np.append(wrong, 0) <= allowed)
    first = int(places[0])
    if first == 0:
        return 0.0, 0.0
    top = scores[order[first - 1]]
    above = scores[order[first]] if first < len(order) else 1.0
    return first / len(scores), float((top + above) / 2)


@dataclass
class CascadeGoal:
    """The MACs of a cascade of a recipe and the last reading, as a share of the dense model's, at the threshold that
    keeps the promise on the images at hand.

    Args:
        evaluator: which has the model, whose input size counts.
        needed: the share of answers the same that is aimed for.
        last: the last reading, "" or "readout()".
        dense: MACs of the dense model.
        score: as of `CascadeRecipe`.
    """

    evaluator: Evaluator
    needed: float
    last: Recipe
    dense: float
    score: str

    def __call__(self, recipe: Recipe, outputs: Tensor, dense: Tensor) -> float:
        """The mean over some agreements around the one that is needed."""
        first, last = self.added([recipe, self.last])
        scores, same = answers(outputs, dense, self.score)
        shares = [least_again(scores, same, 1 - (1 - self.needed) * part)[0] for part in AROUND]
        return (first + float(np.mean(shares)) * last) / self.dense

    def added(self, recipes: Sequence[Recipe]) -> tuple[float, ...]:
        """What each reading adds to an image that comes to it, in MACs, proposals included."""
        return reading_macs(self.cascade(recipes), self.evaluator.input_size)

    def cascade(self, recipes: Sequence[Recipe], thresholds: Sequence[float] | None = None) -> Cascade:
        """The recipes as a cascade, without a promise."""
        told = thresholds or (0.5,) * (len(recipes) - 1)
        members = [sieve(self.evaluator.host_model, each, **self.evaluator.settings) for each in recipes]
        return Cascade(members, CascadeRecipe(tuple(recipes), tuple(told), self.score))


def answers(outputs: Tensor, dense: Tensor, score: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How sure a reading is of each image, (N,), and whether its answer is the dense model's."""
    with torch.no_grad():
        return sureness(outputs, score).double().numpy(), (outputs.argmax(1) == dense.argmax(1)).numpy()
