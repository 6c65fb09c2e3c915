"""Families: recipe spaces with a few numeric parameters, whose recipes are scaled to a budget of MACs.

A *single* is one method alone, spread evenly over the blocks: one number that follows from the budget, and a few
variants. A *scheduled* family merges and drops a different number in each block, with or without a proposal before it;
a search optimises the numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..methods import METHODS, Adaptive
from ..methods.base import make
from ..recipe import Recipe
from ..zoo import VIDEO_PROPOSALS
from .fit import Fit

Variant = Mapping[str, Any]
"""Settings of a family that are not numeric parameters."""


class Family(ABC):
    """A recipe space. Its parameters are numbers around 0; at 0 is the best recipe known beforehand."""

    name: str
    proposal: Mapping[str, Any] | None = None
    """Settings of `papr` that name the ranking network, or the map without a network; None: no proposal."""
    searched: bool = False
    """Whether it has parameters; else it has a single recipe for each variant."""

    def param_names(self, depth: int) -> list[str]:
        """Names of the parameters to search, for a host with `depth` blocks."""
        return []

    def beginnings(self, depth: int) -> list[dict[str, float]]:
        """Parameters to start from: the best known beforehand first, then other promising ones."""
        return [{}]

    def starts(self, depth: int) -> int:
        """How many recipes a study begins with: each variant at the first of the beginnings, one at each other."""
        return len(self.variants()) + len(self.beginnings(depth)) - 1

    @abstractmethod
    def variants(self) -> Sequence[Variant]:
        """Settings to choose between, the default first."""

    @abstractmethod
    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        """The recipe with these parameters that meets the budget. Raises `RecipeError` if none does."""

    @property
    def title(self) -> str:
        """The family's name, with that of its proposal."""
        return self.name if self.proposal is None else f"{self.name} with {ranked_by(self.proposal)}"

    @property
    def key(self) -> str:
        """What its trials are stored under."""
        return self.title


@dataclass(frozen=True)
class Even(Family):
    """One method that removes the same number of tokens in every block."""

    name: str
    choices: tuple[Variant, ...] = ({},)

    def variants(self) -> Sequence[Variant]:
        return self.choices

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        return fit.schedule([1.0] * fit.costs.depth, lambda r: Recipe.of(make(self.name, {"r": r, **variant})))


@dataclass(frozen=True)
class DropAndMerge(Family):
    """`diffrate` with the same two numbers in every block; the variants differ in the share that is dropped."""

    name: str = "diffrate"

    def variants(self) -> Sequence[Variant]:
        return [{"dropped": share} for share in (0.5, 0.2, 0.8)]

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        def build(counts: list[int]) -> Recipe:
            drop = [int(n * variant["dropped"] + 0.5) for n in counts]
            merge = [n - d for n, d in zip(counts, drop, strict=True)]
            return Recipe.of(make(self.name, {"drop": drop, "merge": merge}))

        return fit.schedule([1.0] * fit.costs.depth, build)


@dataclass(frozen=True)
class Number(Family):
    """One method with one number that rises with its cost, from `low` to `high(number of tokens)`."""

    name: str
    low: int
    high: Callable[[int], int]
    setting: Callable[[int], Mapping[str, Any]]
    choices: tuple[Variant, ...] = ({},)

    def variants(self) -> Sequence[Variant]:
        return self.choices

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        def build(number: int) -> Recipe:
            return Recipe.of(make(self.name, {**self.setting(number), **variant}))

        return fit.count(self.low, self.high(fit.costs.patches + fit.costs.prefix), build)


@dataclass(frozen=True)
class Proposed(Family):
    """`papr` alone, which keeps as many patches as the budget allows after the proposal's cost."""

    proposal: Mapping[str, Any] | None = None
    name: str = "papr"

    def variants(self) -> Sequence[Variant]:
        return layers(self.proposal)

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        return fit.count(1, fit.costs.patches - 1, lambda count: kept(count, fit, {**(self.proposal or {}), **variant}))


TAKEN = (0.005, 0.07, 0.08, 0.13, 0.17, 0.18, 0.19, 0.14, 0.15, 0.2, 0.1)
"""Share of the remaining patches that blocks 0 to 10 of a Tiny ViT remove at 1.9x, about the best schedule known."""
TAKEN_AFTER = (0.017, 0.029, 0.036, 0.094, 0.145, 0.17, 0.163, 0.147, 0.126, 0.184, 0.097)
"""The same after a proposal has dropped a tenth of the patches."""
LATE, SOURCE, DESTINATION, DROPPED = 0.75, 0.088, 0.031, 0.09
"""Settings of that schedule: share of the depth from which blocks drop, both guards, share that the proposal drops."""
KNOTS = 6
"""Number of parameters that change the known schedule, evenly spread over the depth with linear interpolation. A
parameter for each block was no better on held-out images, and made the search slower."""
TILT = 0.8
"""The parameter of the last block's share, and minus that of the first's, in a schedule shifted to later blocks."""
STRETCH = 0.8
"""Natural logarithm of the factor by which a parameter of 1 changes a weight."""


@dataclass(frozen=True)
class Scheduled(Family):
    """A different number for every block but the last: merges, and late drops if the method has them.

    Each block removes a share of the remaining patches, so that no budget leaves a block without patches. Parameters:
    how even the shares are (0: as in the known schedule, 1: all equal), and the logarithm of a factor on them at some
    positions of the depth; for `guarded` both guards and the block from which patches are dropped; with a proposal the
    share that it drops. `readout()` follows if the host supports it.
    """

    method: str = "guarded"
    proposal: Mapping[str, Any] | None = None
    searched: bool = True
    spares: tuple[float, ...] = ()
    """Shares of the depth that may run without reduction from the first block on, one variant each, so that the second
    member of a cascade can continue from there."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"scheduled-{self.method}"

    def param_names(self, depth: int) -> list[str]:
        guards = ["late", "source_guard", "destination_guard"] if self.method == "guarded" else []
        knots = [f"share{i}" for i in range(min(depth - 1, KNOTS))]
        return ["even", *knots, *guards, *(["dropped"] if self.proposal else [])]

    def beginnings(self, depth: int) -> list[dict[str, float]]:
        """The known schedule; equal shares in all blocks; the known schedule shifted to earlier and to later blocks.

        The last two are for hosts whose class attention becomes informative at another depth.
        """
        knots = min(depth - 1, KNOTS)
        slope = np.linspace(-TILT, TILT, knots)
        tilted = [{f"share{i}": float(sign * value) for i, value in enumerate(slope)} for sign in (-1, 1)]
        return [{}, {"even": 1.0}, *tilted]

    def variants(self) -> Sequence[Variant]:
        """The default, then one change at a time."""
        variants: list[Variant] = [{}]
        if self.method == "guarded":
            variants += [{"metric": "keys"}, {"soften": False}]
        return [*variants, *layers(self.proposal)[1:], *({"spared": share} for share in self.spares)]

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        depth = fit.costs.depth
        spared = min(round(depth * variant.get("spared", 0)), depth - 2)
        weights = [0.0] * spared + self._weights(params, depth - 1)[spared:]
        settings = {key: value for key, value in variant.items() if key not in ("layer", "spared")}
        first = depth
        if self.method == "guarded":
            first = round(depth * min(1.0, max(0.4, LATE + 0.25 * params.get("late", 0.0))))
            for name, known_guard in (("source_guard", SOURCE), ("destination_guard", DESTINATION)):
                settings[name] = round(known_guard * max(0.0, 1 + params.get(name, 0.0)), 4)

        def blocks(counts: list[int], end: Recipe, start: Recipe) -> Recipe:
            r = [n if i < first else 0 for i, n in enumerate([*counts, 0])]
            drop = [n if i >= first else 0 for i, n in enumerate([*counts, 0])]
            late = {"drop": drop} if any(drop) else {}
            return start + make(self.method, {"r": r, **late, **settings}) + end

        nothing = [0] * (depth - 1)
        end = Recipe.parse("readout()") if fit.readout else Recipe()
        if fit.meets(blocks(nothing, end, Recipe())):
            end = Recipe()  # the budget is so close to the dense cost that the readout alone would save more
        start = Recipe()
        if self.proposal is not None:
            settings_of = {**self.proposal, **({"layer": variant["layer"]} if "layer" in variant else {})}
            patches = fit.costs.patches
            target = round(patches * (1 - min(0.6, DROPPED * scale(params.get("dropped", 0.0)))))
            least = fit.count(1, patches - 1, lambda count: blocks(nothing, end, kept(count, fit, settings_of)))
            fewest = next(n for n in range(1, patches) if kept(n, fit, settings_of) == Recipe(least.methods[:1]))
            target = min(max(target, fewest), patches - 1)
            start = kept(target, fit, settings_of)
        patches = fit.costs.patches if self.proposal is None else target
        return fit.schedule(weights, lambda counts: blocks(counts, end, start), patches)

    def _weights(self, params: Mapping[str, float], blocks: int) -> list[float]:
        """The share of the remaining patches that each block removes, up to a common scale."""
        drops = spread_over(TAKEN if self.proposal is None else TAKEN_AFTER, blocks)
        even = params.get("even", 0.0)
        changes = spread_over([params.get(f"share{i}", 0.0) for i in range(min(blocks, KNOTS))], blocks)
        return [
            float(share ** (1 - even) * drops.mean() ** even * scale(change))
            for share, change in zip(drops, changes, strict=True)
        ]


def ranked_by(proposal: Mapping[str, Any]) -> str:
    """The name of the network, or of the map without a network, in `papr` settings."""
    name: str = proposal.get("proposal") or proposal["significance"]
    return name


def layers(proposal: Mapping[str, Any] | None) -> list[Variant]:
    """Variants of the feature map that is used of an image network: the last, or a finer one."""
    with_network = proposal is not None and proposal.get("proposal", "") not in ("", *VIDEO_PROPOSALS)
    return [{}, {"layer": -2}] if with_network else [{}]


def kept(count: int, fit: Fit, settings: Mapping[str, Any]) -> Recipe:
    """`papr` that keeps `count` patches, with the middle of all keep ratios that round down to this count."""
    share = (count + 0.5) / (fit.costs.patches + fit.costs.prefix)
    return Recipe.of(make("papr", {"keep": round(share, 5), **settings}))


def spread_over(values: Sequence[float], count: int) -> NDArray[np.float64]:
    """Interpolate values along the depth of a host at `count` points."""
    points = np.linspace(0, len(values) - 1, count) if count > 1 else np.array([(len(values) - 1) / 2])
    return np.interp(points, range(len(values)), values)


def scale(parameter: float) -> float:
    return exp(STRETCH * min(3.0, max(-3.0, parameter)))


SINGLES: dict[str, Family] = {
    "tome": Even("tome"),
    "tofu": Even("tofu"),
    "pitome": Even("pitome", ({}, {"margin": 0.75})),
    "mctf": Even("mctf"),
    "gtp": Even("gtp"),
    "guarded": Even("guarded", ({}, {"metric": "keys"}, {"soften": False})),
    "diffrate": DropAndMerge(),
    "evit": Number("evit", 1, lambda _: 9999, lambda n: {"keep": n / 10000}, ({}, {"fuse": False})),
    "ats": Number("ats", 2, lambda tokens: tokens - 1, lambda n: {"tokens": n}),
    "random": Number("random", 1, lambda _: 9999, lambda n: {"keep": n / 10000}),
}
"""Name of the method -> family. `random` is a control: it is searched only if requested by name."""
CONTROLS = ("random",)
ADAPTIVE = Adaptive.name
"""The best of `scheduled-guarded` at each budget with thresholds instead of numbers; it is not searched itself."""
EXITS = ("scheduled-dtop", "dtop")
"""Families only for segmenters with exits, see `exit_families`."""


def family_names() -> list[str]:
    """All names that `families=` accepts."""
    singles = [name for name in ("papr", *SINGLES) if name in METHODS or name in CONTROLS]
    scheduled = [f"scheduled-{name}" for name in ("guarded", "tome") if name in METHODS]
    return [*scheduled, ADAPTIVE, *singles, *EXITS]


def families(names: Sequence[str], proposals: Sequence[Mapping[str, Any]]) -> list[Family]:
    """The families with these names; those that can use a proposal come once without, and once with each proposal."""
    result: list[Family] = []
    for name in names:
        if name == "papr":
            result += [Proposed(proposal) for proposal in proposals]
        elif name.startswith("scheduled-"):
            method = name.removeprefix("scheduled-")
            result += [Scheduled(method, proposal) for proposal in (None, *proposals)]
        elif name != ADAPTIVE:
            result.append(SINGLES[name])
    return result
