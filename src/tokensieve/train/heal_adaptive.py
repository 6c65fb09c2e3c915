"""Healing of `adaptive`: the host is healed under fixed numbers of merges, and thresholds are set anew for it.

Thresholds that stay where they were set, while the weights whose similarities they are compared with move, make the
number of tokens drift; training under them diverges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..methods import Adaptive, Guarded
from ..methods.base import BaseMethod
from ..recipe import Recipe
from ..search.bars import adapted, mean_macs
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
        self.images, self.recipe, self.sieve_args = torch.stack([pictures[row][0] for row in rows]), recipe, sieve_args
        evaluator = self._evaluator(model)
        self.costs = Costs(evaluator.empty, evaluator.input_size)
        self.macs = mean_macs(evaluator, self.costs, recipe)
        self.fixed = fixed_numbers(evaluator, recipe)

    def recipe_for(self, host: nn.Module) -> Recipe:
        """`adaptive` with thresholds for this host, at the mean MACs that the given recipe has on the dense model.

        Raises:
            RecipeError: no thresholds have that cost.
        """
        return adapted(self._evaluator(host), self.costs, self.fixed, self.macs)

    def _evaluator(self, model: nn.Module) -> Evaluator:
        settings = {"mean": None, "std": None, "pretrained": True, **self.sieve_args}
        return Evaluator(model, self.images, holdout=0, seed=0, batch=READ, check=lambda: None, **settings)


@torch.no_grad()
def fixed_numbers(evaluator: Evaluator, recipe: Recipe) -> Recipe:
    """`guarded` in place of `adaptive`, with the mean number of tokens that each block merges and drops, rounded."""
    fast = evaluator.host_sieved(recipe)
    depth = len(fast.host.blocks)
    before, after = torch.zeros(2, depth, dtype=torch.float64)
    rows = evaluator.parts["search"]
    for chunk in rows.split(evaluator.batch):
        trace = fast.trace(evaluator.batch_of(chunk))
        for reads in trace.reads_per_image:
            before += torch.tensor([read.keys for read in reads], dtype=torch.float64) / len(rows)
        after += torch.stack(trace.lengths).double().sum(1) / len(rows)

    def fixed(method: BaseMethod) -> BaseMethod:
        if not isinstance(method, Adaptive):
            return method
        merges, drops, rest = [0] * depth, [0] * depth, 0.0
        for block in range(depth):
            threshold, share = method.at(block, depth)
            if threshold == 1 and share == 0:
                continue
            dropped = (after[block].item() - fast.host.prefix) * share / (1 - share)
            exact = before[block].item() - after[block].item() - dropped + rest
            merges[block], drops[block] = max(0, round(exact)), round(dropped)
            rest = exact - merges[block]  # carried to the next block, so that the numbers add up
        return Guarded(
            r=tuple(merges), drop=tuple(drops), source_guard=method.source_guard,
            destination_guard=method.destination_guard, metric=method.metric, soften=method.soften, norm=method.norm,
        )  # fmt: skip

    return Recipe(tuple(fixed(method) for method in recipe))
