"""The bundled models' training on scenes: an image loss, and a second one that labels every patch from the exact mask.

With the image's label alone a small ViT stays at chance for epochs; told for each patch whether it shows a digit, and
which, it starts at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.scenes import Scene, Scenes
from ..zoo.nano import CLASSES, MEAN, STD, NanoConvNet, nano_convnext, nano_vit
from . import loop
from .loop import Losses, Plan

BACKGROUND = CLASSES
"""The patch label of everything that is not the digit."""
UNSURE = -100
"""The patch label of a patch with so little of the digit that either answer would be right."""

PLANS = {
    "nano_convnet": Plan("nano_convnet", images=60_000, rate=3e-3),
    "nano_vit": Plan("nano_vit", images=240_000, rate=1.5e-3),
    "nano_convnext": Plan("nano_convnext", images=120_000, rate=2e-3),
}


class Answers(NamedTuple):
    """Logits of the images (B, 10) and of their patches (B, P, 11), and what the features cost, a scalar."""

    images: Tensor
    patches: Tensor
    price: Tensor


class NanoHost(nn.Module):
    """The nano ViT with a second head, on its patches, that is thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nano_vit()
        self.patches = nn.Linear(self.model.embed_dim, CLASSES + 1)
        for block in self.model.blocks:
            block.attn.fused_attn = False  # on CPUs the fused kernel's backward takes three times as long

    def forward(self, images: Tensor) -> Answers:
        tokens = self.model.forward_features(images)
        patches = self.patches(tokens[:, self.model.num_prefix_tokens :])
        return Answers(self.model.forward_head(tokens), patches, images.new_zeros(()))


class NanoProposal(nn.Module):
    """The nano ConvNet; its own classifier labels every cell, against a background whose logit is always 0.

    A cell without a digit needs no features then, and the mean of all features is part of the loss, so it has none: the
    mean over channels, which is PaPr's map, comes to be high where a digit is. Without that price it is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = NanoConvNet()

    def forward(self, images: Tensor) -> Answers:
        features = self.model.features(images)
        cells = self.model.fc(features.flatten(2).transpose(1, 2))
        return Answers(self.model.fc(self.model.pool(features).flatten(1)), F.pad(cells, (0, 1)), features.mean())


class NanoStages(nn.Module):
    """The nano ConvNeXt with a second head on the map of stage 2, where most blocks are; a cell is two patches wide."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nano_convnext()
        self.patches = nn.Linear(self.model.feature_info[2]["num_chs"], CLASSES + 1)

    def forward(self, images: Tensor) -> Answers:
        model, x = self.model, self.model.stem(images)
        for stage in model.stages[:-1]:
            x = stage(x)
        cells = self.patches(x.flatten(2).transpose(1, 2))
        return Answers(model.forward_head(model.norm_pre(model.stages[-1](x))), cells, images.new_zeros(()))


WRAPPED: dict[str, type[nn.Module]] = {
    "nano_convnet": NanoProposal,
    "nano_vit": NanoHost,
    "nano_convnext": NanoStages,
}


class ReadDigits:
    """The task: which digit is in the scene."""

    def __init__(self, name: str) -> None:
        self.module: Any = WRAPPED[name]()
        self._validation: Scene | None = None

    def batches(self, plan: Plan) -> Dataset[Any]:
        return _Batches(plan)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> Losses:
        images, labels, masks = batch
        answers = self.module(normalise(images.float() / 255))
        image_loss = F.cross_entropy(answers.images.float(), labels)
        loss = image_loss + patch_loss(answers.patches.float(), labels, masks) + answers.price.float()
        return Losses(loss, image_loss, (answers.images.argmax(1) == labels).float().mean())

    def top1(self, plan: Plan) -> float:
        if self._validation is None:
            self._validation = Scenes("validation", plan.validation, seed=plan.seed).batch(range(plan.validation))
        return top1(self.module.model, self._validation)


def train(plan: Plan, folder: Path, *, workers: int = 1, report: Callable[[dict[str, Any]], None] = print) -> Path:
    """A bundled model, by `loop.train`."""
    torch.manual_seed(plan.seed)
    return loop.train(plan, ReadDigits(plan.name), folder, workers=workers, report=report)


@torch.no_grad()
def top1(model: nn.Module, scenes: Scene, batch: int = 100) -> float:
    """Percentage of scenes whose digit `model`, set to eval mode, names."""
    model.eval()
    answers = torch.cat([model(normalise(images)).argmax(1) for images in scenes.images.split(batch)])
    return 100 * (answers == scenes.labels).float().mean().item()


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] as the bundled models read them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def patch_loss(logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of patch logits (B, P, 11); digit and background weigh about alike, though patches do not."""
    side = round((masks[0].numel() / logits.shape[1]) ** 0.5)
    share = F.avg_pool2d(masks[:, None].float(), side).flatten(1)
    wanted = torch.where(share > 0.15, labels[:, None], torch.where(share < 0.02, BACKGROUND, UNSURE))
    weight = torch.ones(CLASSES + 1)
    weight[BACKGROUND] = 0.15
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight, ignore_index=UNSURE)


class _Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Whole batches, so that scenes are made and sent together; images as bytes, a quarter of the way."""

    def __init__(self, plan: Plan) -> None:
        self.scenes, self.batch, self.steps = Scenes("train", plan.images, seed=plan.seed), plan.batch, plan.steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        start = index * self.batch
        images, labels, masks = self.scenes.batch(range(start, start + self.batch))
        return (images * 255).round().byte(), labels, masks
