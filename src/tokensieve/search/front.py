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
    """Dense time over the recipe's, proposal included, all recipes interleaved; low and high are percentiles 10, 90."""

    ratio: float
    low: float
    high: float
    batch: int
    attempts: int
    """How often it was measured before the machine was quiet, or this was given up."""
    others: float
    """Cores that other processes kept busy meanwhile."""
    busy: str
    """Why the figure is not to be relied on; empty where the machine was quiet."""


@dataclass(frozen=True)
class Point:
    """One recipe of a front."""

    recipe: Recipe | CascadeRecipe
    family: str
    """The family it comes from: the name of a method alone, or of a scheduled family."""
    proposal: str | None
    """The network that ranks patches for it, if any."""
    kind: Literal["searched", "single", "corrected", "cascade"]
    budget: float
    """The saving factor that it was made to meet."""
    macs: float
    """An image, the proposal's included unless the search left it out; where tokens leave early, the mean over
    the search images."""
    ratio: float
    """Dense MACs over these."""
    search: Figures
    """On the images that the search saw."""
    heldout: Figures | None
    """On the images that it did not see; None where none were held out."""
    speed: Measured | None = None
    dominated: bool = False
    """Another recipe costs no more and loses less on the search images."""
    heldout_macs: float | None = None
    """Where tokens leave early, the mean over the images that the search did not see; else MACs are of any image."""

    @property
    def varies(self) -> bool:
        """Whether each image keeps a number of tokens of its own, which graphs cannot take."""
        return any(isinstance(method, Adaptive) for method in self.recipe)

    @property
    def divergence(self) -> float:
        """Of the search images: KL in nats with classes, relative error of depth maps, else 1 - cosine."""
        return self.search.divergence

    @property
    def kl(self) -> float | None:
        """The divergence of a model with classes, of class maps the mean over the pixels; None of other models."""
        return self.search.divergence if KINDS[self.search.kind].classes else None

    @property
    def agreement(self) -> float | None:
        """As `Figures.agreement`, on the search images."""
        return self.search.agreement

    def record(self, folder: Path | None = None) -> dict[str, Any]:
        """As plain JSON, with paths for a file in `folder`, or for the working directory."""
        recipe = json.loads(self.recipe.to_json(folder))
        return {**asdict_flat(self), "recipe": recipe["text"], "recipe_json": recipe, "title": self.title}

    @property
    def title(self) -> str:
        if isinstance(self.recipe, CascadeRecipe):
            return f"{self.family}, {100 * self.budget:g} % the same"
        return self.family if self.proposal is None else f"{self.family} with {self.proposal}"


def asdict_flat(point: Point) -> dict[str, Any]:
    """A point's fields as plain JSON, the recipe left to its own writers."""
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
    """A recipe that could not be judged, and why; the search went on."""

    study: str
    reason: str


@dataclass(frozen=True)
class Front:
    """Recipes from cheap to dear, and the recommended one."""

    points: tuple[Point, ...]
    """The best of each family at each budget, by rising MACs."""
    best: Point
    """The recommended one: of those that meet the wanted budget the one of the smallest divergence on the search
    images; for an allowed divergence the cheapest that keeps to it, for a wanted agreement the cheapest that keeps it
    with certainty."""
    wanted: Mapping[str, float]
    """The budget: {"macs": 1.9}, {"time": 1.5}, {"divergence": 0.05} or {"agree": 0.98}."""
    reached: bool
    objective: str
    """The minimised divergence, a `divergence_name` of `measure.comparison`: `kl` for classifiers, `1 - cosine` for
    embeddings, `kl per pixel` for segmenters, `relative error` for depth."""
    dense_macs: float
    dense_accuracy: Mapping[str, float | None]
    """Of the dense model, percent, on `search` and `heldout` images; None without labels."""
    finalists: tuple[Point, ...]
    """The ten best at the recommended one's budget, by their search divergence, with what they lose on the held-out
    images: how far the order can be trusted. It does not change the choice, which would make those figures a choice's
    too."""
    trials: int
    corrected: Point | None = None
    """`best` with a correction of what the head reads, see `tokensieve.correct`; None where none was asked for, or
    none helps. Its figures on the search images are those of corrections that were fitted without them."""
    stopped: str | None = None
    """Why the search ended early: `timeout` or `interrupted`."""
    failures: tuple[Failed, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Proposals and families that could not take part, and why."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Any:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def recommended(self) -> Point:
        """The corrected best where that loses less on the held-out images, or none were held out; else the best."""
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
        """The points that no other one beats in both MACs and divergence."""
        return tuple(point for point in self.points if not point.dominated)

    def to_json(self, folder: Path | None = None) -> str:
        """Everything, with a version, with paths for a file in `folder`, or for the working directory."""
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
        """The divergence's name in a sentence."""
        return divergence_title(self.objective)

    @property
    def summary(self) -> str:
        """A paragraph in plain words: the best recipe, and whether a proposal paid."""
        from ..show.front_text import describe

        return describe(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write best.json, the recommended recipe, a file for every point of the front, front.csv, .json and .png.

        The folder is made if its parent is there; files of the same names are replaced. Paths of weights are relative
        to it. The correction.safetensors of a search that was saved here before goes, unless a recipe here names it.

        Raises:
            InputError: it cannot be written.
        """
        from ..show.front_files import save_front

        return save_front(self, folder)


def mark_dominated(points: list[Point]) -> list[Point]:
    """The same points, by rising MACs, those marked that another one beats in both MACs and divergence.

    One whose count varies between images beats none that has a fixed one, which graphs can take.
    """
    ordered = sorted(points, key=lambda point: (point.macs, point.divergence))
    least, least_fixed, marked = float("inf"), float("inf"), []
    for point in ordered:
        marked.append(replace(point, dominated=point.divergence >= (least if point.varies else least_fixed)))
        least = min(least, point.divergence)
        least_fixed = least_fixed if point.varies else min(least_fixed, point.divergence)
    return marked
