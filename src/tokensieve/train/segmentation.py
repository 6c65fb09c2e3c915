"""Training segmenters: a base, and the same with tokens that leave early (DToP).

DToP (Tang et al., ICCV 2023, arXiv 2308.01045, section 4.1) trains a segmenter whose heads have been trained without
exits once more with them (@Finetune), or from the backbone's weights on with exits from the start (@Retrain). Which
tokens leave is decided without gradients; a later head's loss reaches an earlier head through tokens that left there.
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
"""How the names of a segmenter's parameters begin that are no backbone's."""

WINDOWS = 9
"""Windows of a picture that are read at once in validation."""
COUNTED = 16
"""Pictures whose middle crops the MACs of the log are counted on."""


@dataclass(frozen=True)
class SegmentSettings:
    """Settings of a segmenter's training; the defaults are DToP's for short schedules (methods: its section 4.1).

    Attributes:
        steps: of the optimizer.
        batch_size: crops a step.
        lr: of the backbone; heads have `head_lr` times as much.
        head_lr: see above.
        weight_decay: of all parameters, biases and norms too.
        warmup: steps in which the learning rate grows linearly; then it falls as (1 - t)^0.9.
        drop_path: rate of stochastic depth in the backbone; 0 where it is not trained.
        trainable: "all", or "heads" alone.
        precision: of `TrainConfig`.
        seed: of order, crops, first weights of heads and dropout.
        validate_every: steps.
        checkpoint_every: steps; None writes one at each validation.
        workers: processes that make batches.
        augmentation: how pictures are changed at random.
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
        """For the loop; `names` are those of the trainable parameters."""
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
    """The task: the class of every pixel.

    Args:
        name: of the files.
        module: a segmenter, or one that was sieved.
        plan: how it is built.
        known: pictures to learn from.
        unseen: pictures it is validated on.
        augmentation: of crops.
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
    """The output of every head on the whole grid, of a segmenter or of a sieved one; see `Segmenter.stages`."""
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
    """Everything `loop.train` needs for a segmenter without exits: from a plan, its backbone pretrained, or on from a
    trained `base`, weights with their plan beside them, where plan is None.

    Every picture is read once, to see that it can be. How the segmenter is built is written to `folder` as NAME.json;
    NAME is `name`, or the head's. `half` has the weights written in half precision.

    Raises:
        InputError: pictures or labels that cannot be used, other classes in the two sets, weights that cannot be had;
            both plan and base, or neither.
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
    """Everything `loop.train` needs for a segmenter that tokens leave.

    Args:
        plan: how the segmenter is built, for @Retrain; None takes that of `base`.
        recipe: a recipe with `dtop`, alone or with others.
        base: weights that `prepare` trained, with their plan beside them, for @Finetune.

    Raises:
        InputError: as `prepare`; both plan and base, or neither.
        RecipeError: a recipe that lets no token leave.
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
        say = lambda sentence: None  # noqa: E731  (the first process speaks for all)
    drop_path = settings.drop_path if settings.trainable == "all" else 0.0
    torch.manual_seed(settings.seed)
    if base is not None:
        segmenter, plan = open_trained(base, drop_path=drop_path)
    else:
        assert plan is not None
        segmenter, plan = plan.build(backbone_weights=backbone_weights, pretrained=pretrained, drop_path=drop_path)
    for use, pictures in (("learnt from", known), ("validated on", unseen)):
        if pictures.classes != plan.classes:
            raise InputError(
                f"The segmenter has {len(plan.classes)} classes, and the set it is {use} {len(pictures.classes)} or "
                "others: give it sets of its classes, in their order."
            )
    if settings.trainable == "heads":
        segmenter.backbone.requires_grad_(False)
    module: Segmenter | Sieved = segmenter
    name = name or (plan.head if recipe is None else f"{plan.head}_dtop")
    if recipe is not None:
        module = sieve(segmenter, recipe)
        if not any(method.reads_exits for _, method in module.plan.methods):
            raise RecipeError(
                f'"{recipe}" lets no token leave this segmenter: give dtop a threshold below 1, such as '
                "dtop(threshold=0.95)."
            )
    _answers(module, plan)
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
def _answers(module: nn.Module, plan: SegmenterPlan) -> None:
    """Raises InputError where the segmenter does not read crops of this size."""
    module.eval()(torch.zeros(1, 3, *plan.crop))
