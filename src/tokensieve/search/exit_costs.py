"""MACs of recipes on a segmenter with exits, as the mean over images.

If each image keeps its own number of tokens, MACs depend on the images. They follow from the number of tokens of every
image in every block, which is counted by running the blocks before the last exit.
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
    """The MACs of a segmenter under any recipe; if tokens exit early, the mean over the evaluator's images.

    `of` gives the result of `measure.macs(..., images=...)` on them. The heads at the exits are counted once on a few
    tokens, like the blocks.

    Args:
        evaluator: an evaluator of a host with exits.

    Raises:
        UnsupportedHost: a host whose MACs do not follow from its parts, as the count of recipes shows.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        fast = evaluator.empty
        super().__init__(fast, evaluator.input_size)
        self.evaluator, self.exits = evaluator, tuple(fast.host.exits)
        weight = next(fast.model.parameters())
        with torch.no_grad():
            tokens = fast.host.embed(torch.zeros(1, *evaluator.input_size, device=weight.device, dtype=weight.dtype))
        self.heads = {block: _head_cost(fast, block, tokens) for block in self.exits}
        """Block -> MACs of its head: the constant part, and per token."""
        self.fixed = 0
        """MACs of the embedding and other parts that run once, under recipes with exits."""
        self._means: dict[tuple[str, Part], float] = {}
        self._dense: dict[int, Arrived] = {}
        trials = [DToP(budget=0.6, keep_per_class=0), DToP(budget=0.4, keep_per_class=0, layers=self.exits[:1])]
        for trial in map(Recipe.of, trials):
            counted = round(macs(sieve(fast.model, trial), evaluator.input_size))
            if trial == Recipe.of(trials[0]):
                self.fixed = counted - self.of(trial)
            elif counted != self.of(trial):
                raise UnsupportedHost(
                    f"{type(fast.model).__name__} cannot be tuned: the MACs of its parts with exits "
                    f"({self.of(trial)}) are not those of the whole ({counted})."
                )

    def add(self, outside: int) -> None:
        super().add(outside)
        self.fixed += outside

    def varies(self, recipe: Recipe) -> bool:
        """Whether the MACs of a recipe differ between images."""
        return self._plan(recipe).varies

    def of(self, recipe: Recipe) -> int:
        """MACs per image under a recipe, without its proposal; if they vary, the mean over the search images."""
        plan = self._plan(recipe)
        if plan.varies:
            return round(self.mean(recipe))
        exit_blocks = plan.exits(self.patches)
        if not exit_blocks:
            return super().of(recipe)
        reads, left = plan.walked(self.patches)
        blocks = sum(block.of(read) for block, read in zip(self.blocks, reads, strict=True))
        return (
            self.fixed
            + blocks
            + sum(self._head(e, reads[e].mlp) for e in exit_blocks)
            + self._head(self.exits[-1], left)
        )

    def mean(self, recipe: Recipe, part: Part = "search") -> float:
        """MACs of a recipe of `dtop` alone, the mean over a part of the images."""
        key, plan = (str(recipe), part), self._plan(recipe)
        if key not in self._means:
            (dtop,) = (method for _, method in plan.methods)
            assert isinstance(dtop, DToP)
            exit_blocks = plan.exits(self.patches)
            _, counts = self.reader(part).read(exit_blocks[-1] + 1, dtop)
            self._means[key] = self.of_exits({block: counts[block + 1] for block in exit_blocks})
        return self._means[key]

    def of_exits(self, left: Mapping[int, Tensor]) -> float:
        """Mean MACs over images for exits after the blocks in `left`: block -> tokens of each image that stay (I,)."""
        now = torch.full((1,), float(self.patches + self.prefix), dtype=torch.float64)
        total = torch.full((1,), float(self.fixed), dtype=torch.float64)
        for index, block in enumerate(self.blocks):
            total = total + block.of_whole(now)
            if index in left:
                total = total + self._head(index, now)
                now = left[index].double()
        return float((total + self._head(self.exits[-1], now)).mean())

    def arrived(self, block: int, before: DToP | None = None) -> Arrived:
        """The tokens of the search images that arrive at the exit after a block; `before` holds the earlier exits."""
        if before is not None:
            return self.reader().read(block + 1, before, [block])[0][block]
        if not self._dense:  # needed often: read all exits at once, and cache them
            self._dense, _ = self.reader().read(self.exits[-2] + 1, blocks_read=self.exits[:-1])
        return self._dense[block]

    def reader(self, part: Part = "search") -> ExitReader:
        """A reader of the images of a part, in the evaluator's batches."""
        evaluator = self.evaluator
        weight = next(evaluator.model.parameters())

        def batches() -> Iterator[Tensor]:
            for rows in evaluator.parts[part].split(evaluator.batch):
                evaluator.check()
                yield evaluator.images[rows].to(weight.device)

        return ExitReader(evaluator.host_model, batches)

    def _head(self, block: int, tokens: Any) -> Any:
        once, per_token = self.heads[block]
        return once + per_token * tokens

    def _plan(self, recipe: Recipe) -> Plan:
        methods = [method.on(self.host) if isinstance(method, Method) else method for method in recipe]
        return Plan(methods, self.depth, self.prefix)


def _head_cost(fast: Sieved, block: int, tokens: Tokens) -> tuple[int, int]:
    """The MACs of the head after a block: the constant part, and per token; from counts for two numbers of tokens."""
    n = tokens.prefix + 1
    few, more = (round(count(fast.model, partial(fast.host.predict, block, tokens.first(k)))) for k in (n, n + 1))
    return few - n * (more - few), more - few
