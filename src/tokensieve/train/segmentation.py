"""Training segmenters, without and with early exits for tokens (DToP).

DToP (Tang et al., ICCV 2023, arXiv 2308.01045, section 4.1) fine-tunes with exits a segmenter that was trained without
them (@Finetune), or trains with exits from the backbone's weights on (@Retrain). The exits are decided without
gradients; a later head's loss reaches an earlier head through the tokens that exited there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import center_crop

from ..data.segmentation import AsTensor, SegmentationSet
from ..errors import InputError, RecipeError
from ..measure import macs
from ..measure.scores import PixelClasses
from ..recipe import Recipe
from ..segmentation import Segmenter, slide
from ..segmentation.plan import SegmenterPlan, open_trained, plan_file
from ..stream import Sieved, sieve
from ..zoo.models import file_sha256
from .config import TrainConfig
from .crops import Augmentation, Crops, examine
from .loop import devices
from .segmentation_loss import losses
from .task import Loss, halved

HEADS = ("auxiliary_head", "decode_head", "neck")
"""Prefixes of the names of a segmenter's parameters outside of its backbone."""

WINDOWS = 9
"""Windows of a picture per batch in validation."""
COUNTED = 16
"""Number of pictures on whose centre crops the MACs of the log are counted."""


@dataclass(frozen=True)
class SegmentSettings:
    """Settings of a segmenter's training; the defaults are DToP's for short schedules (methods: its section 4.1).

    Attributes:
        steps: optimizer steps.
        batch_size: crops per step.
        lr: learning rate of the backbone.
        head_lr: learning rate of the heads, as a multiple of `lr`.
        weight_decay: weight decay of all parameters, biases and norms too.
        warmup: steps in which the learning rate grows linearly; then it falls as (1 - t)^0.9.
        drop_path: rate of stochastic depth in the backbone; 0 if it is not trained.
        trainable: "all" parameters, or only the "heads".
        precision: as in `TrainConfig`.
        seed: random seed of order, crops, initial weights of heads and dropout.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints; None: one at each validation.
        workers: data loader processes.
        augmentation: the random augmentation.
    """

    steps: int = 20_000
    batch_size: int = 16
    lr: float = 2e-5
    head_lr: float = 10.0
    weight_decay: float = 0.01
    warmup: int = 1500
    drop_path: float = 0.1
    trainable: Literal["all", "heads"] = "all"
    precision: str = "auto"
    seed: int = 0
    validate_every: int = 1000
    checkpoint_every: int | None = None
    workers: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"steps must be at least 1, not {self.steps}.")
        if self.trainable not in ("all", "heads"):
            raise RecipeError(f"trainable must be all or heads, not {self.trainable!r}.")
        if not 0 <= self.drop_path < 1:
            raise RecipeError(f"drop_path must lie in [0, 1), not {self.drop_path}.")

    def config(self, samples: int, names: list[str]) -> TrainConfig:
        """Settings of the loop; `names` are the names of the trainable parameters."""
        scales = {head: self.head_lr for head in HEADS if any(name.startswith(head) for name in names)}
        return TrainConfig(
            epochs=self.steps * self.batch_size / samples,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            decay_all=True,
            lr_scales=scales if self.head_lr != 1 else {},
            schedule="poly",
            warmup=min(self.warmup, self.steps // 2),
            clip=None,
            precision=self.precision,
            seed=self.seed,
            validate_every=self.validate_every,
            checkpoint_every=self.checkpoint_every,
            workers=self.workers,
        )


class Segment:
    """The task: predict the class of every pixel.

    Args:
        name: name of the files.
        module: a segmenter, sieved or not.
        plan: its architecture.
        known: training pictures.
        unseen: validation pictures.
        augmentation: augmentation of crops.
        identity: see `Task`.
        half: write the weights in half precision.
    """

    def __init__(
        self,
        name: str,
        module: Segmenter | Sieved,
        plan: SegmenterPlan,
        known: SegmentationSet,
        unseen: SegmentationSet,
        augmentation: Augmentation,
        identity: str = "",
        half: bool = False,
    ) -> None:
        assert plan.mean is not None
        assert plan.std is not None
        self.name, self.identity, self.samples = name, identity, len(known)
        self.module: Any = module
        self.plan, self.known, self.unseen, self.augmentation = plan, known, unseen, augmentation
        self.half = half
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (plan.mean, plan.std))
        self.unseen.transform = AsTensor(plan.mean, plan.std)

    def batches(self, size: int, count: int, seed: int) -> Dataset[Any]:
        assert self.plan.mean is not None
        fill = [round(255 * value) for value in self.plan.mean]
        return Crops(self.known, self.plan.crop, fill, self.augmentation, size, count, seed)

    def loss(self, module: Any, batch: tuple[Tensor, Tensor]) -> Loss:
        images, labels = batch
        images = (images.float() / 255 - self.mean.to(images.device)) / self.std.to(images.device)
        total, parts = losses(stages(module, images), labels)
        return Loss(total, parts)

    @torch.no_grad()
    def evaluate(self, module: Any) -> dict[str, float]:
        module.eval()
        device, scorer = next(module.parameters()).device, PixelClasses()
        crops = list[Tensor]()
        for index in range(len(self.unseen)):
            image, labels = self.unseen[index]
            image = image[None].to(device)
            scorer.update(slide(module, image, self.plan.crop, self.plan.stride, windows=WINDOWS).cpu(), labels[None])
            if len(crops) < COUNTED:
                crops.append(center_crop(image, list(self.plan.crop)))
        row = {f"validation_{name}": value for name, value in scorer.result().figures.items()}
        return row | {"gmac": macs(module, images=torch.cat(crops)) / 1e9}

    def weights(self, module: Any) -> dict[str, Tensor]:
        return halved(module.state_dict()) if self.half else dict(module.state_dict())


def stages(module: Any, images: Tensor) -> list[Any]:
    """The output of every head of a segmenter, sieved or not, on the whole grid; see `Segmenter.stages`."""
    return module(images, stages=True) if isinstance(module, Sieved) else module.stages(images)


def prepare(
    plan: SegmenterPlan | None,
    known: SegmentationSet,
    unseen: SegmentationSet,
    folder: Path,
    settings: SegmentSettings,
    *,
    base: str | None = None,
    backbone_weights: str | None = None,
    pretrained: bool = True,
    say: Callable[[str], object] = print,
    name: str | None = None,
    half: bool = False,
) -> tuple[TrainConfig, Segment]:
    """The configuration and task for `loop.train` of a segmenter without exits.

    It starts from a plan with a pretrained backbone, or from a trained `base`: weights with their plan beside them.
    Every picture is read once, to find unusable ones. The plan is written to `folder` as NAME.json; NAME is `name`, or
    the head's name. With `half` the weights are written in half precision.

    Raises:
        InputError: pictures or labels that cannot be used, different classes in the two sets, weights that cannot be
            loaded; both plan and base, or neither.
        RecipeError, UnsupportedHost: a segmenter that cannot be built; see `SegmenterPlan.build`.
    """
    return _prepare(plan, None, base, known, unseen, folder, settings, backbone_weights, pretrained, say, name, half)


def prepare_dtop(
    plan: SegmenterPlan | None,
    recipe: Any,
    known: SegmentationSet,
    unseen: SegmentationSet,
    folder: Path,
    settings: SegmentSettings,
    *,
    base: str | None = None,
    backbone_weights: str | None = None,
    pretrained: bool = True,
    say: Callable[[str], object] = print,
) -> tuple[TrainConfig, Segment]:
    """The configuration and task for `loop.train` of a segmenter with early exits.

    Args:
        plan: the segmenter's architecture, for @Retrain; None: that of `base`.
        recipe: a recipe with `dtop`, alone or with other methods.
        base: weights that `prepare` trained, with their plan beside them, for @Finetune.

    Other arguments as for `prepare`.

    Raises:
        InputError: as for `prepare`.
        RecipeError: a recipe in which no token exits.
    """
    return _prepare(plan, Recipe.of(recipe), base, known, unseen, folder, settings, backbone_weights, pretrained, say)


def _prepare(
    plan: SegmenterPlan | None,
    recipe: Recipe | None,
    base: str | None,
    known: SegmentationSet,
    unseen: SegmentationSet,
    folder: Path,
    settings: SegmentSettings,
    backbone_weights: str | None,
    pretrained: bool,
    say: Callable[[str], object],
    name: str | None = None,
    half: bool = False,
) -> tuple[TrainConfig, Segment]:
    if (plan is None) == (base is None):
        raise InputError("A segmenter is trained from a trained base, or from a plan: give one of them.")
    state = devices()
    if not state.is_main_process:
        say = lambda sentence: None  # noqa: E731  (only the first process prints)
    drop_path = settings.drop_path if settings.trainable == "all" else 0.0
    torch.manual_seed(settings.seed)
    if base is not None:
        segmenter, plan = open_trained(base, drop_path=drop_path)
    else:
        assert plan is not None
        segmenter, plan = plan.build(backbone_weights=backbone_weights, pretrained=pretrained, drop_path=drop_path)
    for use, pictures in (("training", known), ("validation", unseen)):
        if pictures.classes != plan.classes:
            raise InputError(
                f"The segmenter has {len(plan.classes)} classes, and the {use} set has {len(pictures.classes)} or "
                "others: the sets must have its classes, in the same order."
            )
    if settings.trainable == "heads":
        segmenter.backbone.requires_grad_(False)
    module: Segmenter | Sieved = segmenter
    name = name or (plan.head if recipe is None else f"{plan.head}_dtop")
    if recipe is not None:
        module = sieve(segmenter, recipe)
        if not any(method.reads_exits for _, method in module.plan.methods):
            raise RecipeError(
                f'"{recipe}" lets no token exit this segmenter early: give dtop a threshold below 1, such as '
                "dtop(threshold=0.95)."
            )
    _check_crop_size(module, plan)
    say(f"reading {len(known)} and {len(unseen)} pictures with their labels")
    prints = [examine(pictures, settings.workers) for pictures in (known, unseen)]
    start_weights = base or backbone_weights
    identity = json.dumps(
        {
            "plan": asdict(plan),
            "recipe": None if recipe is None else str(recipe),
            "trainable": settings.trainable,
            "drop_path": drop_path,
            "augmentation": asdict(settings.augmentation),
            "begun": file_sha256(start_weights) if start_weights else f"pretrained {pretrained}",
            "pictures": prints,
        },
        sort_keys=True,
    )
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(plan_file(folder / f"{name}.safetensors"))
        if recipe is not None:
            recipe.save(folder / f"{name}.recipe.json")
    names = [parameter_name for parameter_name, parameter in segmenter.named_parameters() if parameter.requires_grad]
    task = Segment(name, module, plan, known, unseen, settings.augmentation, identity, half)
    return settings.config(len(known), names), task


@torch.no_grad()
def _check_crop_size(module: nn.Module, plan: SegmenterPlan) -> None:
    """Run the segmenter on a blank crop. Raises `InputError` if it does not accept crops of this size."""
    module.eval()(torch.zeros(1, 3, *plan.crop))
