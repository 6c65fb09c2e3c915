"""What recipes cost a segmenter with exits, where the mean over images is the cost.

Where each image keeps its own tokens, MACs are known for images alone. They follow from the number of tokens that every
image has in every block; those are counted by running the blocks in front of the last exit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedHost
from ..forward.plan import Plan
from ..measure import macs
from ..measure.macs import count
from ..methods import DToP, Method
from ..recipe import Recipe
from ..stream import Sieved, sieve
from ..tokens import Tokens
from .costs import Costs
from .evaluator import Evaluator, Part
from .exits import Arrived, ExitReader


class ExitCosts(Costs):
    """The MACs of a segmenter under any recipe; where its tokens leave early, the mean over the evaluator's images.

    `of` is what `measure.macs(..., images=...)` counts on them. The heads behind exits are counted once on a few
    tokens, as blocks are.

    Args:
        evaluator: of a host with exits.

    Raises:
        UnsupportedHost: a host whose parts cost otherwise, which recipes counted both ways have shown.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        fast = evaluator.empty
        super().__init__(fast, evaluator.input_size)
        self.evaluator, self.exits = evaluator, tuple(fast.host.exits)
        like = next(fast.model.parameters())
        with torch.no_grad():
            tokens = fast.host.embed(torch.zeros(1, *evaluator.input_size, device=like.device, dtype=like.dtype))
        self.heads = {block: _head_cost(fast, block, tokens) for block in self.exits}
        """Block -> what its head costs, 1 and each token."""
        self.beside = 0
        """Embedding and what else runs once, where heads judge tokens one by one."""
        self._means: dict[tuple[str, Part], float] = {}
        self._dense: dict[int, Arrived] = {}
        trials = [DToP(budget=0.6, keep_per_class=0), DToP(budget=0.4, keep_per_class=0, layers=self.exits[:1])]
        for trial in map(Recipe.of, trials):
            counted = round(macs(sieve(fast.model, trial), evaluator.input_size))
            if trial == Recipe.of(trials[0]):
                self.beside = counted - self.of(trial)
            elif counted != self.of(trial):
                raise UnsupportedHost(
                    f"{type(fast.model).__name__} cannot be tuned: the MACs of its parts with exits "
                    f"({self.of(trial)}) are not those of the whole ({counted})."
                )

    def add(self, outside: int) -> None:
        super().add(outside)
        self.beside += outside

    def varies(self, recipe: Recipe) -> bool:
        """Whether its MACs differ between images."""
        return self._plan(recipe).varies

    def of(self, recipe: Recipe) -> int:
        """MACs of an image under a recipe, its proposal left out; where they vary, the mean over the search images."""
        plan = self._plan(recipe)
        if plan.varies:
            return round(self.mean(recipe))
        exit_blocks = plan.exits(self.patches)
        if not exit_blocks:
            return super().of(recipe)
        reads, left = plan.walked(self.patches)
        blocks = sum(block.of(read) for block, read in zip(self.blocks, reads, strict=True))
        return (
            self.beside
            + blocks
            + sum(self._head(e, reads[e].mlp) for e in exit_blocks)
            + self._head(self.exits[-1], left)
        )

    def mean(self, recipe: Recipe, part: Part = "search") -> float:
        """MACs of `dtop` alone, the mean over a part of the images."""
        key, plan = (str(recipe), part), self._plan(recipe)
        if key not in self._means:
            (dtop,) = (method for _, method in plan.methods)
            assert isinstance(dtop, DToP)
            exit_blocks = plan.exits(self.patches)
            _, counts = self.reader(part).read(exit_blocks[-1] + 1, dtop)
            self._means[key] = self.of_exits({block: counts[block + 1] for block in exit_blocks})
        return self._means[key]

    def of_exits(self, left: Mapping[int, Tensor]) -> float:
        """MACs, the mean over images, where heads run behind these blocks and so many tokens (I,) then stay."""
        now = torch.full((1,), float(self.patches + self.prefix), dtype=torch.float64)
        total = torch.full((1,), float(self.beside), dtype=torch.float64)
        for index, block in enumerate(self.blocks):
            total = total + block.of_whole(now)
            if index in left:
                total = total + self._head(index, now)
                now = left[index].double()
        return float((total + self._head(self.exits[-1], now)).mean())

    def arrived(self, block: int, before: DToP | None = None) -> Arrived:
        """What arrives at the exit behind a block of the search images, where `before` are the exits in front of it."""
        if before is not None:
            return self.reader().read(block + 1, before, [block])[0][block]
        if not self._dense:  # needed again and again: all exits at once, and kept
            self._dense, _ = self.reader().read(self.exits[-2] + 1, blocks_read=self.exits[:-1])
        return self._dense[block]

    def reader(self, part: Part = "search") -> ExitReader:
        """Reads the images of a part, in the batches in which they are judged."""
        evaluator = self.evaluator
        like = next(evaluator.model.parameters())

        def batches() -> Iterator[Tensor]:
            for rows in evaluator.parts[part].split(evaluator.batch):
                evaluator.check()
                yield evaluator.images[rows].to(like.device)

        return ExitReader(evaluator.host_model, batches)

    def _head(self, block: int, tokens: Any) -> Any:
        once, per_token = self.heads[block]
        return once + per_token * tokens

    def _plan(self, recipe: Recipe) -> Plan:
        methods = [method.on(self.host) if isinstance(method, Method) else method for method in recipe]
        return Plan(methods, self.depth, self.prefix)


def _head_cost(fast: Sieved, block: int, tokens: Tokens) -> tuple[int, int]:
    """The MACs of the head behind a block: once, and for each token; counted on two numbers of them."""
    n = tokens.prefix + 1
    few, more = (round(count(fast.model, partial(fast.host.predict, block, tokens.first(k)))) for k in (n, n + 1))
    return few - n * (more - few), more - few
