"""The bundled models' training on scenes: an image loss, and a patch loss with labels from the exact mask.

With image labels alone a small ViT stays at chance for epochs; with a label for each patch, its digit or background, it
learns at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.scenes import Scene, Scenes
from ..errors import RecipeError
from ..zoo.nano import CLASSES, MEAN, STD, NanoConvNet, nano_convnext, nano_vit
from .config import TrainConfig
from .task import Loss, halved

BACKGROUND = CLASSES
"""Patch label of patches without the digit."""
UNSURE = -100
"""Patch label of patches with so little of the digit that they are not scored."""

VALIDATION_SCENES = 1000
"""Number of validation scenes."""
RATES = {"nano_convnet": 3e-3, "nano_vit": 1.5e-3, "nano_convnext": 2e-3}
SEEN = {"nano_convnet": 60_000, "nano_vit": 240_000, "nano_convnext": 120_000}
"""Number of scenes that each bundled model was trained on."""


class NanoOutputs(NamedTuple):
    """Logits of the images (B, 10) and of their patches (B, P, 11), and a penalty on the features, a scalar."""

    images: Tensor
    patches: Tensor
    price: Tensor


class NanoHost(nn.Module):
    """The nano ViT with a second head on its patches, which is dropped after training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nano_vit()
        self.patches = nn.Linear(self.model.embed_dim, CLASSES + 1)
        for block in self.model.blocks:
            block.attn.fused_attn = False  # on CPUs the fused kernel's backward takes three times as long

    def forward(self, images: Tensor) -> NanoOutputs:
        tokens = self.model.forward_features(images)
        patches = self.patches(tokens[:, self.model.num_prefix_tokens :])
        return NanoOutputs(self.model.forward_head(tokens), patches, images.new_zeros(()))


class NanoProposal(nn.Module):
    """The nano ConvNet; its own classifier labels every cell, and the logit of the background is always 0.

    A cell without a digit then needs no features. Since the mean of all features is part of the loss, these become 0,
    and the mean over channels, which is PaPr's map, is high where a digit is. Without that penalty it is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = NanoConvNet()

    def forward(self, images: Tensor) -> NanoOutputs:
        features = self.model.features(images)
        cells = self.model.fc(features.flatten(2).transpose(1, 2))
        return NanoOutputs(self.model.fc(self.model.pool(features).flatten(1)), F.pad(cells, (0, 1)), features.mean())


class NanoStages(nn.Module):
    """The nano ConvNeXt with a second head on the map of stage 2, which has most blocks; a cell is two patches wide."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nano_convnext()
        self.patches = nn.Linear(self.model.feature_info[2]["num_chs"], CLASSES + 1)

    def forward(self, images: Tensor) -> NanoOutputs:
        model, x = self.model, self.model.stem(images)
        for stage in model.stages[:-1]:
            x = stage(x)
        cells = self.patches(x.flatten(2).transpose(1, 2))
        return NanoOutputs(model.forward_head(model.norm_pre(model.stages[-1](x))), cells, images.new_zeros(()))


WRAPPED: dict[str, type[nn.Module]] = {
    "nano_convnet": NanoProposal,
    "nano_vit": NanoHost,
    "nano_convnext": NanoStages,
}


class ReadDigits:
    """The task: classify the digit in the scene.

    Args:
        name: name of a bundled model, which starts with random weights.
        scenes: number of training scenes.
        seed: random seed of the scenes.
        validation_scenes: number of validation scenes.
    """

    def __init__(self, name: str, scenes: int, seed: int = 0, validation_scenes: int = VALIDATION_SCENES) -> None:
        self.name, self.samples, self.seed, self.validation_scenes = name, scenes, seed, validation_scenes
        self.identity = f"{name}, {scenes} scenes of seed {seed}, {validation_scenes} looked at"
        self.module: Any = WRAPPED[name]()
        self._validation: Scene | None = None

    def batches(self, size: int, count: int, seed: int) -> Dataset[Any]:
        return _Batches(Scenes("train", size * count, seed=self.seed), size)

    def loss(self, module: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
        images, labels, masks = batch
        outputs = module(normalise(images.float() / 255))
        image_loss = F.cross_entropy(outputs.images.float(), labels)
        loss = image_loss + patch_loss(outputs.patches.float(), labels, masks) + outputs.price.float()
        accuracy = (outputs.images.argmax(1) == labels).float().mean()
        return Loss(loss, {"image_loss": image_loss, "train_top1": 100 * accuracy})

    def evaluate(self, module: Any) -> dict[str, float]:
        if self._validation is None:
            self._validation = Scenes("validation", self.validation_scenes, seed=self.seed).batch(
                range(self.validation_scenes)
            )
        return {"validation_top1": top1(module.model, self._validation)}

    def weights(self, module: Any) -> dict[str, Tensor]:
        return halved(module.model.state_dict())


def prepare(
    name: str, *, scenes: int | None = None, seed: int = 0, validation_scenes: int = VALIDATION_SCENES, workers: int = 1
) -> tuple[TrainConfig, ReadDigits]:
    """The configuration and task of a bundled model for `loop.train`; by default those of the bundled weights.

    Raises:
        RecipeError: there is no bundled model with that name.
    """
    if name not in WRAPPED:
        raise RecipeError(f"There is no bundled model {name!r}, only {', '.join(WRAPPED)}.")
    torch.manual_seed(seed)
    task = ReadDigits(name, SEEN[name] if scenes is None else scenes, seed, validation_scenes)
    config = TrainConfig(
        optimizer_args={"betas": (0.9, 0.99)}, lr=RATES[name], warmup=200, seed=seed, workers=workers
    )  # fmt: skip
    return config, task


@torch.no_grad()
def top1(model: nn.Module, scenes: Scene, batch: int = 100) -> float:
    """Percentage of scenes that `model` classifies correctly; sets it to eval mode."""
    model.eval()
    device = next(model.parameters()).device
    predicted = [model(normalise(images.to(device))).argmax(1).cpu() for images in scenes.images.split(batch)]
    return 100 * (torch.cat(predicted) == scenes.labels).float().mean().item()


def normalise(images: Tensor) -> Tensor:
    """Normalise images in [0, 1] for the bundled models."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def patch_loss(logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """Loss of patch logits (B, P, 11), for square patches, given labels (B,) and masks (B, H, W); see `cell_loss`."""
    side = round((masks[0].numel() / logits.shape[1]) ** 0.5)
    return cell_loss(logits, labels, F.avg_pool2d(masks[:, None].float(), side).flatten(1))


def cell_loss(logits: Tensor, labels: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of cells' logits (B, P, K + 1), the background last; the digit covers `share` (B, P) of each.

    The weights balance digit and background, since most cells are background.
    """
    background = logits.shape[-1] - 1
    targets = torch.where(share > 0.15, labels[:, None], torch.where(share < 0.02, background, UNSURE))
    weight = torch.ones(background + 1, device=logits.device)
    weight[background] = 0.15
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), weight, ignore_index=UNSURE)


class _Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches of scenes, generated and sent as a whole; images are uint8, a quarter of the size of float32."""

    def __init__(self, scenes: Scenes, size: int) -> None:
        self.scenes, self.size = scenes, size

    def __len__(self) -> int:
        return len(self.scenes) // self.size

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, masks = self.scenes.batch(range(number * self.size, (number + 1) * self.size))
        return (images * 255).round().byte(), labels, masks
