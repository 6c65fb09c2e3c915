"""A family study: one family at one budget, searched by CMA-ES."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..errors import RecipeError, SieveError
from ..methods import PaPr
from ..recipe import Recipe
from .evaluator import Evaluator, Figures
from .families import Family, Variant, ranked_by
from .fit import Fit
from .front import Failed

POPULATION = 10
"""Population size: below the default of CMA-ES (12 for 15 parameters), as a search has few trials."""
MIN_TRIALS = 6
"""Earlier trials at a step before a trial may be pruned there."""
RANGE = FloatDistribution(-1, 1)
"""Range of each parameter around the best start; CMA-ES starts with a sixth of it as its sigma."""


@dataclass(frozen=True)
class TriedRecipe:
    """A recipe that was evaluated on all search images."""

    text: str
    figures: Figures
    params: Mapping[str, float]
    variant: int

    @property
    def recipe(self) -> Recipe:
        return Recipe.parse(self.text)


@dataclass
class FamilyStudy:
    """Trials of one family at one budget.

    The first trials are its variants (proposal layer, metric ...) with the best known parameters, and the family's
    other starting points; then the parameters are searched around the best of them. A trial whose divergence after a
    step of the images is above the median of earlier ones is pruned; its divergence is extrapolated to all images by
    the ratio of the first trial.
    """

    ratio: float
    family: Family
    fit: Fit
    evaluator: Evaluator
    study: optuna.Study
    seed: int
    on_trial: Callable[[FamilyStudy], None]
    """Called after every trial."""
    near: tuple[Mapping[str, float], int] | None = None
    """Parameters and variant of the best trial at a nearby budget, the only starting point then."""

    @property
    def starts(self) -> int:
        """Number of trials that `start` makes."""
        return 1 if self.near is not None else self.family.starts(self.fit.costs.depth)

    def start(self) -> None:
        """Try the variants at the first starting point, and the best of them at the others; skip those tried before."""
        if self.near is not None:
            self._start("near", *self.near)
            return
        first, *later = self.family.beginnings(self.fit.costs.depth)
        for variant in range(len(self.family.variants())):
            self._start(f"variant {variant}", first, variant)
        for index, params in enumerate(later):
            self._start(f"beginning {index}", params, self._best_start()[1])

    def _start(self, label: str, params: Mapping[str, float], variant: int) -> None:
        if any(trial.user_attrs.get("start") == label for trial in self._trials()):
            return
        names = self.family.param_names(self.fit.costs.depth)
        value, curve, attrs = self._try(dict(params), variant)
        self.study.add_trial(
            create_trial(
                state=TrialState.FAIL if value is None else TrialState.COMPLETE,
                value=value,
                params=dict.fromkeys(names, 0.0),
                distributions=dict.fromkeys(names, RANGE),
                intermediate_values=dict(enumerate(curve)),
                user_attrs={**attrs, "start": label},
            )
        )
        self.on_trial(self)

    def run(self, until: int) -> None:
        """Search until there are `until` trials, those of `start` included."""
        while self.alive and self.family.searched and self.count < until:
            draft = self._draft()
            trial = draft.ask()
            names = self.family.param_names(self.fit.costs.depth)
            centre, variant = self._best_start()
            params = {name: centre.get(name, 0.0) + trial.suggest_float(name, RANGE.low, RANGE.high) for name in names}
            value, _, attrs = self._try(params, variant, trial)
            for name, attr in attrs.items():
                trial.set_user_attr(name, attr)
            self.study.add_trial(draft.tell(trial, value, TrialState.FAIL if value is None else TrialState.COMPLETE))
            self.on_trial(self)

    @property
    def alive(self) -> bool:
        """Whether any trial has succeeded."""
        return bool(self._finished())

    @property
    def count(self) -> int:
        """Number of trials that have ended."""
        return len(self._trials())

    def best(self, among: int | None = None) -> TriedRecipe | None:
        """The finished trial with the smallest divergence, or cost of a cascade; None if there is none.

        `among`: consider only the first so many trials."""
        return min(self._finished(among), key=lambda trial: trial.figures.value, default=None)

    def lowest(self, among: int | None = None) -> float:
        """The smallest divergence among the first so many trials; infinite if none is finished."""
        best = self.best(among)
        return inf if best is None else best.figures.value

    def top(self, count: int) -> list[TriedRecipe]:
        """The best finished trials with different recipes."""
        by_text = {trial.text: trial for trial in self._finished()}
        return sorted(by_text.values(), key=lambda trial: trial.figures.value)[:count]

    @property
    def failures(self) -> list[Failed]:
        return [
            Failed(f"{self.family.title} at {self.ratio:.2f}x", trial.user_attrs["error"])
            for trial in self._trials()
            if trial.state == TrialState.FAIL and "error" in trial.user_attrs
        ]

    def _try(
        self, params: dict[str, float], variant: int, trial: optuna.Trial | None = None
    ) -> tuple[float | None, list[float], dict[str, Any]]:
        """The value of a trial for optuna, None if it failed; its values after each step; its user attributes.

        A `trial` ends at the step where its study prunes it.
        """
        choice: Variant = self.family.variants()[variant]
        attrs: dict[str, Any] = {"variant": variant, "params": params}
        curve: list[float] = []
        try:
            recipe = self.family.recipe(params, choice, self._fit(choice))
            attrs["recipe"] = str(recipe)
            for figures in self.evaluator.figures_by_step(recipe):
                curve.append(figures.value)
                if trial is not None and not self._full(figures):
                    trial.report(figures.value, len(curve) - 1)
                    if trial.should_prune():
                        break
        except (SieveError, RuntimeError, ValueError) as error:
            return None, [], {**attrs, "error": " ".join(str(error).split()) or type(error).__name__}
        attrs["figures"] = vars(figures)
        return figures.value * (1 if self._full(figures) else self._growth(len(curve))), curve, attrs

    def _fit(self, variant: Variant) -> Fit:
        """The budget minus the cost of the proposal."""
        if self.family.proposal is None:
            return self.fit
        layer = {"layer": variant["layer"]} if "layer" in variant else {}
        with_proposal = Recipe.of(PaPr(keep=0.5, **{**self.family.proposal, **layer}))
        cost = self.evaluator.proposal_macs(with_proposal) * self.fit.count_proposal
        if cost >= self.fit.target:
            raise RecipeError(
                f"{ranked_by(self.family.proposal)} alone takes {cost / 1e9:.3g} GMAC, and the budget for model and "
                f"proposal together is {self.fit.target / 1e9:.3g}."
            )
        return replace(self.fit, target=self.fit.target - cost)

    def _growth(self, steps: int) -> float:
        """The ratio of the divergence over all images to that over the first `steps` steps, in the first trial."""
        values = (trial.intermediate_values for trial in self._trials())
        first = next((list(divergences.values()) for divergences in values if divergences), [])
        return first[-1] / first[steps - 1] if len(first) >= steps and first[steps - 1] > 0 else 1.0

    def _best_start(self) -> tuple[Mapping[str, float], int]:
        """Parameters and variant of the best starting point; the defaults if none succeeded."""
        starts = [trial for trial in self._trials() if trial.user_attrs.get("start") and trial.value is not None]
        best = min(starts, key=lambda trial: trial.value or 0.0, default=None)
        return ({}, 0) if best is None else (best.user_attrs["params"], best.user_attrs["variant"])

    def _draft(self) -> optuna.Study:
        """A copy of the finished trials in memory, from which the next is sampled; it is added to `study` at its end.

        So an interruption leaves no unfinished trial. The sampler is new for each trial, with its own seed: it restores
        the state of CMA-ES from the trials, so that a resumed search gives the same trials as an uninterrupted one.
        """
        ended = self._trials()
        name = f"{self.seed} {self.study.study_name} {len(ended)}"
        sampler = optuna.samplers.CmaEsSampler(
            seed=zlib.crc32(name.encode()), popsize=POPULATION, warn_independent_sampling=False
        )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=0, n_min_trials=MIN_TRIALS)
        draft = optuna.create_study(sampler=sampler, pruner=pruner)
        draft.add_trials(ended)
        return draft

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))

    def _full(self, figures: Figures) -> bool:
        return figures.images == self.evaluator.steps[-1]

    def _finished(self, among: int | None = None) -> list[TriedRecipe]:
        trials = []
        for trial in self._trials()[:among]:
            figures = Figures(**trial.user_attrs["figures"]) if "figures" in trial.user_attrs else None
            if figures is not None and self._full(figures):
                params, variant = trial.user_attrs["params"], trial.user_attrs["variant"]
                trials.append(TriedRecipe(trial.user_attrs["recipe"], figures, params, variant))
        return trials
