"""Bars for adaptive merging, set block by block so that images keep as many tokens on average as a schedule has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._frozen import replace
from ..attention import BlockQKV
from ..errors import RecipeError
from ..forward.token_stream import RecipeActor, TokenStream
from ..forward.walk import Reads, through_mlp, up_to_mlp
from ..methods import Adaptive, Guarded
from ..methods.adaptive import drop_least
from ..methods.base import AttentionEvidence, BaseMethod
from ..methods.matching import Pairs, above
from ..methods.schedule import at
from ..recipe import Recipe
from ..stream import Sieved
from ..tokens import Tokens
from .costs import Costs
from .evaluator import Evaluator, Part

if TYPE_CHECKING:
    from .budget_search import Search

NEAR = 0.002
"""How far below its budget, as a share of it, a recipe's mean MACs may be."""
TURNS = 6
"""How often the mean number of merges is corrected to get there."""
DIGITS = 5
"""Of a bar in a recipe."""


class Arrived(NamedTuple):
    """A batch inside a block, behind the attention."""

    tokens: Tokens
    attended: Tensor
    """(B, N) class attention to what came into the block."""
    pairs: Pairs | None


def adapt_all(search: Search) -> None:
    """At each budget the best recipe of `guarded` alone, adapted, where it can be: into `search.adapted`."""
    for ratio, studies in search.studies.items():
        for study in studies:
            best = study.best()
            if study.family.name != "scheduled-guarded" or study.family.proposal is not None or best is None:
                continue
            try:
                search.adapted[ratio] = adapted(search.evaluator, study.fit.costs, best.recipe, study.fit.target)
            except RecipeError:  # a schedule that merges so little that bars have nothing to set
                continue


def adapted(evaluator: Evaluator, costs: Costs, recipe: Recipe, target: float) -> Recipe:
    """A recipe with `adaptive` in the place of `guarded`, of at most `target` MACs, the mean over the search images.

    In each block the bar is where as many pairs are above it, the mean over the images, as the schedule merges, all
    numbers times one factor, which the target decides; late drops become shares. One pass over the images sets all
    bars, since those of the blocks before are known in each.

    Raises:
        RecipeError: no `guarded` in it, or no factor meets the target.
    """
    factor, best = 1.0, None
    others = Recipe(tuple(method for method in recipe if not isinstance(method, Guarded)))
    most = costs.of(others) if len(others) else costs.dense
    for _ in range(TURNS):
        found, cost = _calibrated(evaluator, costs, recipe, factor)
        if cost <= target:
            best = found
            if cost >= (1 - NEAR) * target:
                break
        # What merges save is roughly in proportion to their number.
        if cost >= most:
            break
        factor *= (most - (1 - NEAR / 2) * target) / (most - cost)
    if best is None:
        raise RecipeError(f"No bars were found by which {recipe} takes {target / 1e9:.3g} GMAC on average.")
    return best


@torch.no_grad()
def mean_macs(evaluator: Evaluator, costs: Costs, recipe: Recipe, part: Part = "search") -> float:
    """MACs of a recipe whose count varies between images, the mean over a part of them, proposals left out."""
    fast = evaluator.host_sieved(recipe)
    total = 0.0
    rows = evaluator.parts[part]
    for some in rows.split(evaluator.batch):
        evaluator.check()
        trace = fast.trace(evaluator.batch_of(some))
        total += sum(costs.of_reads(reads, reads[-1].mlp) for reads in trace.reads_per_image)
    return total / len(rows)


def _calibrated(evaluator: Evaluator, costs: Costs, recipe: Recipe, factor: float) -> tuple[Recipe, float]:
    """One pass in lock-step: all batches up to a block's pairs, its bar, and on. The recipe, and its mean MACs."""
    places = [i for i, method in enumerate(recipe) if isinstance(method, Guarded)]
    if len(places) != 1:
        raise RecipeError(f"Bars take the place of one guarded's numbers, and {recipe} has {len(places)} of them.")
    methods: list[BaseMethod] = list(recipe)
    schedule = methods[places[0]]
    assert isinstance(schedule, Guarded)
    guard = Adaptive(
        source_guard=schedule.source_guard,
        destination_guard=schedule.destination_guard,
        metric=schedule.metric,
        soften=schedule.soften,
        norm=schedule.norm,
    )
    methods[places[0]] = replace(guard, bars=0.0, drop=0.5)  # acts everywhere: what it does is decided here
    fast = evaluator.host_sieved(Recipe(tuple(methods)))
    bars, shares, lengths = _walked(evaluator, fast, guard, schedule, factor)
    methods[places[0]] = replace(guard, bars=tuple(bars), drop=tuple(shares))
    return Recipe(tuple(methods)), _mean_of(costs, fast, lengths)


def _mean_of(costs: Costs, fast: Sieved, lengths: Sequence[Tensor]) -> float:
    """Mean MACs of images of which block i reads `lengths[i]` (I,) tokens; behind the last of these they stay."""
    depth, total = costs.depth, 0
    for counts in torch.stack(list(lengths), dim=1).tolist():
        counts += [counts[-1]] * (depth + 1 - len(counts))
        reads = []
        for block, (keys, left) in enumerate(pairwise(counts)):
            asked = [act.left for act in fast.plan.acts("queries", block, keys, costs.patches)]
            queries = min([keys, *asked])
            reads.append(Reads(keys, queries, queries, min(queries, left)))
        total += costs.of_reads(reads, reads[-1].mlp)
    return total / len(lengths[0])


@torch.no_grad()
def _walked(
    evaluator: Evaluator, fast: Sieved, guard: Adaptive, schedule: Guarded, factor: float
) -> tuple[list[float], list[float], list[Tensor]]:
    stream: TokenStream = fast.stream
    blocks = fast.host.blocks
    depth = len(blocks)
    batches: list[tuple[_Waiting, Tokens]] = []
    for rows in evaluator.parts["search"].split(evaluator.batch):
        evaluator.check()
        images = evaluator.batch_of(rows)
        tokens = fast.host.embed(images)
        actor = _Waiting(stream, tokens)
        if actor.starts(tokens):
            tokens = actor.start(tokens, stream.significance(fast.host.covered(images, tokens.grid), tokens.grid))
        batches.append((actor, tokens))
    last = max((b for b in range(depth) if _asked(schedule, b, depth) != (0, 0)), default=-1)
    bars, shares, lengths = [1.0] * (last + 1), [0.0] * (last + 1), []
    for index in range(last + 1):
        merges, drops = _asked(schedule, index, depth)
        here: list[Arrived] = []
        lengths.append(torch.cat([tokens.lengths_per_image() for _, tokens in batches]))
        for actor, tokens in batches:
            evaluator.check()
            read = blocks[index].enter(actor.before(index, tokens))
            inside, _, _ = up_to_mlp(index, blocks[index], actor, read)
            look = actor.evidence.class_attention()
            here.append(Arrived(inside, look, guard.pairs(inside, actor.evidence, look) if merges else None))
        if merges:
            bars[index] = _bar([each.pairs for each in here if each.pairs is not None], factor * merges)
        patches = sum(float((each.tokens.lengths_per_image() - fast.host.prefix).sum()) for each in here)
        images_count = sum(each.tokens.x.shape[0] for each in here)
        if drops:
            left = patches / images_count - factor * merges
            shares[index] = round(min(0.999, factor * drops / max(left, 1.0)), DIGITS)
        for place, (each, (actor, _)) in enumerate(zip(here, batches, strict=True)):
            tokens = each.tokens
            if each.pairs is not None:
                tokens = guard.merge(tokens, each.pairs, bars[index])
            if drops:
                tokens = drop_least(tokens, AttentionEvidence.follow(each.attended, tokens), shares[index])
            batches[place] = actor, actor.after(index, through_mlp(blocks[index], tokens))
    lengths.append(torch.cat([tokens.lengths_per_image() for _, tokens in batches]))
    return bars, shares, lengths


def _asked(schedule: Guarded, block: int, depth: int) -> tuple[int, int]:
    """Merges and drops of one block."""
    return at(schedule.r, schedule.layers, block, depth), at(schedule.drop, schedule.layers, block, depth)


def _bar(pairs: Sequence[Pairs], merges: float) -> float:
    """The lowest bar, to `DIGITS`, that no more than `merges` tokens an image merge above, the mean over the images."""
    wanted = merges * sum(each.cosine.shape[0] for each in pairs)
    low, high = -2.0, 1.0
    while high - low > 0.5 * 10**-DIGITS:
        middle = (low + high) / 2
        if sum(int(above(each, middle).merging.sum()) for each in pairs) > wanted:
            low = middle
        else:
            high = middle
    return min(1.0, round(high, DIGITS))


class _Waiting(RecipeActor):
    """Keeps what the methods inside a block would look at, and reduces nothing there."""

    evidence: AttentionEvidence

    def inside(self, block: int, tokens: Tokens, attention: BlockQKV, attention_scores: Tensor | None) -> Tokens:
        self.evidence = AttentionEvidence(attention=attention, block=block, depth=self.plan.depth)
        return tokens
