"""What flows through the slow references: the tokens of one image as lists, and the few things done to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Stream:
    """The tokens of one image on their way through the blocks: N tokens, the first `prefix` of them not patches."""

    x: Tensor  # (N, d)
    prefix: int
    members: list[list[int]]  # patches that each token stands for; empty for prefix tokens
    rows: list[int]  # patch at whose place each token stands, so its row of a rotary table; -1 for prefix tokens
    sizes: list[float]  # patches averaged in each token, 1 for prefix tokens
    grid: tuple[int, ...]  # (h, w), of video (t, h, w)
    weights: list[float] | None = None  # factor on the exponential of each key's logit; None until a method sets one
    own: list[int] = field(default_factory=list)  # which of the tokens that began this block each one is now
    count: int = 0  # tokens that the fast code holds for this image: more than N where images keep unlike numbers
    margin: float = math.inf
    memory: dict[int, Any] = field(default_factory=dict)  # what a method remembers from before block 0, by its id

    @classmethod
    def start(cls, x: Tensor, prefix: int, grid: tuple[int, ...]) -> Stream:
        """Tokens (prefix + P, d) as they come to block 0: each patch a token."""
        patches = len(x) - prefix
        return cls(
            x=x,
            prefix=prefix,
            members=[[] for _ in range(prefix)] + [[j] for j in range(patches)],
            rows=[-1] * prefix + list(range(patches)),
            sizes=[1.0] * (prefix + patches),
            grid=grid,
            own=list(range(prefix + patches)),
            count=prefix + patches,
        )

    @property
    def patches(self) -> range:
        """Positions of the patch tokens."""
        return range(self.prefix, len(self.members))

    def doubt(self, margin: float) -> None:
        """Note the lead by which a decision was taken."""
        self.margin = min(self.margin, margin)

    def weight(self, n: int) -> float:
        return 1.0 if self.weights is None else self.weights[n]

    def keep(self, positions: Sequence[int]) -> None:
        """Only the tokens at these positions, in this order; the prefix is among them, in front."""
        assert list(positions[: self.prefix]) == list(range(self.prefix))
        self._replace([[n] for n in positions], [self.x[n] for n in positions])
        if self.weights is not None:
            self.weights = [self.weights[n] for n in positions]

    def merge(self, groups: Sequence[Sequence[int]], means: Sequence[Tensor], weights: list[float] | None) -> None:
        """One token for each group of positions, standing at the place of the group's first."""
        self._replace(groups, means)
        self.weights = weights

    def _replace(self, groups: Sequence[Sequence[int]], x: Sequence[Tensor]) -> None:
        if self.count > len(self.members):
            raise NotImplementedError("the reference takes no method that counts tokens after one that pads them")
        self.members = [[j for n in group for j in self.members[n]] for group in groups]
        self.sizes = [sum(self.sizes[n] for n in group) for group in groups]
        self.rows = [self.rows[group[0]] for group in groups]
        self.own = [self.own[group[0]] for group in groups]
        self.x = torch.stack(list(x))
        self.count = len(self.members)


@dataclass
class Look:
    """What a method may look at in block `block` of `depth`; N tokens began the block."""

    block: int
    depth: int
    probs: list[Tensor] = field(default_factory=list)  # (N, N) a head: softmax, with the key weights in the logits
    keys: list[Tensor] = field(default_factory=list)  # (N, d_h) a key head: after key norm, before rotary
    values: list[Tensor] = field(default_factory=list)  # (N, d_h) a key head
    found: dict[int, Any] = field(default_factory=dict)  # what a method learned while it computed the attention

    def class_attention(self, stream: Stream) -> list[float]:
        """Of each token now: how much token 0 attends to it, mean over heads."""
        return [sum(float(p[0, row]) for p in self.probs) / len(self.probs) for row in stream.own]

    def received(self, stream: Stream) -> list[float]:
        """Of each token now: the mean over heads and queries of the attention it receives."""
        n = self.probs[0].shape[0]
        return [sum(float(p[:, row].sum()) for p in self.probs) / len(self.probs) / n for row in stream.own]

    def metric(self, stream: Stream) -> list[list[float]]:
        """Of each token now: its key, mean over heads."""
        mean = (sum(self.keys) / len(self.keys)).tolist()
        return [mean[row] for row in stream.own]


def schedule(
    r: int | tuple[int, float] | Sequence[int] | None, depth: int, layers: slice | Sequence[int] | None = None
) -> list[int]:
    """ToMe's merging schedule: merges per block from a constant, a pair (r, inflect) or a list padded with zeros."""
    if r is None:
        wanted = [0] * depth
    elif isinstance(r, int):
        wanted = [r] * depth
    elif isinstance(r, tuple) and len(r) == 2:
        mean, inflect = r
        low = int(mean * (1 - inflect))
        high = 2 * mean - low
        wanted = [int(low + (high - low) * i / max(depth - 1, 1)) for i in range(depth)]
    else:
        wanted = [*r, *[0] * depth][:depth]
    active = acting(layers, depth)
    return [max(wanted[i], 0) if i in active else 0 for i in range(depth)]


def acting(layers: slice | Sequence[int] | None, depth: int) -> Sequence[int]:
    """The blocks that `layers` names, in order."""
    if layers is None:
        return range(depth)
    return range(depth)[layers] if isinstance(layers, slice) else sorted(layers)


def thirds(depth: int) -> tuple[int, int, int]:
    return depth // 4, depth // 2, 3 * depth // 4


def unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in vector))
    # nothing is similar to zero; the quotient would be NaN
    return [v / length for v in vector] if length > 0 else list(vector)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(u * v for u, v in zip(unit(a), unit(b), strict=True))


def ranking(scores: dict[int, float]) -> tuple[list[int], float]:
    """Token positions by descending score, ties to the lower position, and the smallest lead of one over the next."""
    ranked = sorted(scores, key=lambda n: (-scores[n], n))
    return ranked, min((scores[a] - scores[b] for a, b in itertools.pairwise(ranked)), default=math.inf)


def best(scores: dict[int, float]) -> tuple[int, float]:
    """The position with the highest score (the first named of equals) and its lead over the next."""
    winner = next(iter(scores))
    for n in scores:
        if scores[n] > scores[winner]:
            winner = n
    return winner, min((scores[winner] - score for n, score in scores.items() if n != winner), default=math.inf)


def mean_by(x: Tensor, group: Sequence[int], by: Sequence[float]) -> Tensor:
    """The mean of the rows `group` of x, each weighted by its entry of `by`."""
    if len(group) == 1:
        return x[group[0]]
    total = torch.zeros_like(x[0])
    for n in group:
        total = total + by[n] * x[n]
    return total / sum(by[n] for n in group)


def summed_weights(stream: Stream, groups: Sequence[Sequence[int]]) -> list[float]:
    """Proportional attention: weights add up, starting from the sizes where nothing has set a weight before."""
    start = stream.sizes if stream.weights is None else stream.weights
    return [sum(start[n] for n in group) for group in groups]
