"""Training a small model on a folder of photographs, optionally with a larger model as teacher.

The teacher runs once before the training, on every photograph and on its mirror image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..data import Preprocessing, image_set
from ..data.images import ImageSet
from ..errors import InputError, RecipeError
from ..zoo import create
from .config import TrainConfig
from .loop import devices
from .task import Loss, Order, batch_seed, halved
from .teacher import Teacher, remember
from .views import every_batch

MARGIN = 1.25
"""Photographs are read this factor larger than the model's input size, for random crops."""
SMOOTHING, BATCH, RATE, BETAS = 0.1, 64, 2e-3, (0.9, 0.99)


def open_classes(source: str, preprocessing: Preprocessing) -> ImageSet:
    """The pictures of a folder with class folders, or of a tar with them. Raises `InputError` for anything else."""
    if not (Path(source).is_dir() or (Path(source).is_file() and Path(source).suffix.lower() == ".tar")):
        raise InputError(f"{source} must be a folder, or a tar, of class folders with photographs.")
    pictures = image_set(source, preprocessing)
    assert isinstance(pictures, ImageSet)
    if not pictures.classes:
        raise InputError(f"{source} has no class folders: put the photographs of each class into their own folder.")
    return pictures


def check(pictures: ImageSet, workers: int = 0) -> None:
    """Read every picture once, so that unreadable ones are found before training.

    Raises:
        InputError: a picture that cannot be read, or that is not in a class folder.
    """
    if unlabelled := pictures.unlabelled:
        first = next(pictures.path(i) for i, label in enumerate(pictures.items.labels) if label < 0)
        more = f" ({unlabelled} pictures are not)" if unlabelled > 1 else ""
        raise InputError(f"{first} is not in a class folder{more}: move it into one, or remove it.")
    for _ in every_batch(pictures, 100, workers):
        pass


def fingerprint(pictures: ImageSet) -> str:
    """SHA-256 of the classes and of the pictures' contents, names and class folders, in order; paths do not matter."""
    digest = hashlib.sha256(json.dumps(["upright", *pictures.classes.items()]).encode())
    for index in range(len(pictures)):
        digest.update("/".join(PurePath(pictures.path(index)).parts[-2:]).encode())
        source = pictures.items[index][0]
        with open(source, "rb") if isinstance(source, str) else source as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


class ClassTeacher(Teacher):
    """A teacher that is a classifier with a name, with its preprocessing and number of classes."""

    def __init__(self, name: str, weights: str | None, device: torch.device | str = "cpu") -> None:
        model, mean, std = create(name, weights=weights)
        super().__init__(model, name, device=device)
        try:
            self.preprocessing = Preprocessing.of(model, mean, std)
            self.classes = self.predict(torch.zeros(1, 3, *self.preprocessing.input_size)).shape[1]
        except Exception as error:  # a model may return or raise anything
            raise InputError(
                f"{name} cannot be a teacher: it must be a classifier with a known input size that returns a logit for "
                "each class."
            ) from error


class Pupil(nn.Module):
    """The student: a timm classifier with a second head for the teacher's classes, which is dropped after training."""

    def __init__(self, model: Any, teacher_classes: int | None) -> None:
        super().__init__()
        if not hasattr(model, "forward_head"):
            raise InputError(f"{type(model).__name__} cannot be trained on photographs: it is not a timm classifier.")
        self.model = model
        self.second = None if teacher_classes is None else nn.Linear(model.head_hidden_size, teacher_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.model.forward_features(images)
        logits = self.model.forward_head(features)
        return logits, None if self.second is None else self.second(self.model.forward_head(features, pre_logits=True))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For timm: a function from a parameter's name to its layer; the second head belongs to the last layer."""
        layers = group_parameters(self.model, self.model.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values())
        return lambda name: layers.get(name.removeprefix("model."), last)


class NameClasses:
    """The task: classify photographs into their class folders.

    Args:
        name: name of the model.
        pupil: the student, which is trained.
        size: input size of the student in pixels.
        known: training photographs, larger than `size`, in [0, 1].
        unseen: validation photographs, in the same form.
        norms: mean and std of the model.
        taught: the teacher's log-probabilities for the training photographs and their mirror images (N, 2, classes).
        identity: see `Task`.
        workers: data loader processes for validation.
    """

    def __init__(
        self,
        name: str,
        pupil: Pupil,
        size: int,
        known: ImageSet,
        unseen: ImageSet,
        norms: Any,
        *,
        taught: Tensor | None = None,
        identity: str = "",
        workers: int = 0,
    ) -> None:
        self.name, self.identity, self.module, self.samples = name, identity, pupil, len(known)
        self.size, self.known, self.unseen, self.taught, self.workers = size, known, unseen, taught, workers
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in norms)

    def batches(self, size: int, count: int, seed: int) -> Dataset[Any]:
        return _Batches(self, size, count, seed)

    def loss(self, module: Any, batch: tuple[Tensor, ...]) -> Loss:
        images, labels, *taught = batch
        logits, second = module(self._normalise(images))
        image_loss = loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        if second is not None:
            distillation = F.kl_div(second.float().log_softmax(1), taught[0], log_target=True, reduction="batchmean")
            loss = image_loss + distillation
        accuracy = (logits.argmax(1) == labels).float().mean()
        return Loss(loss, {"image_loss": image_loss, "train_top1": 100 * accuracy})

    @torch.no_grad()
    def evaluate(self, module: Any) -> dict[str, float]:
        model, correct = module.model.eval(), 0
        device = next(model.parameters()).device
        for batch in every_batch(self.unseen, 100, self.workers):
            images = v2.functional.resize(_bytes(batch.images), [self.size, self.size], antialias=True)
            correct += int((model(self._normalise(images.to(device))).argmax(1).cpu() == batch.labels).sum())
        return {"validation_top1": 100 * correct / len(self.unseen)}

    def weights(self, module: Any) -> dict[str, Tensor]:
        return halved(module.model.state_dict())

    def _normalise(self, images: Tensor) -> Tensor:
        x = (images.float() / 255 - self.mean.to(images.device)) / self.std.to(images.device)
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
    workers: int = 0,
    say: Callable[[str], object] = print,
    opened: Callable[[ImageSet], object] = lambda pictures: None,
) -> tuple[TrainConfig, NameClasses]:
    """The configuration and task for `loop.train` of a model called `name`, with a class per class folder of `images`.

    Every photograph is read once, to find unreadable ones; none stays in memory, the training reads them again, in
    `workers` processes. The teacher's targets are saved in `folder`, as `teacher.safetensors`; nothing else is written.
    `opened` is called with both sets of pictures before they are read.

    Raises:
        InputError: pictures that cannot be read, different class folders in the two sets, a model that is not a
            classifier or does not accept pictures of this size; targets of another teacher in `folder`; accelerate is
            not installed.
        RecipeError: a model that is not known or cannot be built with `args`.
    """
    state = devices()
    if not state.is_main_process:  # only the first process prints
        say, opened = (lambda sentence: None), (lambda pictures: None)
    preprocessing = Preprocessing((round(size * MARGIN), round(size * MARGIN)), (0.0,) * 3, (1.0,) * 3)
    known, unseen = (open_classes(source, preprocessing) for source in (images, validation))
    opened(known)
    opened(unseen)
    if different := known.classes.keys() ^ unseen.classes.keys():
        raise InputError(
            f"{images} and {validation} must have the same class folders: only one has '{min(different)}'."
        )
    if "num_classes" in (args or {}):
        raise RecipeError("num_classes is the number of class folders: leave it out of the model's arguments.")
    torch.manual_seed(seed)
    model, *norms = create(name, pretrained=False, args={"num_classes": len(known.classes), **(args or {})})
    with state.local_main_process_first():  # one process runs the teacher, the others read its targets
        teacher_model = None if teacher is None else ClassTeacher(teacher, teacher_weights, state.device)
        pupil = _checked(name, model, teacher_model, len(known.classes), size)
        say(f"reading {len(known)} and {len(unseen)} photographs")
        for pictures in (known, unseen):
            check(pictures, workers)
        prints, taught = (fingerprint(known), fingerprint(unseen)), None
        if teacher_model is not None:
            views = _mirrored(images, teacher_model, workers, say)
            taught = remember(teacher_model, views, f"photographs {prints[0]}", folder / "teacher.safetensors")
    identity = (
        f"{name}, {size} pixels, args {json.dumps(dict(args or {}), sort_keys=True)}, teacher "
        f"{teacher_model and teacher_model.identity}, photographs {prints[0]}, validation {prints[1]}"
    )
    task = NameClasses(name, pupil, size, known, unseen, norms, taught=taught, identity=identity, workers=workers)
    steps = max(1, epochs * len(known) // BATCH)
    config = TrainConfig(
        epochs=epochs, batch_size=BATCH, optimizer_args={"betas": BETAS}, lr=RATE, warmup=min(500, steps // 10 + 1),
        seed=seed, validate_every=max(1, steps // 50), workers=workers,
    )  # fmt: skip
    return config, task


def _mirrored(
    images: str, teacher: ClassTeacher, workers: int, say: Callable[[str], object]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the photographs, preprocessed for the teacher, and their mirror images."""
    pictures = open_classes(images, teacher.preprocessing)
    say(f"running the teacher on {len(pictures)} photographs")
    for batch in every_batch(pictures, 50, workers):
        yield batch.images, batch.images.flip(3)


def _checked(name: str, model: nn.Module, teacher: ClassTeacher | None, classes: int, size: int) -> Pupil:
    """The student, after a check on a blank picture. Raises `InputError` if it fails."""
    try:
        pupil = Pupil(model, None if teacher is None else teacher.classes).eval()
        with torch.no_grad():
            logits, _ = pupil(torch.zeros(1, 3, size, size))
        if logits.shape != (1, classes):
            raise ValueError(f"its output has the shape {tuple(logits.shape)}")
    except InputError:
        raise
    except Exception as error:  # a model may raise any error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{name} cannot be trained on photographs of {size} x {size} pixels ({reason}): give another size, or "
            'arguments such as {"img_size": ' + f"{size}" + "}."
        ) from error
    return pupil


class _Batches(Dataset[tuple[Tensor, ...]]):
    """Batches of photographs, each randomly cropped, mirrored, augmented and partly erased."""

    def __init__(self, task: NameClasses, size: int, count: int, seed: int) -> None:
        self.known, self.taught = task.known, task.taught
        self.size, self.count, self.seed, self.order = size, count, seed, Order(task.samples, seed)
        self.change = v2.Compose(
            [
                v2.RandomResizedCrop(task.size, scale=(0.35, 1.0), antialias=True),
                v2.TrivialAugmentWide(),
                v2.RandomErasing(p=0.25),
            ]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        rows = [self.order[position] for position in range(number * self.size, (number + 1) * self.size)]
        pictures, labels = zip(*(self.known[row] for row in rows), strict=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_seed(self.seed, number))
            mirrored = torch.rand(len(rows)) < 0.5
            batch_images = torch.stack([_bytes(picture) for picture in pictures])
            batch_images = torch.where(mirrored[:, None, None, None], batch_images.flip(3), batch_images)
            images = torch.stack([self.change(picture) for picture in batch_images])
        batch = images, torch.tensor(labels)
        return batch if self.taught is None else (*batch, self.taught[rows, mirrored.long()])


def _bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, on which augmentation is faster."""
    return (images * 255).round().byte()
