"""The architecture of a segmenter as plain JSON, written beside trained weights so that they can be opened again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import timm

from .._files import draft
from ..errors import InputError, RecipeError, nearest
from ..zoo import bundled_weights, create
from ..zoo.models import load_strictly, read_weights
from .build import linear, segvit, segvit_v1, segvit_v2, setr
from .segmenter import Segmenter

HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "segvit": (segvit, {}),
    "segvit_v1": (segvit_v1, {}),
    "segvit_v2": (segvit_v2, {}),
    "setr_naive": (setr, {"form": "naive"}),
    "setr_pup": (setr, {"form": "pup"}),
    "setr_mla": (setr, {"form": "mla"}),
    "linear": (linear, {}),
}
"""Name of a head -> the function that builds the segmenter, and arguments for it."""
BUNDLED = ("nano_segmenter",)
"""Segmenters whose weights are part of the package; `tokensieve train nano` trains them."""


@dataclass(frozen=True)
class SegmenterPlan:
    """The architecture of a segmenter, with its classes, crop size and normalisation.

    Attributes:
        backbone: a model's name; see `tokensieve.zoo.create`.
        classes: names of the classes, in order.
        head: one of `HEADS`.
        head_args: arguments of the function that builds it, such as {"exits": [5, 7, 11], "width": 192, "heads": 3}.
        backbone_args: arguments of the backbone's constructor; None: dynamic_img_size for timm's models.
        crop: height and width in pixels of the windows that it reads.
        stride: vertical and horizontal step between windows in pixels.
        mean, std: the normalisation of its images; None: that of the backbone.
    """

    backbone: str
    classes: tuple[str, ...]
    head: str = "segvit"
    head_args: Mapping[str, Any] = field(default_factory=dict)
    backbone_args: Mapping[str, Any] | None = None
    crop: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise RecipeError(f"There is no head {self.head!r}{nearest(self.head, HEADS)}: one of {', '.join(HEADS)}.")
        for name in ("classes", "crop", "stride", "mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.backbone_args is None:
            object.__setattr__(
                self, "backbone_args", {"dynamic_img_size": True} if timm.is_model(self.backbone) else {}
            )
        for name in ("crop", "stride"):
            sides = getattr(self, name)
            if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
                raise RecipeError(f"{name} must be a height and a width in pixels, not {sides}.")

    def build(
        self,
        *,
        backbone_weights: str | os.PathLike[str] | None = None,
        pretrained: bool = False,
        drop_path: float = 0.0,
    ) -> tuple[Segmenter, SegmenterPlan]:
        """Build the segmenter, its heads with random weights; complete this plan by the backbone's normalisation.

        The segmenter has its class names, crop size and normalisation as attributes, like timm's models.

        Args:
            backbone_weights: a file of the backbone's weights.
            pretrained: without such a file, load the library's pretrained weights; else they are random.
            drop_path: rate of stochastic depth in training, for backbones whose constructor takes `drop_path_rate`.

        Raises:
            RecipeError: an unknown backbone, or arguments that the backbone or the head does not take.
            InputError: weights that cannot be loaded; levels out of range.
            UnsupportedHost: the backbone is not a plain vision transformer.
        """
        args = {**(self.backbone_args or {}), **({"drop_path_rate": drop_path} if drop_path else {})}
        loaded = create(self.backbone, weights=backbone_weights, pretrained=pretrained, args=args)
        make, defaults = HEADS[self.head]
        try:
            segmenter = make(loaded.model, len(self.classes), **defaults, **self.head_args)
        except TypeError as error:
            raise RecipeError(f"The head {self.head} cannot be built with {dict(self.head_args)}: {error}.") from error
        plan = SegmenterPlan(**(asdict(self) | {"mean": self.mean or loaded.mean, "std": self.std or loaded.std}))
        segmenter.class_names, segmenter.crop = plan.classes, plan.crop
        segmenter.pretrained_cfg = {
            "input_size": (3, *plan.crop), "mean": plan.mean, "std": plan.std, "interpolation": "bicubic",
            "crop_pct": 1.0, "crop_mode": "center",
        }  # fmt: skip
        return segmenter, plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a JSON file."""
        with draft(path) as file:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SegmenterPlan:
        """Read the file of `save`. Raises `InputError` for anything else."""
        try:
            content = json.loads(Path(path).read_text())
            known = {field.name for field in fields(cls)}
            if not isinstance(content, dict) or not {"backbone", "classes"} <= content.keys() <= known:
                raise ValueError("it is not the plan of a segmenter")
            return cls(**content)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read as the plan of a segmenter: {error}.") from error


def plan_file(weights: str | os.PathLike[str]) -> Path:
    """The path of the plan of trained weights: NAME.json beside NAME.safetensors."""
    return Path(weights).with_suffix(".json")


def trained_files(name: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """Paths of weights and plan of a bundled segmenter or NAME.safetensors, existing or not; None for other names."""
    weights = bundled_weights(os.fspath(name)) if name in BUNDLED else Path(name)
    return (weights, plan_file(weights)) if weights.suffix == ".safetensors" else None


def open_trained(
    weights: str | os.PathLike[str], *, drop_path: float = 0.0, pretrained: bool = True
) -> tuple[Segmenter, SegmenterPlan]:
    """Open a trained segmenter, NAME.safetensors with NAME.json beside it, in evaluation mode.

    Args:
        weights: the file; or the name of a bundled segmenter, "nano_segmenter".
        drop_path: rate of stochastic depth in further training.
        pretrained: False leaves its weights random, to measure cost only.

    Returns:
        The segmenter, with its class names, crop size and normalisation as attributes, and its plan.

    Raises:
        InputError: files that are missing or damaged, or weights of another segmenter.
    """
    file, plan_path = trained_files(weights) or (Path(weights), plan_file(weights))
    plan = SegmenterPlan.load(plan_path)
    segmenter, plan = plan.build(drop_path=drop_path)
    if pretrained:
        load_strictly(segmenter, read_weights(file), f"{file.name} into {plan.head} on {plan.backbone}")
    return segmenter.eval(), plan


def trained(weights: str) -> Segmenter:
    """The segmenter of `open_trained` without its plan, to be used as an import path ("package.module:function")."""
    return open_trained(weights)[0]
