"""Chooses the budgets to search, and distributes trials over budgets and families."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from time import monotonic

import optuna

from ..errors import RecipeError, SieveError
from .evaluator import Evaluator
from .families import Family
from .family_study import FamilyStudy
from .fit import Fit
from .front import Failed

STEPS = 5
"""Number of budgets on a front."""
LOWEST = 1.2
"""The smallest saving on a front."""


class OutOfTime(Exception):
    """The search has reached its timeout."""


@dataclass
class Clock:
    """Raises `OutOfTime` once the timeout is over."""

    timeout: float | None
    began: float = field(default_factory=monotonic)

    def __call__(self) -> None:
        if self.timeout is not None and monotonic() - self.began > self.timeout:
            raise OutOfTime


@dataclass(frozen=True)
class Progress:
    """The argument of `report`, after every trial."""

    trials: int
    """Trials that have ended, those of earlier runs in the storage included."""
    of: int
    """Total number of trials; an estimate if the budgets are not known beforehand."""
    ratio: float
    """The budget that is being searched, dense MACs over sieved."""
    family: str
    divergence: float | None
    """The smallest at this budget so far, None before a trial has succeeded."""


@dataclass
class Search:
    """The studies of a search, by budget (dense MACs over sieved)."""

    families: Sequence[Family]
    fit: Callable[[float], Fit]
    evaluator: Evaluator
    storage: optuna.storages.BaseStorage
    seed: int
    report: Callable[[Progress], None]
    tell: Callable[[str], object] = lambda _: None
    """Called with a sentence after each round at a budget."""
    studies: dict[float, list[FamilyStudy]] = field(default_factory=dict)
    adapted: dict[float, FamilyStudy] = field(default_factory=dict)
    """Budget -> thresholds in place of the numbers of the best `guarded` recipe, see `bars.py`."""
    recommends_adapted: bool = False
    """Whether one of these may be the recommended recipe; compiled and exported graphs do not support them."""
    expected: int = 0
    """Expected total number of trials."""
    began: float = field(default_factory=monotonic)

    def at(self, ratio: float, trials: int, near: float | None = None) -> None:
        """Search a budget by successive halving over the families that have parameters.

        Each of log2(n) + 1 rounds divides the same number of trials among the remaining families, and then drops the
        worse half.

        Args:
            ratio: the budget, dense MACs divided by sieved.
            trials: number of trials.
            near: a budget searched before; its best recipes, and the better half of its families without parameters,
                are the starting points.
        """
        studies = self.studies.setdefault(ratio, [])
        for family, neighbour in self._starts(near):
            study = self.study_of(ratio, family, neighbour)
            studies.append(study)
            study.start()
        self._tell_round(ratio, f"{len(studies)} families started")
        active = [study for study in studies if study.family.searched and study.alive]
        rounds = ceil(log2(len(active))) + 1 if active else 0
        trials_given = dict.fromkeys(map(id, active), 0)
        for turn in range(rounds):
            for study in active:
                trials_given[id(study)] += trials // rounds // len(active)
                study.run(study.starts + trials_given[id(study)])
            self._tell_round(ratio, f"round {turn + 1} of {rounds}")
            if turn < rounds - 1:
                active.sort(key=lambda study: study.lowest(study.starts + trials_given[id(study)]))
                active = active[: ceil(len(active) / 2)]

    def study_of(
        self, ratio: float, family: Family, near: tuple[Mapping[str, float], int] | None = None
    ) -> FamilyStudy:
        """The study of a family at a budget, with the trials of earlier runs that the storage holds."""
        trials_so_far = optuna.create_study(
            study_name=f"{ratio:.6f} {family.title}", storage=self.storage, load_if_exists=True
        )
        return FamilyStudy(ratio, family, self.fit(ratio), self.evaluator, trials_so_far, self.seed, self._tell, near)

    def best(self, ratio: float) -> float | None:
        """The smallest divergence at a budget; None if no trial has succeeded."""
        scored = [trial.figures.value for study in self.studies.get(ratio, ()) if (trial := study.best()) is not None]
        return min(scored, default=None)

    @property
    def trials(self) -> int:
        return sum(study.count for study in self._all_studies())

    @property
    def failures(self) -> list[Failed]:
        return [failed for study in self._all_studies() for failed in study.failures]

    def _all_studies(self) -> list[FamilyStudy]:
        return [*(study for studies in self.studies.values() for study in studies), *self.adapted.values()]

    def _starts(self, near: float | None) -> list[tuple[Family, tuple[Mapping[str, float], int] | None]]:
        """The families to search, each with the parameters and variant of its best trial at the budget `near`."""
        if near is None:
            return [(family, None) for family in self.families]
        started = [(study, trial) for study in self.studies[near] if (trial := study.best()) is not None]
        singles = sorted((trial.figures.value for study, trial in started if not study.family.searched))
        cut = singles[(len(singles) - 1) // 2] if singles else 0.0
        return [
            (study.family, (trial.params, trial.variant))
            for study, trial in started
            if study.family.searched or trial.figures.value <= cut
        ]

    def _tell(self, study: FamilyStudy) -> None:
        total = max(self.expected, self.trials)
        self.report(Progress(self.trials, total, study.ratio, study.family.title, self.best(study.ratio)))

    def _tell_round(self, ratio: float, description: str) -> None:
        """Report the best result so far at a budget."""
        scored = [(trial.figures.value, study) for study in self.studies[ratio] if (trial := study.best()) is not None]
        best = ""
        if scored:
            value, study = min(scored, key=lambda pair: pair[0])
            name = "divergence" if self.evaluator.goal is None else "cost of a cascade"
            best = f", best {name} {value:.4f} by {study.family.title}"
        minutes = (monotonic() - self.began) / 60
        self.tell(
            f"{ratio:.2f}x, {description}{best}; {self.trials} of {max(self.expected, self.trials)} recipes tried, "
            f"{minutes:.0f} min"
        )


def neighbouring_budgets(target: float) -> list[float]:
    """Budgets from 1.2 to a fifth above `target`: the target first, then each next to an earlier one."""
    low = min(LOWEST, 1 + (target - 1) / 2)
    below = STEPS - 2
    steps = [low + (target - low) * i / below for i in range(below)]
    return [target, *(round(step, 4) for step in reversed(steps)), round(target * 1.2, 4)]


def search_budgets(search: Search, target: float, trials: int) -> None:
    """Spend half of the trials at the budget `target`, the rest at others, each started from the nearest searched."""
    steps = neighbouring_budgets(target)
    starts = sum(family.starts(search.fit(1.0).costs.depth) for family in search.families)
    search.expected = max(search.expected, starts + trials + (STEPS - 1) * (len(search.families) // 2 + 1))
    search.at(target, trials // 2)
    searched = [target]
    for step in steps[1:]:
        nearest_budget = min(searched, key=lambda budget: abs(budget - step))
        search.at(step, trials // 2 // (STEPS - 1), near=nearest_budget)
        searched.append(step)


def towards(search: Search, divergence: float, trials: int) -> None:
    """Search budgets that converge to the one whose best recipe just meets an allowed divergence.

    The first budget is found by bisection with the starting recipe of one family; later ones are interpolated between
    the searched budgets, and each search starts from the nearest of them.
    """
    starts = sum(family.starts(search.fit(1.0).costs.depth) for family in search.families)
    search.expected = starts + trials + STEPS * (len(search.families) // 2 + 1)
    share = trials // (STEPS + 1)
    ratio = round(_bracket(search, divergence), 3)
    search.at(ratio, 2 * share)
    for _ in range(STEPS - 1):
        divergences = {step: best for step in search.studies if (best := search.best(step)) is not None}
        if not divergences:
            return
        within = [step for step, best in divergences.items() if best <= divergence]
        above = [step for step, best in divergences.items() if best > divergence]
        if within and above:
            low, high = max(within), min(above)
            if high / low < 1.01:
                return
            # Linear interpolation in the logarithm of the divergence, away from both ends.
            fraction = log2(divergence / max(divergences[low], 1e-12)) / log2(
                divergences[high] / max(divergences[low], 1e-12)
            )
            step = low + (high - low) * min(0.8, max(0.2, fraction))
        else:
            step = max(within) * 1.12 if within else 1 + (min(above) - 1) / 1.25
        step = round(step, 3)
        if step <= 1 or step in search.studies:
            return
        search.at(step, share, near=min(divergences, key=lambda other: abs(other - step)))


def _bracket(search: Search, divergence: float) -> float:
    """The budget at which the starting recipe of the first usable family has the allowed divergence."""
    low, high = 1.05, 4.0
    for family in search.families:
        try:
            while high / low > 1.05:
                middle = (low * high) ** 0.5
                try:
                    recipe = family.recipe({}, family.variants()[0], search.fit(middle))
                except RecipeError:  # more than the family can save
                    high = middle
                    continue
                if search.evaluator.evaluate(recipe, "search").divergence <= divergence:
                    low = middle
                else:
                    high = middle
            return low
        except (SieveError, RuntimeError):
            low, high = 1.05, 4.0
    return 1.5
