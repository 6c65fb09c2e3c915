"""The result of a search: recipes with their cost and divergence, and the recommended one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..cascade_recipe import CascadeRecipe
from ..measure.comparison import KINDS, divergence_title
from ..measure.intervals import Interval
from ..methods import Adaptive
from ..recipe import Recipe
from .evaluator import Figures

VERSION = 2


@dataclass(frozen=True)
class Measured:
    """Dense time divided by the recipe's, proposal included, all recipes interleaved; with the 10th and 90th
    percentile."""

    ratio: float
    low: float
    high: float
    batch: int
    attempts: int
    """Number of measurements until the machine was quiet, or the limit was reached."""
    others: float
    """Number of cores that other processes kept busy during the measurement."""
    busy: str
    """Why the figure is unreliable; empty if the machine was quiet."""


@dataclass(frozen=True)
class Point:
    """One recipe of a front."""

    recipe: Recipe | CascadeRecipe
    family: str
    """Its family: the name of a single method, or of a scheduled family."""
    proposal: str | None
    """The network that ranks patches, if any."""
    kind: Literal["searched", "single", "corrected", "cascade"]
    budget: float
    """The saving factor that the recipe was scaled to."""
    macs: float
    """MACs per image, with the proposal's unless the search left them out; if tokens exit early, the mean over the
    search images."""
    ratio: float
    """Dense MACs divided by `macs`."""
    search: Figures
    """Figures on the search images."""
    heldout: Figures | None
    """Figures on the held-out images; None if there are none."""
    speed: Measured | None = None
    dominated: bool = False
    """Whether another recipe does not cost more and loses less on the search images."""
    heldout_macs: float | None = None
    """Mean MACs over the held-out images if tokens exit early; None if MACs do not depend on the image."""

    @property
    def varies(self) -> bool:
        """Whether the number of tokens varies between images, which graphs do not support."""
        return any(isinstance(method, Adaptive) for method in self.recipe)

    @property
    def divergence(self) -> float:
        """Divergence on the search images: KL in nats with classes, relative error for depth maps, else 1 - cosine."""
        return self.search.divergence

    @property
    def kl(self) -> float | None:
        """The KL divergence of a model with classes, for class maps averaged over pixels; None for other models."""
        return self.search.divergence if KINDS[self.search.kind].classes else None

    @property
    def agreement(self) -> float | None:
        """As `Figures.agreement`, on the search images."""
        return self.search.agreement

    def record(self, folder: Path | None = None) -> dict[str, Any]:
        """The point as plain JSON, with paths relative to `folder`, or to the working directory."""
        recipe = json.loads(self.recipe.to_json(folder))
        return {**asdict_flat(self), "recipe": recipe["text"], "recipe_json": recipe, "title": self.title}

    @property
    def title(self) -> str:
        if isinstance(self.recipe, CascadeRecipe):
            return f"{self.family}, {100 * self.budget:g} % the same"
        return self.family if self.proposal is None else f"{self.family} with {self.proposal}"


def asdict_flat(point: Point) -> dict[str, Any]:
    """A point's fields as plain JSON, without the recipe."""
    plain: dict[str, Any] = {name: value for name, value in vars(point).items() if name != "recipe"}
    for name, value in plain.items():
        if isinstance(value, Measured):
            plain[name] = asdict(value)
        elif isinstance(value, Figures):
            ends = value.agreement_interval
            hidden = ("interval", "cost")
            fields = {key: field_value for key, field_value in vars(value).items() if key not in hidden}
            plain[name] = fields | {f"agreement_{end}": ends and getattr(ends, end) for end in Interval._fields}
    return plain


@dataclass(frozen=True)
class Failed:
    """A recipe that could not be evaluated, and the reason; the search continued."""

    study: str
    reason: str


@dataclass(frozen=True)
class Front:
    """Recipes from cheap to expensive, and the recommended one."""

    points: tuple[Point, ...]
    """The best recipe of each family at each budget, by rising MACs."""
    best: Point
    """The recommended recipe: of those that meet the budget the one with the smallest divergence on the search images;
    for an allowed divergence the cheapest within it, for a requested agreement the cheapest that is certified to keep
    it."""
    wanted: Mapping[str, float]
    """The budget: {"macs": 1.9}, {"time": 1.5}, {"divergence": 0.05} or {"agree": 0.98}."""
    reached: bool
    objective: str
    """The minimised divergence, a `divergence_name` of `measure.comparison`: `kl` for classifiers, `1 - cosine` for
    embeddings, `kl per pixel` for segmenters, `relative error` for depth."""
    dense_macs: float
    dense_accuracy: Mapping[str, float | None]
    """Accuracy of the dense model in percent on `search` and `heldout` images; None without labels."""
    finalists: tuple[Point, ...]
    """The ten best recipes at the budget of `best`, by their divergence on the search images, with their figures on the
    held-out images, which show how reliable the order is. The choice of `best` does not use them, so that its held-out
    figures stay unbiased."""
    trials: int
    corrected: Point | None = None
    """`best` with a correction of the head's input, see `tokensieve.correct`; None if not requested, or if it does not
    help. Its figures on the search images are cross-validated."""
    stopped: str | None = None
    """Why the search ended early: `timeout` or `interrupted`."""
    failures: tuple[Failed, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Name of each proposal or family that could not be tried -> the reason."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Any:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def recommended(self) -> Point:
        """`corrected` if it loses less on the held-out images than `best`, or if there are none; else `best`."""
        point = self.corrected
        if point is None or (
            point.heldout is not None
            and self.best.heldout is not None
            and point.heldout.divergence >= self.best.heldout.divergence
        ):
            return self.best
        return point

    @property
    def pareto(self) -> tuple[Point, ...]:
        """The points that are not dominated: no other point is better in both MACs and divergence."""
        return tuple(point for point in self.points if not point.dominated)

    def to_json(self, folder: Path | None = None) -> str:
        """JSON of everything, with a version and with paths relative to `folder`, or to the working directory."""
        return json.dumps(self.record(folder), indent=2)

    def record(self, folder: Path | None = None) -> dict[str, Any]:
        """Everything as plain JSON, paths as in `to_json`."""
        return {
            "tokensieve_front": VERSION,
            "wanted": dict(self.wanted),
            "reached": self.reached,
            "objective": self.objective,
            "dense": {"macs": self.dense_macs, "accuracy": dict(self.dense_accuracy)},
            "best": self.best.record(folder),
            "corrected": None if self.corrected is None else self.corrected.record(folder),
            "points": [point.record(folder) for point in self.points],
            "finalists": [point.record(folder) for point in self.finalists],
            "trials": self.trials,
            "stopped": self.stopped,
            "failures": [asdict(failed) for failed in self.failures],
            "left_out": dict(self.left_out),
            "settings": dict(self.settings),
            "summary": self.summary,
        }

    @property
    def unit(self) -> str:
        """The name of the divergence as it is written in sentences."""
        return divergence_title(self.objective)

    @property
    def summary(self) -> str:
        """A paragraph about the result: the best recipe, its loss and speed, and whether a proposal helps."""
        from ..show.front_text import describe

        return describe(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write best.json, the recommended recipe, a file for every point of the front, front.csv, .json and .png.

        The folder is made if its parent exists; files of the same names are replaced. Paths of weights are relative to
        it. The correction.safetensors of an earlier search is removed, unless a recipe in the folder names it.

        Raises:
            InputError: it cannot be written.
        """
        from ..show.front_files import save_front

        return save_front(self, folder)


def mark_dominated(points: list[Point]) -> list[Point]:
    """The points by rising MACs, with `dominated` set for those that another one beats in both MACs and divergence.

    A recipe with a varying number of tokens never dominates one with a fixed number, which graphs support.
    """
    ordered = sorted(points, key=lambda point: (point.macs, point.divergence))
    least, least_fixed, marked = float("inf"), float("inf"), []
    for point in ordered:
        marked.append(replace(point, dominated=point.divergence >= (least if point.varies else least_fixed)))
        least = min(least, point.divergence)
        least_fixed = least_fixed if point.varies else min(least_fixed, point.divergence)
    return marked
