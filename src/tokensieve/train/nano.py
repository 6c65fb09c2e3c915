"""The bundled pair's training on scenes: an image loss, and a second one that labels every patch from the exact mask.

With the image's label alone a small ViT stays at chance for epochs; told for each patch whether it shows a digit, and
which, it starts at once.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.scenes import Scene, Scenes
from ..errors import InputError
from ..files import draft
from ..zoo.nano import CLASSES, MEAN, STD, NanoConvNet, nano_vit

PATCH = 8
BACKGROUND = CLASSES
"""The patch label of everything that is not the digit."""
UNSURE = -100
"""The patch label of a patch with so little of the digit that either answer would be right."""


@dataclass(frozen=True)
class Plan:
    """How one model is trained: AdamW, linear warm-up, then a cosine to zero."""

    name: str
    scenes: int
    """Scenes seen, each once."""
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.05
    warmup: int = 200
    """Steps."""
    seed: int = 0
    every: int = 250
    """Steps between validations and checkpoints."""
    validation: int = 1000
    """Scenes of the validation split that are looked at on the way."""

    @property
    def steps(self) -> int:
        return max(1, self.scenes // self.batch)


PLANS = {
    "nano_convnet": Plan("nano_convnet", scenes=60_000, rate=3e-3),
    "nano_vit": Plan("nano_vit", scenes=240_000, rate=1.5e-3),
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


WRAPPED: dict[str, type[nn.Module]] = {"nano_convnet": NanoProposal, "nano_vit": NanoHost}


def train(plan: Plan, folder: Path, *, workers: int = 1, report: Callable[[dict[str, Any]], None] = print) -> Path:
    """Train by plan, or go on from the checkpoint in `folder`; returns the file of weights, fp16 safetensors.

    Beside it `NAME.csv` gets a row at each validation: step, scenes, seconds, losses, accuracies.

    Raises:
        InputError: the folder's checkpoint was made by another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{plan.name}.checkpoint.pt", folder / f"{plan.name}.csv"
    torch.manual_seed(plan.seed)
    module: Any = WRAPPED[plan.name]()
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": plan.decay},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99))
    step, seconds, rows = 0, 0.0, list[dict[str, Any]]()
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["plan"] != asdict(plan):
            raise InputError(f"{checkpoint} was made by another plan: give another folder, or delete it to start over.")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, rows = state["step"], state["seconds"], state["rows"]

    validation = Scenes("validation", plan.validation, seed=plan.seed).batch(range(plan.validation))
    half = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    start, sums, since = perf_counter() - seconds, torch.zeros(3), 0
    for images, labels, masks in _batches(plan, step, workers):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(step, plan)
        module.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            answers = module(normalise(images))
        image_loss = F.cross_entropy(answers.images.float(), labels)
        loss = image_loss + patch_loss(answers.patches.float(), labels, masks) + answers.price.float()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, since = step + 1, since + 1
        right = (answers.images.argmax(1) == labels).float().mean()
        sums += torch.stack([loss.detach(), image_loss.detach(), right])
        if step % plan.every == 0 or step == plan.steps:
            mean = (sums / since).tolist()
            sums, since = torch.zeros(3), 0
            row = {"step": step, "scenes": step * plan.batch, "seconds": perf_counter() - start}
            row |= {"loss": mean[0], "image_loss": mean[1], "train_top1": 100 * mean[2]}
            row["validation_top1"] = top1(module.model, validation)
            rows.append(row)
            report({"model": plan.name, "steps": plan.steps, **row})
            state = {"plan": asdict(plan), "module": module.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step, "seconds": row["seconds"], "rows": rows}
            with draft(checkpoint) as file:
                torch.save(state, file)
            with draft(log) as file:
                _write_csv(file, rows)
    weights = folder / f"{plan.name}.safetensors"
    half_state = {
        key: value.half() if value.is_floating_point() else value for key, value in module.model.state_dict().items()
    }
    with draft(weights) as file:
        save_file(half_state, file)
    return weights


@torch.no_grad()
def top1(model: nn.Module, scenes: Scene, batch: int = 100) -> float:
    """Percentage of scenes whose digit `model`, set to eval mode, names."""
    model.eval()
    answers = torch.cat([model(normalise(images)).argmax(1) for images in scenes.images.split(batch)])
    return 100 * (answers == scenes.labels).float().mean().item()


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] as the pair reads them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def patch_loss(logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of patch logits (B, P, 11); digit and background weigh about alike, though patches do not."""
    share = F.avg_pool2d(masks[:, None].float(), PATCH).flatten(1)
    wanted = torch.where(share > 0.15, labels[:, None], torch.where(share < 0.02, BACKGROUND, UNSURE))
    weight = torch.ones(CLASSES + 1)
    weight[BACKGROUND] = 0.15
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight, ignore_index=UNSURE)


class _Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Whole batches, so that scenes are made and sent together; images as bytes, a quarter of the way."""

    def __init__(self, plan: Plan, first: int) -> None:
        self.scenes, self.batch, self.first, self.steps = (
            Scenes("train", plan.scenes, seed=plan.seed),
            plan.batch,
            first,
            plan.steps,
        )

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        start = (self.first + index) * self.batch
        images, labels, masks = self.scenes.batch(range(start, start + self.batch))
        return (images * 255).round().byte(), labels, masks


def _batches(plan: Plan, first: int, workers: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The batches from step `first` on: the same scenes whether training was interrupted or not."""
    loader = DataLoader(
        _Batches(plan, first), batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None
    )
    for images, labels, masks in loader:
        yield images.float() / 255, labels, masks


def _schedule(step: int, plan: Plan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - plan.warmup) / max(1, plan.steps - plan.warmup))


def read_log(folder: Path, name: str) -> list[dict[str, float]]:
    """The rows that training wrote, one for each validation."""
    with (folder / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
