"""Methods that merge tokens, the slow way: ToMe, ToFu, PiToMe, DiffRate, MCTF and guarded merging, one image each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.stream import (
    Look,
    Stream,
    acting,
    best,
    cosine,
    mean_by,
    ranking,
    schedule,
    summed_weights,
    unit,
)

Layers = slice | Sequence[int] | None
Rate = int | tuple[int, float] | Sequence[int] | None


def match(
    metric: Tensor, prefix: int, r: int, late: Callable[[int, int], int] = lambda a, b: 0
) -> tuple[list[list[int]], float]:
    """ToMe's bipartite soft matching of N tokens with features `metric` (N, d).

    `late` says of two positions how many steps too far apart in time they are: such pairs come behind all others.

    Returns the new sequence as groups of old positions and the smallest lead of a decision. A group's first position
    is the destination: the one that gives the group its place and its rotary row. Even positions are A, odd ones B.
    """
    n = metric.shape[0]
    r = min(r, (n - prefix) // 2)
    if r <= 0:
        return [[i] for i in range(n)], math.inf
    keys = [unit(key) for key in metric.tolist()]
    a_side, b_side = sides(n, prefix)

    def score(a: int, b: int) -> float:
        return sum(u * v for u, v in zip(keys[a], keys[b], strict=True)) - 10 * late(a, b)

    pairs, margin = best_pairs(a_side, b_side, r, score)
    unmerged = [a for a in a_side if a not in pairs]
    if prefix == 0:
        # where no class token leads, the survivors of A stay in the order of their scores
        scores = {}
        for a in unmerged:
            scores[a] = max(score(a, b) for b in b_side)
        unmerged, lead = ranking(scores)
        margin = min(margin, lead)
    groups = [[i] for i in range(prefix)] + [[a] for a in unmerged]
    groups += [[b] + [a for a in pairs if pairs[a] == b] for b in b_side]
    return groups, margin


def sides(n: int, prefix: int) -> tuple[list[int], list[int]]:
    """The patch tokens at even and at odd positions of the whole sequence."""
    return [i for i in range(prefix, n) if i % 2 == 0], [i for i in range(prefix, n) if i % 2 == 1]


def best_pairs(
    sources: Sequence[int], destinations: Sequence[int], r: int, score: Callable[[int, int], float]
) -> tuple[dict[int, int], float]:
    """The r sources whose best destination is best, {source: destination} by falling score; and the smallest lead.

    Equals go to whoever is named first.
    """
    chosen, scores, leads = {}, {}, {}
    for a in sources:
        row = {b: score(a, b) for b in destinations}
        chosen[a], leads[a] = best(row)
        scores[a] = row[chosen[a]]
    ranked = sorted(sources, key=lambda a: -scores[a])  # stable
    taken, rest = ranked[:r], ranked[r:]
    margin = min((leads[a] for a in taken), default=math.inf)
    if taken and rest:
        margin = min(margin, scores[taken[-1]] - scores[rest[0]])
    return {a: chosen[a] for a in taken}, margin


def grouped(kept: Sequence[int], pairs: dict[int, int]) -> list[list[int]]:
    return [[n] + [a for a in pairs if pairs[a] == n] for n in kept]


@dataclass(frozen=True)
class Tome:
    r: Rate
    layers: Layers = None
    proportional: bool = True
    window: int | None = None
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        r = schedule(self.r, look.depth, self.layers)[look.block]
        keys = sum(look.keys) / len(look.keys)

        def late(a: int, b: int) -> int:
            if self.window is None:
                return 0
            a_step, b_step = (stream.rows[n] // math.prod(stream.grid[1:]) for n in (a, b))
            return max(abs(a_step - b_step) - self.window, 0)

        groups, margin = match(keys[stream.own], stream.prefix, r, late)
        if len(groups) < len(stream.members):
            stream.doubt(margin)
            merge_by_size(
                stream, groups, summed_weights(stream, groups) if self.proportional else kept_weights(stream, groups)
            )


@dataclass(frozen=True)
class Tofu:
    r: Rate
    layers: Layers = None
    switch: int | None = None
    proportional: bool = False
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        n = len(stream.members)
        r = min(schedule(self.r, look.depth, self.layers)[look.block], len(stream.patches) // 2)
        if r <= 0:
            return
        groups, margin = match(torch.tensor(look.metric(stream), dtype=torch.float64), stream.prefix, r)
        stream.doubt(margin)
        kept = [group[0] for group in groups]
        switch = look.depth // 2 if self.switch is None else self.switch
        if look.block < switch:
            stream.keep(kept)
            return
        means = []
        for group in groups:
            mean = mean_by(stream.x, group, [1.0] * n)
            length, longest = float(mean.norm()), max(float(stream.x[i].norm()) for i in group)
            means.append(mean if len(group) == 1 or length == 0 else mean / length * longest)
        weights = summed_weights(stream, groups) if self.proportional else kept_weights(stream, groups)
        stream.merge(groups, means, weights)


@dataclass(frozen=True)
class Pitome:
    r: Rate
    margin: float = 0.9
    layers: Layers = None
    protect: int | None = None
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        count = len(stream.patches)
        r = min(schedule(self.r, look.depth, self.layers)[look.block], count // 2)
        if r <= 0:
            return
        keys = [unit(key) for key in look.metric(stream)]
        cos = {
            (i, j): sum(u * v for u, v in zip(keys[i], keys[j], strict=True))
            for i in stream.patches
            for j in stream.patches
        }
        m = self.margin * (1 - look.block / look.depth)
        energy = {}
        for i in stream.patches:
            lifted = [cos[i, j] - m for j in stream.patches]
            energy[i] = sum(v if v > 0 else math.exp(v) - 1 for v in lifted) / count
        ranked, lead = ranking(energy)
        stream.doubt(lead)
        protect = look.depth // 2 if self.protect is None else self.protect
        part = ranked if look.block < protect else ranked[: 2 * r]
        pairs, margin = best_pairs(part[0::2], part[1::2], r, lambda a, b: cos[a, b])
        stream.doubt(margin)
        groups = grouped([n for n in range(len(stream.members)) if n not in pairs], pairs)
        merge_by_size(stream, groups, summed_weights(stream, groups))


@dataclass(frozen=True)
class Diffrate:
    drop: Rate
    merge: Rate
    layers: Layers = None
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        count = len(stream.patches)
        drop = min(schedule(self.drop, look.depth, self.layers)[look.block], count - 1)
        merge = min(schedule(self.merge, look.depth, self.layers)[look.block], (count - max(drop, 0)) // 2)
        if drop <= 0 and merge <= 0:
            return
        attention = look.class_attention(stream)
        ranked, lead = ranking({n: attention[n] for n in stream.patches})
        stream.doubt(lead)
        alive = ranked[: count - drop]
        head, tail = alive[: len(alive) - merge], alive[len(alive) - merge :]
        x = stream.x.tolist()
        pairs, similarity = {}, {}
        for a in tail:
            row = {b: cosine(x[a], x[b]) for b in sorted(head)}
            pairs[a], lead = best(row)
            similarity[a] = row[pairs[a]]
            stream.doubt(lead)
        groups = grouped([*range(stream.prefix), *sorted(head)], pairs)
        means = [mean_by(stream.x, group, [1.0] * len(stream.members)) for group in groups]
        weights = softened(stream, groups, similarity) if tail else kept_weights(stream, groups)
        stream.merge(groups, means, weights)


@dataclass(frozen=True)
class Mctf:
    r: Rate
    layers: Layers = None
    tau_similarity: float = 1.0
    tau_information: float = 20.0
    tau_size: float = 40.0
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        patches = stream.patches
        r = min(schedule(self.r, look.depth, self.layers)[look.block], len(patches) // 2)
        if r <= 0:
            return
        metric, received = look.metric(stream), look.received(stream)
        rarest = max(1 / received[n] for n in patches)
        smallest = max(1 / stream.sizes[n] for n in patches)
        a = {n: 1 / received[n] / rarest for n in patches}
        b = {n: 1 / stream.sizes[n] / smallest for n in patches}

        def score(i: int, j: int) -> float:
            close = ((cosine(metric[i], metric[j]) + 1) / 2) ** (1 / self.tau_similarity)
            return close * (a[i] * a[j]) ** (1 / self.tau_information) * (b[i] * b[j]) ** (1 / self.tau_size)

        a_side, b_side = sides(len(stream.members), stream.prefix)
        pairs, margin = best_pairs(a_side, b_side, r // 2, score)
        stream.doubt(margin)
        free = [j for j in b_side if j not in pairs.values()]
        back, margin = best_pairs(free, [i for i in a_side if i not in pairs], r - r // 2, score)
        stream.doubt(margin)
        assert len(pairs) + len(back) == r
        pairs = {**pairs, **back}
        groups = grouped([n for n in range(len(stream.members)) if n not in pairs], pairs)
        by = [received[n] * stream.sizes[n] for n in range(len(stream.members))]
        stream.merge(groups, [mean_by(stream.x, group, by) for group in groups], summed_weights(stream, groups))


@dataclass(frozen=True)
class Guarded:
    r: Rate
    drop: Rate = 0
    source_guard: float = 0.05
    destination_guard: float = 0.035
    metric: str = "tokens"
    soften: bool = True
    layers: Layers = None
    norm: bool = True
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        count = len(stream.patches)
        r = min(schedule(self.r, look.depth, self.layers)[look.block], count // 2)
        attention = look.class_attention(stream)
        if r > 0:
            self.merge(stream, look, attention, r)
        drop = min(schedule(self.drop, look.depth, self.layers)[look.block], len(stream.patches) - 1)
        if drop > 0:
            attention = look.class_attention(stream)
            ranked, _ = ranking({n: attention[n] for n in stream.patches})
            kept, fallen = ranked[: len(ranked) - drop], ranked[len(ranked) - drop :]
            stream.doubt(attention[kept[-1]] - attention[fallen[0]])
            stream.keep([*range(stream.prefix), *sorted(kept)])

    def merge(self, stream: Stream, look: Look, attention: list[float], r: int) -> None:
        features = stream.x.tolist() if self.metric == "tokens" else look.metric(stream)
        mean = sum(attention[n] for n in stream.patches) / len(stream.patches)

        def score(i: int, j: int) -> float:
            guard = self.source_guard * attention[i] / mean + self.destination_guard * attention[j] / mean
            return cosine(features[i], features[j]) - guard

        a_side, b_side = sides(len(stream.members), stream.prefix)
        pairs, margin = best_pairs(a_side, b_side, r, score)
        stream.doubt(margin)
        kept = [*range(stream.prefix), *(a for a in a_side if a not in pairs), *b_side]
        groups = grouped(kept, pairs)
        similarity = {a: cosine(features[a], features[b]) for a, b in pairs.items()}
        guarded_merge(stream, groups, similarity, self.soften, self.norm)


@dataclass(frozen=True)
class Adaptive:
    """Guarded merging of every pair above a block's bar; then the least attended share is dropped."""

    bars: float | Sequence[float]
    drop: float | Sequence[float] = 0.0
    source_guard: float = 0.05
    destination_guard: float = 0.035
    metric: str = "tokens"
    soften: bool = True
    layers: Layers = None
    norm: bool = True
    place = "inside"

    def act(self, stream: Stream, look: Look) -> None:
        def told(levels: float | Sequence[float], missing: float) -> float:
            if look.block not in acting(self.layers, look.depth):
                return missing
            if isinstance(levels, float | int):
                return levels
            return levels[look.block] if look.block < len(levels) else missing

        bar, share = told(self.bars, 1.0), told(self.drop, 0.0)
        stream.count = len(stream.members)  # what the batch is padded to is no business of this image
        if len(stream.patches) < 2:
            return
        if bar < 1:
            self.merge(stream, look, bar)
        drop = min(int(share * len(stream.patches) + 0.5), len(stream.patches) - 1)
        if drop > 0:
            attention = look.class_attention(stream)
            ranked, _ = ranking({n: attention[n] for n in stream.patches})
            kept, fallen = ranked[: len(ranked) - drop], ranked[len(ranked) - drop :]
            stream.doubt(attention[kept[-1]] - attention[fallen[0]])
            stream.keep([*range(stream.prefix), *sorted(kept)])

    def merge(self, stream: Stream, look: Look, bar: float) -> None:
        attention = look.class_attention(stream)
        features = stream.x.tolist() if self.metric == "tokens" else look.metric(stream)
        mean = sum(attention[n] for n in stream.patches) / len(stream.patches)
        a_side, b_side = sides(len(stream.members), stream.prefix)
        pairs, similarity = {}, {}

        def look_for(sources: Sequence[int], destinations: Sequence[int]) -> None:
            for i in sources:
                row = {}
                for j in destinations:
                    guard = self.source_guard * attention[i] / mean + self.destination_guard * attention[j] / mean
                    row[j] = cosine(features[i], features[j]) - guard
                if not row:
                    continue
                j, lead = best(row)
                stream.doubt(abs(row[j] - bar))
                if row[j] > bar:
                    stream.doubt(lead)
                    pairs[i], similarity[i] = j, cosine(features[i], features[j])

        look_for(a_side, b_side)
        look_for([b for b in b_side if b not in pairs.values()], [a for a in a_side if a not in pairs])
        kept = [n for n in [*range(stream.prefix), *a_side, *b_side] if n not in pairs]
        guarded_merge(stream, grouped(kept, pairs), similarity, self.soften, self.norm)


def guarded_merge(
    stream: Stream, groups: list[list[int]], similarity: dict[int, float], soften: bool, norm: bool
) -> None:
    weights = softened(stream, groups, similarity) if soften else summed_ones(stream, groups)
    means = [mean_by(stream.x, group, stream.sizes) for group in groups]
    if norm:  # as long as its members are on average, which the mean of different directions is not
        for place, group in enumerate(groups):
            if len(group) > 1:
                whole = sum(stream.sizes[i] for i in group)
                wanted = sum(stream.sizes[i] * float(stream.x[i].norm()) for i in group) / whole
                means[place] = means[place] / float(means[place].norm()) * wanted
    stream.merge(groups, means, weights)


def merge_by_size(stream: Stream, groups: list[list[int]], weights: list[float] | None) -> None:
    stream.merge(groups, [mean_by(stream.x, group, stream.sizes) for group in groups], weights)


def kept_weights(stream: Stream, groups: list[list[int]]) -> list[float] | None:
    """Weights are no business of this merge: each group has its destination's."""
    return None if stream.weights is None else [stream.weights[group[0]] for group in groups]


def softened(stream: Stream, groups: list[list[int]], similarity: dict[int, float]) -> list[float]:
    """A source brings its weight times its similarity to the destination, no less than none and no more than all."""
    return [
        stream.weight(group[0]) + sum(stream.weight(a) * min(max(similarity[a], 0.0), 1.0) for a in group[1:])
        for group in groups
    ]


def summed_ones(stream: Stream, groups: list[list[int]]) -> list[float]:
    """A source brings all of its weight."""
    return [sum(stream.weight(n) for n in group) for group in groups]
