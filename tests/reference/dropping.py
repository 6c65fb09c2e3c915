"""Methods that keep some tokens and drop others, the slow way: PaPr, EViT, ATS, DynamicViT, readout, Patch Slimming."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.stream import Look, Stream, acting, best, ranking, thirds

Layers = slice | Sequence[int] | None


def select(significance: Sequence[float], keep: float, prefix: int, order: str = "raster") -> list[int]:
    """PaPr's patch selection: the n_t most significant patches, ties to the lower index.

    n_t is counted from all tokens, prefix included (197 and keep .5 give 98 patches), and never exceeds the patches.
    """
    patches = len(significance)
    n_t = min(max(int((patches + prefix) * keep), 1), patches)
    ranked = sorted(range(patches), key=lambda j: (-significance[j], j))
    survivors = ranked[:n_t]
    return sorted(survivors) if order == "raster" else survivors


@dataclass(frozen=True)
class Evit:
    keep: float
    layers: Layers = None
    fuse: bool = True
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        layers = thirds(look.depth) if self.layers is None else acting(self.layers, look.depth)
        count = len(stream.patches)
        left = math.ceil(self.keep * count)
        if look.block not in layers or left + self.fuse >= count:
            return
        attention = look.class_attention(stream)
        ranked, lead = ranking({n: attention[n] for n in stream.patches})
        stream.doubt(lead)
        kept, dropped = [*range(stream.prefix), *ranked[:left]], ranked[left:]
        if not self.fuse:
            stream.keep(kept)
            return
        fused = torch.zeros_like(stream.x[0])
        for n in dropped:
            fused = fused + attention[n] * stream.x[n]
        # the fused token stands at the place of the most attended dropped one, and has its weight
        weights = None if stream.weights is None else [stream.weights[n] for n in [*kept, dropped[0]]]
        stream.merge([*([n] for n in kept), dropped], [*(stream.x[n] for n in kept), fused], weights)


@dataclass(frozen=True)
class Ats:
    tokens: int
    layers: Layers = None
    adaptive: bool = True
    place = "rows"

    def acts(self, count: int, look: Look) -> bool:
        """Decided for all images at once, from the tokens that each is given room for."""
        layers = range(look.depth // 4, look.depth) if self.layers is None else acting(self.layers, look.depth)
        return look.block in layers

    def rows(self, stream: Stream, look: Look) -> list[int]:
        """The tokens that ask: the prefix and the patches nearest to evenly spaced levels of the cumulative score."""
        row = [sum(float(p[0, own]) for p in look.probs) for own in stream.own]
        length = [math.sqrt(sum(float(v[own].square().sum()) for v in look.values)) for own in stream.own]
        scores = {n: row[n] * length[n] for n in stream.patches}
        whole = sum(scores.values())
        ranked = sorted(stream.patches, key=lambda n: (scores[n], n))
        stream.doubt(min((scores[b] - scores[a] for a, b in itertools.pairwise(ranked)), default=math.inf))

        heights, height = [], 0.0
        for n in ranked:
            height += scores[n] / whole
            heights.append(height)
        span = heights[-1] - heights[0]
        if span > 0:
            heights = [(h - heights[0]) / span for h in heights]
        else:
            heights = [i / max(len(ranked) - 1, 1) for i in range(len(ranked))]

        wanted = max(self.tokens - stream.prefix, 1)
        first = min(h for h in heights if h > 0)
        levels = [1.0] if wanted == 1 else [first + (1 - first) * i / (wanted - 1) for i in range(wanted)]
        kept = set()
        for level in levels:
            nearest, lead = best({rank: -abs(h - level) for rank, h in enumerate(heights)})
            stream.doubt(lead)
            kept.add(ranked[nearest])
        return [*range(stream.prefix), *sorted(kept)]


@dataclass(frozen=True)
class Dynamicvit:
    keep: float | tuple[float, ...]
    predictors: tuple[tuple[Tensor, ...], ...] = ()  # a stage each: weight and bias of its norm and four linear layers
    layers: Layers = None
    place = "before"

    def act(self, stream: Stream, look: Look) -> None:
        layers = list(thirds(look.depth) if self.layers is None else acting(self.layers, look.depth))
        if look.block not in layers:
            return
        stage = layers.index(look.block) + 1
        share = self.keep[stage - 1] if isinstance(self.keep, tuple) else self.keep**stage
        left = max(int(math.prod(stream.grid) * share), 1)
        if left >= len(stream.patches):
            return
        keeps = _predict(stream.x[stream.prefix :], self.predictors[stage - 1])
        ranked, lead = ranking({stream.prefix + i: v for i, v in enumerate(keeps)})
        stream.doubt(lead)
        stream.keep([*range(stream.prefix), *ranked[:left]])


def _predict(x: Tensor, weights: Sequence[Tensor]) -> list[float]:
    """DynamicViT's predictor on patch tokens (n, d): each one's log-probability of "keep"."""
    norm, bias, *linear = weights
    x = F.gelu(F.linear(F.layer_norm(x, x.shape[1:], norm, bias), linear[0], linear[1]))
    half = x.shape[1] // 2
    mean = sum(token[half:] for token in x) / len(x)
    keeps = []
    for token in x:
        y = torch.cat([token[:half], mean])
        y = F.gelu(F.linear(y, linear[2], linear[3]))
        y = F.gelu(F.linear(y, linear[4], linear[5]))
        keep, drop = F.linear(y, linear[6], linear[7]).tolist()
        keeps.append(keep - math.log(math.exp(keep) + math.exp(drop)))
    return keeps


@dataclass(frozen=True)
class Readout:
    place = "queries"

    def acts(self, count: int, look: Look) -> bool:
        return look.block == look.depth - 1

    def rows(self, stream: Stream, look: Look) -> list[int]:
        return list(range(stream.prefix))


@dataclass(frozen=True)
class PatchSlimming:
    patches: tuple[tuple[int, ...], ...]
    form: str = "A"

    @property
    def place(self) -> str:
        return "queries" if self.form == "A" else "before"

    def acts(self, count: int, look: Look) -> bool:
        return True

    def rows(self, stream: Stream, look: Look) -> list[int]:
        alive = self.patches[look.block]
        return [*range(stream.prefix), *(n for n in stream.patches if stream.rows[n] in alive)]

    def act(self, stream: Stream, look: Look) -> None:
        stream.keep(self.rows(stream, look))
