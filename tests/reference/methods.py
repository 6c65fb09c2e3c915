"""Every method beside the host's own forward, the slow way and in float64: loops over tokens, patches and heads.

A step is what a recipe calls a method. `place` tells `reference_forward` when to call it:

- "before" a block, or "inside" it between attention and MLP: `act(stream, look)`;
- "queries" and "rows": `acts(count, look)`, then `rows(stream, look)` tells which tokens ask (and go on);
- GTP computes the attention itself, `attend(stream, look)`, and then acts inside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tests.reference.dropping import Ats, Dynamicvit, Evit, PatchSlimming, Readout
from tests.reference.merging import Adaptive, Diffrate, Guarded, Mctf, Pitome, Tofu, Tome
from tests.reference.stream import Look, Stream, cosine, ranking, schedule

__all__ = [
    "Adaptive", "Ats", "Diffrate", "Dynamicvit", "Evit", "Gtp", "Guarded", "Mctf", "PatchSlimming", "Pitome",
    "Readout", "Tofu", "Tome",
]  # fmt: skip


@dataclass(frozen=True)
class Gtp:
    r: int | tuple[int, float] | Sequence[int] | None
    alpha: float = 0.1
    sparsity: float = 1.0
    neighbours: int = 8
    graph: str = "mixed"
    layers: slice | Sequence[int] | None = None
    place = "inside"

    def prepare(self, stream: Stream) -> None:
        """The graph of all embedded patches, before anything acts: normalised edge weights, {(i, j): weight}."""
        places = list(itertools.product(*map(range, stream.grid)))
        patches = range(len(places))
        features = stream.x[stream.prefix :].tolist()
        edges = set()
        for i in patches:
            if self.graph in ("mixed", "spatial"):
                for j in patches:
                    near = max(abs(a - b) for a, b in zip(places[i], places[j], strict=True)) <= 1
                    if near and i != j:
                        edges.add((i, j))
            if self.graph in ("mixed", "semantic"):
                others = {j: cosine(features[i], features[j]) for j in patches if j != i}
                ranked, _ = ranking(others)
                nearest, rest = ranked[: self.neighbours], ranked[self.neighbours :]
                if nearest and rest:
                    stream.doubt(others[nearest[-1]] - others[rest[0]])
                edges |= {(i, j) for j in nearest}
        degree = [sum((i, j) in edges for j in patches) for i in patches]
        # an edge always leaves a node of some degree, but it may lead to one of none
        stream.memory[id(self)] = {
            (i, j): 1 / math.sqrt(degree[i] * degree[j]) if degree[j] > 0 else 0.0 for i, j in edges
        }

    def how_many(self, stream: Stream, look: Look) -> int:
        return min(schedule(self.r, look.depth, self.layers)[look.block], len(stream.patches) - 1)

    def attend(self, stream: Stream, look: Look) -> list[Tensor] | None:
        """Each head's probabilities with all but the largest set to zero, or None where this block is left alone."""
        if self.how_many(stream, look) <= 0:
            return None
        n = len(stream.members)
        kept = max(int(self.sparsity * n * n), 1)
        sparse = []
        for matrix in look.probs:
            matrix = matrix.clone()
            if kept < n * n and self.sparsity < 1:
                entries = sorted(matrix.flatten().tolist(), reverse=True)
                threshold = entries[kept - 1]
                stream.doubt((threshold - entries[kept]) / threshold)  # entries may all be small
                for q in range(n):
                    for k in range(n):
                        if matrix[q, k] < threshold:
                            matrix[q, k] = 0
            sparse.append(matrix)
        look.found[id(self)] = [
            max(float(m[i, i]) for m in sparse) * max(float(m[:, i].sum()) for m in sparse) for i in range(n)
        ]
        return sparse

    def act(self, stream: Stream, look: Look) -> None:
        r = self.how_many(stream, look)
        if r <= 0:
            return
        found, edges = look.found[id(self)], stream.memory[id(self)]
        score = {n: found[stream.own[n]] for n in stream.patches}
        ranked, _ = ranking(score)
        for a, b in itertools.pairwise(ranked):
            if score[a] > 0:  # a sparse diagonal holds exact zeros, which are no near tie; the rest may all be small
                stream.doubt((score[a] - score[b]) / score[a])
        kept, dropped = ranked[: len(ranked) - r], ranked[len(ranked) - r :]
        x = stream.x.clone()
        weights = [stream.weight(n) for n in range(len(stream.members))]
        for n in kept:
            for m in dropped:
                share = self.alpha * edges.get((stream.rows[n], stream.rows[m]), 0.0)
                x[n] = x[n] + share * stream.x[m]
                weights[n] += share * stream.weight(m)
        stream.x, stream.weights = x, weights
        stream.keep([*range(stream.prefix), *kept])
