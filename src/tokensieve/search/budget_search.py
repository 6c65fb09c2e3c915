"""Chooses the budgets to search, and distributes trials over budgets and families.

A budget is a ratio, the dense model's MACs divided by the sieved one's: 2.0 is half of the MACs. A family is a set of
recipes with common parameters (`families.py`); a trial evaluates one recipe of a family that is scaled to a budget. The
result of a search is a front: the best recipe of each family at each budget.
"""

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

BUDGETS = 5
"""Number of budgets that a search covers."""
LOWEST_BUDGET = 1.2
"""The smallest of them, unless the target is near or below it; see `neighbouring_budgets`."""


class OutOfTime(Exception):
    """The search has reached its timeout."""


@dataclass
class TimeLimit:
    """Raises `OutOfTime` when it is called after the timeout."""

    timeout: float | None
    """Seconds since the creation of this object; None: no limit."""
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
    """The budget that is being searched, dense MACs divided by sieved."""
    family: str
    """Title of the family of the last trial."""
    divergence: float | None
    """The smallest divergence at this budget so far (in a search for cascades, the smallest cost of a cascade); None
    before a trial has succeeded."""


@dataclass
class Search:
    """A search: its settings, and its trials so far, as a study for each budget and family."""

    families: Sequence[Family]
    fit: Callable[[float], Fit]
    """Budget (dense MACs divided by sieved) -> the object that scales recipes to it."""
    evaluator: Evaluator
    storage: optuna.storages.BaseStorage
    """Where optuna keeps the trials, so that an interrupted search can be resumed."""
    seed: int
    report: Callable[[Progress], None]
    """Called after every trial."""
    tell: Callable[[str], object] = lambda _: None
    """Called with a message for the user after each round at a budget."""
    studies: dict[float, list[FamilyStudy]] = field(default_factory=dict)
    """Budget -> a study for each family."""
    adapted: dict[float, FamilyStudy] = field(default_factory=dict)
    """Budget -> a study of `adaptive` recipes: the best `guarded` recipe, whose fixed number of merges in each block is
    replaced by a score threshold; see `bars.py`."""
    recommends_adapted: bool = False
    """Whether a recipe of `adapted` may be the recommended one. Compiled and exported graphs do not support them, as
    their number of tokens differs between images."""
    expected: int = 0
    """Estimated total number of trials."""
    began: float = field(default_factory=monotonic)

    def search_budget(self, ratio: float, trials: int, near: float | None = None) -> None:
        """Search one budget, by successive halving over the families that have parameters.

        Every family starts with its starting points. For the n families that have parameters, and of which a trial has
        succeeded, log2(n) + 1 rounds follow (rounded up). Each round divides the same number of trials among the
        remaining families; all but the last then drop the half with the larger divergence.

        Args:
            ratio: the budget, dense MACs divided by sieved.
            trials: number of trials of all rounds; those of the starting points are added to them.
            near: a budget searched before. Only families of which a trial succeeded there are searched, and of those
                without parameters the better half; each starts from its best recipe there. None: all families start
                from their own starting points.
        """
        studies = self.studies.setdefault(ratio, [])
        for family, start in self._families_to_search(near):
            study = self.study_of(ratio, family, start)
            studies.append(study)
            study.start()
        self._tell_round(ratio, f"{len(studies)} families started")
        active = [study for study in studies if study.family.searched and study.alive]
        rounds = ceil(log2(len(active))) + 1 if active else 0
        trials_of = dict.fromkeys(map(id, active), 0)  # id of a study -> its number of trials, starting points excluded
        for index in range(rounds):
            for study in active:
                trials_of[id(study)] += trials // rounds // len(active)
                study.run(study.starts + trials_of[id(study)])
            self._tell_round(ratio, f"round {index + 1} of {rounds}")
            if index < rounds - 1:
                # Only trials up to this round count, since a resumed study may hold later ones.
                active.sort(key=lambda study: study.lowest(study.starts + trials_of[id(study)]))
                active = active[: ceil(len(active) / 2)]

    def study_of(
        self, ratio: float, family: Family, start: tuple[Mapping[str, float], int] | None = None
    ) -> FamilyStudy:
        """The study of a family at a budget, with the trials of earlier runs that the storage holds.

        `start`: parameters, and index of the variant, to start from; None: the family's own starting points.
        """
        optuna_study = optuna.create_study(
            study_name=f"{ratio:.6f} {family.key}", storage=self.storage, load_if_exists=True
        )
        return FamilyStudy(
            ratio, family, self.fit(ratio), self.evaluator, optuna_study, self.seed, self._report_trial, start
        )

    def best(self, ratio: float) -> float | None:
        """The smallest divergence (or cost of a cascade) at a budget; None if no trial has succeeded."""
        values = [trial.figures.value for study in self.studies.get(ratio, ()) if (trial := study.best()) is not None]
        return min(values, default=None)

    @property
    def trials(self) -> int:
        """Number of trials that have ended."""
        return sum(study.count for study in self._all_studies())

    @property
    def failures(self) -> list[Failed]:
        """The trials that failed, with the reasons."""
        return [failed for study in self._all_studies() for failed in study.failures]

    def _all_studies(self) -> list[FamilyStudy]:
        return [*(study for studies in self.studies.values() for study in studies), *self.adapted.values()]

    def _families_to_search(self, near: float | None) -> list[tuple[Family, tuple[Mapping[str, float], int] | None]]:
        """The families to search, each with the parameters and variant of its best trial at the budget `near`.

        Of the families without parameters only the better half is returned.
        """
        if near is None:
            return [(family, None) for family in self.families]
        succeeded = [(study, trial) for study in self.studies[near] if (trial := study.best()) is not None]
        without_parameters = sorted(trial.figures.value for study, trial in succeeded if not study.family.searched)
        median = without_parameters[(len(without_parameters) - 1) // 2] if without_parameters else 0.0
        return [
            (study.family, (trial.params, trial.variant))
            for study, trial in succeeded
            if study.family.searched or trial.figures.value <= median
        ]

    def _report_trial(self, study: FamilyStudy) -> None:
        """Report that a trial of this study has ended."""
        total = max(self.expected, self.trials)
        self.report(Progress(self.trials, total, study.ratio, study.family.title, self.best(study.ratio)))

    def _tell_round(self, ratio: float, description: str) -> None:
        """Tell the user which round has ended at a budget, and the best result there so far."""
        values = [(trial.figures.value, study) for study in self.studies[ratio] if (trial := study.best()) is not None]
        best = ""
        if values:
            value, study = min(values, key=lambda pair: pair[0])
            name = "divergence" if self.evaluator.goal is None else "cost of a cascade"
            best = f", best {name} {value:.4f} by {study.family.title}"
        minutes = (monotonic() - self.began) / 60
        self.tell(
            f"{ratio:.2f}x, {description}{best}; {self.trials} of {max(self.expected, self.trials)} recipes tried, "
            f"{minutes:.0f} min"
        )


def neighbouring_budgets(target: float) -> list[float]:
    """The target; three evenly spaced budgets below it, the largest first; and one a fifth above it.

    The smallest is 1.2, or half way between 1 and the target if that is less.
    """
    low = min(LOWEST_BUDGET, 1 + (target - 1) / 2)
    count = BUDGETS - 2
    below = [low + (target - low) * i / count for i in range(count)]
    return [target, *(round(budget, 4) for budget in reversed(below)), round(target * 1.2, 4)]


def search_budgets(search: Search, target: float, trials: int) -> None:
    """Spend half of the trials at the budget `target`, and the rest evenly at its `neighbouring_budgets`.

    At each of these the search starts from the best recipes of the nearest budget that was searched before.
    """
    starts = sum(family.starts(search.fit(1.0).costs.depth) for family in search.families)
    search.expected = max(search.expected, starts + trials + (BUDGETS - 1) * (len(search.families) // 2 + 1))
    search.search_budget(target, trials // 2)
    searched = [target]
    for budget in neighbouring_budgets(target)[1:]:
        nearest_budget = min(searched, key=lambda other: abs(other - budget))
        search.search_budget(budget, trials // 2 // (BUDGETS - 1), near=nearest_budget)
        searched.append(budget)


def search_for_divergence(search: Search, divergence: float, trials: int) -> None:
    """Find the largest budget whose best recipe has at most the given divergence, by searching up to five budgets.

    The first budget is found by bisection with the starting recipe of one family; later ones are interpolated between
    the searched budgets, and each search starts from the best recipes of the nearest of them. A third of the trials is
    spent at the first budget, and a sixth at each of the others.
    """
    starts = sum(family.starts(search.fit(1.0).costs.depth) for family in search.families)
    search.expected = starts + trials + BUDGETS * (len(search.families) // 2 + 1)
    share = trials // (BUDGETS + 1)
    search.search_budget(round(_first_budget(search, divergence), 3), 2 * share)
    for _ in range(BUDGETS - 1):
        divergences = {budget: best for budget in search.studies if (best := search.best(budget)) is not None}
        if not divergences:
            return
        within = [budget for budget, best in divergences.items() if best <= divergence]
        above = [budget for budget, best in divergences.items() if best > divergence]
        if within and above:
            low, high = max(within), min(above)
            if high / low < 1.01:
                return
            # Linear interpolation in the logarithm of the divergence, at least a fifth of the way from both ends.
            fraction = log2(divergence / max(divergences[low], 1e-12)) / log2(
                divergences[high] / max(divergences[low], 1e-12)
            )
            ratio = low + (high - low) * min(0.8, max(0.2, fraction))
        else:  # all searched budgets are on the same side of the allowed divergence: go beyond them
            ratio = max(within) * 1.12 if within else 1 + (min(above) - 1) / 1.25
        ratio = round(ratio, 3)
        if ratio <= 1 or ratio in search.studies:
            return
        search.search_budget(ratio, share, near=min(divergences, key=lambda other: abs(other - ratio)))


def _first_budget(search: Search, divergence: float) -> float:
    """The largest budget, within 5 %, at which the starting recipe of a family has at most the given divergence.

    The family is the first whose starting recipe can be evaluated; if there is none, the budget is 1.5.
    """
    low, high = 1.05, 4.0
    for family in search.families:
        try:
            while high / low > 1.05:
                middle = (low * high) ** 0.5
                try:
                    recipe = family.recipe({}, family.variants()[0], search.fit(middle))
                except RecipeError:  # the family cannot save so much
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
