"""What else a trained segmenter can do with as many MACs as `dtop` takes: the baselines of dtop_camvid.py.

All run on the same weights without training, and put every patch back on the grid: merged patches share their token's
answer; dropped ones show the nearest kept patch, or with `fill="zero"` the head reads zeros there. Clustering of tokens
is not among them: no method here clusters, and ToMe's matching is the nearest to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from results import SHARED
from tokensieve import DToP, EViT, PaPr, ToMe, sieve
from tokensieve.measure import macs
from tokensieve.methods import ExitEvidence, Guarded
from tokensieve.methods.matching import ranked
from tokensieve.stream import Sieved
from tokensieve.tokens import Tokens

PROPOSAL = {"proposal": "squeezenet1_1", "proposal_weights": str(SHARED / "weights" / "squeezenet1_1.safetensors")}
FEW = 24
"""Windows on which MACs that differ between images are brought near to the wanted ones."""


class Baseline(NamedTuple):
    """A sieved segmenter, how it is called with images, and what the row of dtop.csv calls its setting."""

    model: Sieved
    call: Callable[[Tensor], Tensor]
    setting: str


@dataclass(frozen=True)
class RandomExits(DToP):
    """The control: as many tokens leave behind each exit as `budget` says, whichever they are."""

    name: ClassVar[str] = "random_exits"

    def reduce(self, tokens: Tokens, left: int, evidence: ExitEvidence) -> Tokens:
        # Far digits of the activations: random enough, and the same whatever the batch.
        noise = (tokens.x[:, tokens.prefix :].double().sum(-1) * 1e6).frac().abs()
        return tokens.select(ranked(noise)[:, : left - tokens.prefix].sort(dim=1).values)


class Baselines:
    """Those of `base` with about the MACs that `dtop` takes at this threshold on these windows.

    Args:
        base: the segmenter.
        windows: (B, 3, h, w), normalised.
        threshold: of `dtop` at all exits.
        norm: mean and std of the images.
    """

    def __init__(self, base: Any, windows: Tensor, threshold: float, **norm: Any) -> None:
        self.base, self.windows, self.norm = base, windows, norm
        self.depth = len(base.host.blocks)
        self.adaptive, self.milder = sieve(base, DToP(threshold)), DToP((1 + threshold) / 2)
        self.makers: dict[str, Callable[[], Baseline]] = {
            "guarded": partial(self.merged, Guarded),
            "papr": partial(self.dropped, "nearest"),
            "papr, zero": partial(self.dropped, "zero"),
            "static exits": partial(self.budget, DToP),
            "random exits": partial(self.budget, RandomExits),
            "dtop + tome": partial(self.merged_beside, ToMe),
            "dtop + guarded": partial(self.merged_beside, Guarded),
            "dtop + evit": self.ranked_beside,
        }
        """Name of a row -> what makes it; raises `SieveError` where the segmenter cannot run it."""

    @cached_property
    def wanted(self) -> float:
        return macs(self.adaptive, images=self.windows)

    @cached_property
    def wanted_on_few(self) -> float:
        return macs(self.adaptive, images=self.windows[:FEW])

    @cached_property
    def lengths(self) -> Tensor:
        """(depth, B) patches that each block reads under `dtop`."""
        counts = [torch.stack(self.adaptive.trace(some).lengths) for some in self.windows.split(9)]
        return torch.cat(counts, dim=1) - self.adaptive.host.prefix

    def merged(self, method: Any) -> Baseline:
        def build(total: int) -> Any:
            return method(r=spread(total, self.depth))

        total = least(1, int(self.lengths[0, 0]), lambda n: self.meets(build(n)))
        return self.baseline(build(total), f"merged={total}")

    def dropped(self, fill: str) -> Baseline:
        def build(gone: int) -> PaPr:
            return PaPr(keep=1 - gone / 1000, **PROPOSAL)

        keep = build(least(1, 999, lambda n: self.meets(build(n)))).keep
        fast = sieve(self.base, PaPr(keep=keep, **PROPOSAL), **self.norm)
        return Baseline(fast, partial(fast, fill=fill), f"keep={keep:g}")

    def budget(self, method: Any) -> Baseline:
        """The shares of the patches that `dtop` leaves behind each exit on the mean, of every window."""
        share = self.lengths.double().mean(1) / int(self.lengths[0, 0])
        budget = tuple(round(float(share[block + 1]), 4) for block in self.base.exits[:-1])
        return self.baseline(method(budget=budget), f"budget={budget}")

    def merged_beside(self, method: Any) -> Baseline:
        def build(total: int) -> Any:
            return self.milder + method(r=spread(total, self.depth))

        total = least(1, int(self.lengths[0, 0]), lambda n: self.meets_on_few(build(n)))
        return self.baseline(build(total), f"threshold={self.milder.threshold:g} merged={total}")

    def ranked_beside(self) -> Baseline:
        def build(gone: int) -> Any:
            return self.milder + EViT(keep=1 - gone / 1000)

        gone = least(1, 999, lambda n: self.meets_on_few(build(n)))
        return self.baseline(build(gone), f"threshold={self.milder.threshold:g} keep={1 - gone / 1000:g}")

    def baseline(self, recipe: Any, setting: str) -> Baseline:
        fast = sieve(self.base, recipe)
        return Baseline(fast, fast, setting)

    def meets(self, recipe: Any) -> bool:
        return macs(sieve(self.base, recipe, **self.norm), images=self.windows[:1]) <= self.wanted

    def meets_on_few(self, recipe: Any) -> bool:
        return macs(sieve(self.base, recipe), images=self.windows[:FEW]) <= self.wanted_on_few


def spread(total: int, blocks: int) -> list[int]:
    """So many in all, as evenly over blocks as whole numbers can be."""
    return [total * (block + 1) // blocks - total * block // blocks for block in range(blocks)]


def least(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """The least number in low ... high that is enough, where more is enough too; `high` where none is."""
    while high > low:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
