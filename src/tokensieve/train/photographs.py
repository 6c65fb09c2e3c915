"""Training a small model on a folder of photographs, with a larger model as teacher if there is one.

The teacher answers once, before the training, on every photograph and on its mirror image, and is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..data import Preprocessing, image_set, load_batches
from ..data.images import ImageSet
from ..errors import InputError
from ..files import draft
from ..zoo import create
from . import loop
from .loop import Losses, Plan

MARGIN = 1.25
"""Photographs are kept so much larger than the model reads them, to be cropped from."""
SMOOTHING, BATCH, RATE = 0.1, 64, 2e-3


@dataclass(frozen=True)
class Photographs:
    """Photographs as bytes (N, 3, S, S) with labels (N,), and what the teacher says of each and of its mirror image."""

    images: Tensor
    labels: Tensor
    taught: Tensor | None = None
    """(N, 2, classes of the teacher): log-probabilities."""


def read(pictures: Dataset[Any]) -> Photographs:
    """A set of pictures in [0, 1] whose labels are known, whole in memory.

    Raises:
        InputError: a picture that cannot be read, or one outside of any class folder.
    """
    batches = load_batches(pictures, 100)
    parts = [((batch.images * 255).round().byte(), batch.labels) for batch in batches]
    if batches.failures:
        raise InputError(f"{batches.failures[0]}: mend or remove it before training.")
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    if (labels < 0).any():
        raise InputError("Training needs class folders: some pictures lie in none.")
    return Photographs(images, labels)


@torch.no_grad()
def ask_teacher(teacher: nn.Module, pictures: ImageSet, cache: Path, say: Callable[[str], object]) -> Tensor:
    """Log-probabilities (N, 2, classes) of every picture and its mirror image, kept in the file `cache`."""
    if cache.is_file():
        taught = load_file(cache)["log_probabilities"]
        if len(taught) == len(pictures):
            return taught
        raise InputError(f"{cache} belongs to other photographs: delete it, or give another folder.")
    say(f"asking the teacher about {len(pictures)} photographs")
    answers = [
        torch.stack([teacher(x).log_softmax(1) for x in (batch.images, batch.images.flip(3))], 1)
        for batch in load_batches(pictures, 50)
    ]
    with draft(cache) as file:
        save_file({"log_probabilities": torch.cat(answers)}, file)
    return torch.cat(answers)


class Pupil(nn.Module):
    """A timm classifier, and a second head that learns all the teacher's classes and is thrown away."""

    def __init__(self, model: Any, taught: int | None) -> None:
        super().__init__()
        if not hasattr(model, "forward_head"):
            raise InputError(f"{type(model).__name__} cannot be trained on photographs: it is no timm classifier.")
        self.model = model
        self.second = None if taught is None else nn.Linear(model.head_hidden_size, taught)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        pooled = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return self.model.get_classifier()(pooled), None if self.second is None else self.second(pooled)


class NameClasses:
    """The task: which of the folders a photograph is from."""

    def __init__(self, model: nn.Module, size: int, known: Photographs, unseen: Photographs, norms: Any) -> None:
        self.module = Pupil(model, None if known.taught is None else known.taught.shape[2])
        self.size, self.known = size, known
        self.unseen = replace(unseen, images=v2.functional.resize(unseen.images, [size, size], antialias=True))
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in norms)

    def batches(self, plan: Plan) -> Dataset[Any]:
        return _Batches(self.known, self.size, plan)

    def losses(self, batch: tuple[Tensor, ...]) -> Losses:
        images, labels, *taught = batch
        logits, second = self.module(self._normalise(images))
        image_loss = loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        if second is not None:
            told = F.kl_div(second.float().log_softmax(1), taught[0], log_target=True, reduction="batchmean")
            loss = image_loss + told
        return Losses(loss, image_loss, (logits.argmax(1) == labels).float().mean())

    @torch.no_grad()
    def top1(self, plan: Plan) -> float:
        model, right = self.module.model.eval(), 0
        for images, labels in zip(
            self.unseen.images[: plan.validation].split(100), self.unseen.labels.split(100), strict=False
        ):
            right += int((model(self._normalise(images)).argmax(1) == labels).sum())
        return 100 * right / min(plan.validation, len(self.unseen.labels))

    def _normalise(self, images: Tensor) -> Tensor:
        x = (images.float() / 255 - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)


def prepare(
    name: str,
    images: str,
    validation: str,
    folder: Path,
    *,
    epochs: int,
    size: int,
    args: Mapping[str, Any] | None = None,
    seed: int = 0,
    teacher: str | None = None,
    teacher_weights: str | None = None,
    say: Callable[[str], object] = print,
) -> tuple[Plan, NameClasses]:
    """Everything `train` needs for a model called `name`, with a class for each class folder of `images`.

    The teacher's answers are kept in `folder`, as `teacher.safetensors`.

    Raises:
        InputError: pictures that cannot be read, other class folders in the two sets, a model that is no classifier.
        RecipeError: a model that is not known or cannot be built with `args`.
    """
    kept = Preprocessing((round(size * MARGIN), round(size * MARGIN)), (0.0,) * 3, (1.0,) * 3)
    known, unseen = (image_set(source, kept) for source in (images, validation))
    if not isinstance(known, ImageSet) or not isinstance(unseen, ImageSet) or known.classes != unseen.classes:
        raise InputError(f"{images} and {validation} must be folders or tars with the same class folders.")
    torch.manual_seed(seed)
    model, *norms = create(name, pretrained=False, args={"num_classes": len(known.classes), **(args or {})})
    taught = None
    if teacher is not None:
        folder.mkdir(parents=True, exist_ok=True)
        wise, mean, std = create(teacher, weights=teacher_weights)
        pictures = image_set(images, Preprocessing.of(wise, mean, std))
        assert isinstance(pictures, ImageSet)
        taught = ask_teacher(wise, pictures, folder / "teacher.safetensors", say)
    say(f"reading {len(known)} and {len(unseen)} photographs")
    task = NameClasses(model, size, replace(read(known), taught=taught), read(unseen), norms)
    steps = max(1, epochs * len(known) // BATCH)
    every, warmup = max(1, steps // 50), min(500, steps // 10 + 1)
    plan = Plan(name, steps * BATCH, BATCH, RATE, warmup=warmup, seed=seed, every=every, validation=len(unseen))
    return plan, task


def train(
    plan: Plan, task: NameClasses, folder: Path, *, workers: int = 1, report: Callable[[dict[str, Any]], None] = print
) -> Path:
    """By `loop.train`."""
    torch.manual_seed(plan.seed)
    return loop.train(plan, task, folder, workers=workers, report=report)


class _Batches(Dataset[tuple[Tensor, ...]]):
    """Epoch after epoch in a new order, each photograph cropped, mirrored, changed and partly erased by chance.

    What chance does depends on seed and step alone, so that a training can be interrupted.
    """

    def __init__(self, known: Photographs, size: int, plan: Plan) -> None:
        self.known, self.plan, self.count = known, plan, len(known.labels)
        self._order = -1, torch.empty(0)
        self.change = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True),
                v2.TrivialAugmentWide(),
                v2.RandomErasing(p=0.25),
            ]
        )

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:
        first = step * self.plan.batch
        rows = torch.tensor([self._row(place) for place in range(first, first + self.plan.batch)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.plan.seed * 1_000_003 + step)
            mirrored = torch.rand(len(rows)) < 0.5
            pictures = self.known.images[rows]
            pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
            images = torch.stack([self.change(picture) for picture in pictures])
        batch = images, self.known.labels[rows]
        return batch if self.known.taught is None else (*batch, self.known.taught[rows, mirrored.long()])

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, self.count)
        if self._order[0] != epoch:
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.plan.seed + epoch))
            self._order = epoch, order
        return int(self._order[1][index])
