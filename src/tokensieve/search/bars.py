"""Sets the thresholds (`bars`) of `adaptive` so that images keep as many tokens on average as under a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from ..methods.adaptive import drop_least, pair_settings
from ..methods.base import AttentionEvidence, BaseMethod
from ..methods.matching import Pairs, above
from ..methods.schedule import at
from ..recipe import Recipe
from ..stream import Sieved
from ..tokens import Tokens
from .costs import Costs
from .evaluator import Evaluator, Part
from .families import KNOTS, Family, Variant, scale, spread_over
from .fit import Fit

if TYPE_CHECKING:
    from .budget_search import Search

BUDGET_TOLERANCE = 0.002
"""By how much a recipe's mean MACs may be below the budget, as a share of it."""
MAX_CORRECTIONS = 6
"""Maximum number of corrections of the mean number of merges to meet the budget."""
DIGITS = 5
"""Decimals of a threshold in a recipe."""


class AfterAttention(NamedTuple):
    """A batch inside a block, after the attention."""

    tokens: Tokens
    attended: Tensor
    """(B, N) class attention to the tokens that the block read."""
    pairs: Pairs | None


@dataclass(frozen=True)
class Thresholds(Family):
    """`adaptive` in place of the `guarded` of a recipe that was searched, and what its thresholds are set for.

    Parameters: logarithms of what the recipe's numbers of merges are multiplied with, at some places of the depth, and
    its drops; both guards as multiples of the recipe's. At 0 the thresholds are set for the recipe as it stands.
    """

    recipe_text: str
    evaluator: Evaluator
    name: str = Adaptive.name
    searched: bool = True

    @property
    def key(self) -> str:
        """With the recipe: when a search is resumed its best recipe may be another one."""
        return f"{self.title} of {self.recipe_text}"

    def param_names(self, depth: int) -> list[str]:
        knots = [f"merges{i}" for i in range(min(depth - 1, KNOTS))]
        return [*knots, "drops", "source_guard", "destination_guard"]

    def variants(self) -> Sequence[Variant]:
        return [{}]

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        depth = fit.costs.depth
        knots = [params.get(f"merges{i}", 0.0) for i in range(min(depth - 1, KNOTS))]
        merges = [scale(parameter) for parameter in spread_over(knots, depth)]

        def with_guards(method: BaseMethod) -> BaseMethod:
            if not isinstance(method, Guarded):
                return method
            source, destination = (max(0.0, 1 + params.get(f"{end}_guard", 0.0)) for end in ("source", "destination"))
            return replace(
                method,
                source_guard=round(method.source_guard * source, 4),
                destination_guard=round(method.destination_guard * destination, 4),
            )

        recipe = Recipe(tuple(with_guards(method) for method in Recipe.parse(self.recipe_text)))
        return adapted(self.evaluator, fit.costs, recipe, fit.target, merges, scale(params.get("drops", 0.0)))


def adapt_all(search: Search, ratio: float | None, trials: int) -> None:
    """At each budget give the best recipe of `guarded` alone thresholds, in a study in `search.adapted`.

    At the budget `ratio`, the wanted one, `trials` further settings of the thresholds are tried.
    """
    for budget, studies in search.studies.items():
        for study in studies:
            best = study.best()
            if study.family.name != "scheduled-guarded" or study.family.proposal is not None or best is None:
                continue
            thresholds = search.study_of(budget, Thresholds(str(best.recipe), search.evaluator))
            search.adapted[budget] = thresholds
            thresholds.start()
            thresholds.run(thresholds.starts + (trials if budget == ratio else 0))


def adapted(
    evaluator: Evaluator,
    costs: Costs,
    recipe: Recipe,
    target: float,
    merge_factors: Sequence[float] | None = None,
    drop_factor: float = 1.0,
) -> Recipe:
    """A recipe with `adaptive` in the place of `guarded`, of at most `target` MACs, the mean over the search images.

    The threshold of a block is set so that the mean number of pairs above it, over the images, is the schedule's number
    of merges times its `merge_factors` (1 for each block by default) times a factor, the same for all blocks, which the
    target decides. Late drops, times `drop_factor`, become shares. One pass over the images sets all thresholds, block
    by block.

    Raises:
        RecipeError: the recipe has not exactly one `guarded`, or no factor meets the target.
    """
    factors = list(merge_factors or [1.0] * costs.depth)
    factor, best = 1.0, None
    rest = Recipe(tuple(method for method in recipe if not isinstance(method, Guarded)))
    unmerged_macs = costs.of(rest) if len(rest) else costs.dense
    for _ in range(MAX_CORRECTIONS):
        calibrated, cost = _calibrated(
            evaluator, costs, recipe, [factor * each for each in factors], factor * drop_factor
        )
        if cost <= target:
            best = calibrated
            if cost >= (1 - BUDGET_TOLERANCE) * target:
                break
        # The saving by merges is roughly proportional to their number.
        if cost >= unmerged_macs:
            break
        factor *= (unmerged_macs - (1 - BUDGET_TOLERANCE / 2) * target) / (unmerged_macs - cost)
    if best is None:
        raise RecipeError(f"No thresholds were found with which {recipe} takes {target / 1e9:.3g} GMAC on average.")
    return best


def mean_macs(evaluator: Evaluator, costs: Costs, recipe: Recipe, part: Part = "search") -> float:
    """Mean MACs over a part of the images, of a recipe whose number of tokens varies; without those of proposals."""
    return mean_cost(costs, reads_of_images(evaluator, recipe, part))


@torch.no_grad()
def reads_of_images(evaluator: Evaluator, recipe: Recipe, part: Part = "search") -> list[list[Reads]]:
    """For each image of a part the tokens that each block reads under the recipe."""
    fast = evaluator.host_sieved(recipe)
    images: list[list[Reads]] = []
    for chunk in evaluator.parts[part].split(evaluator.batch):
        evaluator.check()
        images += fast.trace(evaluator.batch_of(chunk)).reads_per_image
    return images


def mean_cost(costs: Costs, images: Sequence[Sequence[Reads]]) -> float:
    """Mean MACs of images, given the tokens that each block reads of each."""
    return sum(costs.of_reads(reads, reads[-1].mlp) for reads in images) / len(images)


def _calibrated(
    evaluator: Evaluator, costs: Costs, recipe: Recipe, merge_factors: Sequence[float], drop_factor: float
) -> tuple[Recipe, float]:
    """The recipe with thresholds for the schedule's merges and drops times these factors, and its mean MACs.

    All batches go through one block before the next begins.
    """
    indices = [i for i, method in enumerate(recipe) if isinstance(method, Guarded)]
    if len(indices) != 1:
        raise RecipeError(f"Thresholds replace the numbers of one guarded, and {recipe} has {len(indices)} of them.")
    methods: list[BaseMethod] = list(recipe)
    schedule = methods[indices[0]]
    assert isinstance(schedule, Guarded)
    guard = Adaptive(**pair_settings(schedule))
    methods[indices[0]] = replace(guard, bars=0.0, drop=0.5)  # acts in every block; thresholds are set below
    fast = evaluator.host_sieved(Recipe(tuple(methods)))
    thresholds, shares, lengths = _thresholds_of(evaluator, fast, guard, schedule, merge_factors, drop_factor)
    methods[indices[0]] = replace(guard, bars=tuple(thresholds), drop=tuple(shares))
    return Recipe(tuple(methods)), _mean_of(costs, fast, lengths)


def _mean_of(costs: Costs, fast: Sieved, lengths: Sequence[Tensor]) -> float:
    """Mean MACs of I images of which block i reads `lengths[i]` (I,) tokens; later blocks read as many as the last."""
    depth, images = costs.depth, []
    for counts in torch.stack(list(lengths), dim=1).tolist():
        counts += [counts[-1]] * (depth + 1 - len(counts))
        reads = []
        for block, (keys, left) in enumerate(pairwise(counts)):
            limits = [act.left for act in fast.plan.acts("queries", block, keys, costs.patches)]
            queries = min([keys, *limits])
            reads.append(Reads(keys, queries, queries, min(queries, left)))
        images.append(reads)
    return mean_cost(costs, images)


@torch.no_grad()
def _thresholds_of(
    evaluator: Evaluator,
    fast: Sieved,
    guard: Adaptive,
    schedule: Guarded,
    merge_factors: Sequence[float],
    drop_factor: float,
) -> tuple[list[float], list[float], list[Tensor]]:
    """For each block its threshold, the share it drops, and the number of tokens it reads of each image (I,)."""
    stream: TokenStream = fast.stream
    blocks = fast.host.blocks
    depth = len(blocks)
    batches: list[tuple[_EvidenceRecorder, Tokens]] = []
    for rows in evaluator.parts["search"].split(evaluator.batch):
        evaluator.check()
        images = evaluator.batch_of(rows)
        tokens = fast.host.embed(images)
        actor = _EvidenceRecorder(stream, tokens)
        if actor.starts(tokens):
            tokens = actor.start(tokens, stream.significance(fast.host.covered(images, tokens.grid), tokens.grid))
        batches.append((actor, tokens))
    last = max((b for b in range(depth) if _scheduled(schedule, b, depth) != (0, 0)), default=-1)
    thresholds, shares, lengths = [1.0] * (last + 1), [0.0] * (last + 1), []
    for index in range(last + 1):
        merges, drops = _scheduled(schedule, index, depth)
        merges, drops = merges * merge_factors[index], drops * drop_factor
        states: list[AfterAttention] = []
        lengths.append(torch.cat([tokens.lengths_per_image() for _, tokens in batches]))
        for actor, tokens in batches:
            evaluator.check()
            read = blocks[index].enter(actor.before(index, tokens))
            inside, _, _ = up_to_mlp(index, blocks[index], actor, read)
            attended = actor.evidence.class_attention()
            states.append(
                AfterAttention(inside, attended, guard.pairs(inside, actor.evidence, attended) if merges else None)
            )
        if merges:
            thresholds[index] = _threshold([state.pairs for state in states if state.pairs is not None], merges)
        patches = sum(float((state.tokens.lengths_per_image() - fast.host.prefix).sum()) for state in states)
        image_count = sum(state.tokens.x.shape[0] for state in states)
        if drops:
            left = patches / image_count - merges
            shares[index] = round(min(0.999, drops / max(left, 1.0)), DIGITS)
        for number, (state, (actor, _)) in enumerate(zip(states, batches, strict=True)):
            tokens = state.tokens
            if state.pairs is not None:
                tokens = guard.merge(tokens, state.pairs, thresholds[index])
            if drops:
                tokens = drop_least(tokens, AttentionEvidence.follow(state.attended, tokens), shares[index])
            batches[number] = actor, actor.after(index, through_mlp(blocks[index], tokens))
    lengths.append(torch.cat([tokens.lengths_per_image() for _, tokens in batches]))
    return thresholds, shares, lengths


def _scheduled(schedule: Guarded, block: int, depth: int) -> tuple[float, float]:
    """The numbers of tokens that the schedule merges and drops in a block."""
    return at(schedule.r, schedule.layers, block, depth), at(schedule.drop, schedule.layers, block, depth)


def _threshold(pairs: Sequence[Pairs], merges: float) -> float:
    """The lowest threshold, to `DIGITS`, above which at most `merges` tokens merge, in the mean over the images."""
    most = merges * sum(batch.cosine.shape[0] for batch in pairs)
    low, high = -2.0, 1.0
    while high - low > 0.5 * 10**-DIGITS:
        middle = (low + high) / 2
        if sum(int(above(batch, middle).merging.sum()) for batch in pairs) > most:
            low = middle
        else:
            high = middle
    return min(1.0, round(high, DIGITS))


class _EvidenceRecorder(RecipeActor):
    """Records the evidence that methods inside a block would get, and does not reduce tokens there."""

    evidence: AttentionEvidence

    def inside(self, block: int, tokens: Tokens, attention: BlockQKV, attention_scores: Tensor | None) -> Tokens:
        self.evidence = AttentionEvidence(attention=attention, block=block, depth=self.plan.depth)
        return tokens
