"""Healing of `adaptive`: the host is healed under fixed numbers of merges, and thresholds are set anew for it.

Thresholds that stay where they were set, while the weights whose similarities they are compared with move, make the
number of tokens drift; training under them diverges.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import nn

from ..forward.walk import Reads
from ..methods import Adaptive, Guarded
from ..methods.adaptive import pair_settings
from ..methods.base import BaseMethod
from ..recipe import Recipe
from ..search.bars import adapted, mean_cost, reads_of_images
from ..search.costs import Costs
from ..search.evaluator import Evaluator
from .views import READ

PICTURES = 500
"""The most pictures that thresholds are set on."""


def is_adaptive(recipe: Recipe) -> bool:
    return any(isinstance(method, Adaptive) for method in recipe)


class ThresholdSetter:
    """Fixed numbers in place of a recipe's thresholds, and thresholds for a healed host that cost as much.

    Args:
        model: the dense model.
        recipe: with one `adaptive`.
        pictures: a data set whose items begin with an image (C, H, W); an even spread of `PICTURES` of it is read.
        sieve_args: `mean`, `std` and `pretrained` of `sieve`.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, pictures: Any, sieve_args: dict[str, Any]) -> None:
        step = max(1, len(pictures) // PICTURES)
        rows = range(0, len(pictures), step)[:PICTURES]
        self.images, self.sieve_args = torch.stack([pictures[row][0] for row in rows]), sieve_args
        evaluator = self._evaluator(model)
        self.costs = Costs(evaluator.empty, evaluator.input_size)
        reads = reads_of_images(evaluator, recipe)
        self.macs = mean_cost(self.costs, reads)
        self.fixed = fixed_numbers(recipe, reads, evaluator.empty.host.prefix)

    def recipe_for(self, host: nn.Module) -> Recipe:
        """`adaptive` with thresholds for this host, at the mean MACs that the given recipe has on the dense model.

        Raises:
            RecipeError: no thresholds have that cost.
        """
        return adapted(self._evaluator(host), self.costs, self.fixed, self.macs)

    def _evaluator(self, model: nn.Module) -> Evaluator:
        settings = {"mean": None, "std": None, "pretrained": True, **self.sieve_args}
        return Evaluator(model, self.images, holdout=0, seed=0, batch=READ, check=lambda: None, **settings)


def fixed_numbers(recipe: Recipe, images: Sequence[Sequence[Reads]], prefix: int) -> Recipe:
    """`guarded` in place of `adaptive`, with the mean number of tokens that each block merges and drops, rounded.

    Args:
        recipe: with `adaptive`.
        images: for each image the tokens that each block reads under the recipe.
        prefix: number of prefix tokens.
    """
    depth = len(images[0])
    means = [
        (fmean(reads.keys for reads in block), fmean(reads.mlp for reads in block))
        for block in zip(*images, strict=True)
    ]

    def fixed(method: BaseMethod) -> BaseMethod:
        if not isinstance(method, Adaptive):
            return method
        merges, drops, rest = [0] * depth, [0] * depth, 0.0
        for block, (before, after) in enumerate(means):
            threshold, share = method.at(block, depth)
            if threshold == 1 and share == 0:
                continue
            dropped = (after - prefix) * share / (1 - share)
            exact = before - after - dropped + rest
            merges[block], drops[block] = max(0, round(exact)), round(dropped)
            rest = exact - merges[block]  # carried to the next block, so that the numbers add up
        return Guarded(r=tuple(merges), drop=tuple(drops), **pair_settings(method))

    return Recipe(tuple(fixed(method) for method in recipe))
