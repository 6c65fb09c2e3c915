"""Training a small model on a folder of photographs, with a larger model as teacher if there is one.

The teacher answers once, before the training, on every photograph and on its mirror image, and is not asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..data import Batch, Preprocessing, image_set, load_batches
from ..data.images import ImageSet
from ..errors import InputError, RecipeError
from ..files import draft
from ..zoo import create
from .loop import Losses, Plan

MARGIN = 1.25
"""Photographs are kept so much larger than the model reads them, to be cropped from."""
SMOOTHING, BATCH, RATE = 0.1, 64, 2e-3
NAMED = 10
"""Photographs that cannot be read, named in one error."""


@dataclass(frozen=True)
class Photographs:
    """Photographs as bytes (N, 3, S, S) with labels (N,), and what the teacher says of each and of its mirror image."""

    images: Tensor
    labels: Tensor
    taught: Tensor | None = None
    """(N, 2, classes of the teacher): log-probabilities."""


def open_classes(source: str, preprocessing: Preprocessing) -> ImageSet:
    """The pictures of a folder of class folders, or of a tar of them; raises InputError for anything else."""
    if not (Path(source).is_dir() or (Path(source).is_file() and Path(source).suffix.lower() == ".tar")):
        raise InputError(f"{source} must be a folder, or a tar, of class folders with photographs.")
    pictures = image_set(source, preprocessing)
    assert isinstance(pictures, ImageSet)
    if not pictures.classes:
        raise InputError(
            f"{source} has no class folders: put the photographs of each class into a folder of their own."
        )
    return pictures


def read(pictures: ImageSet) -> Photographs:
    """A set of pictures in [0, 1] whose labels are known, whole in memory.

    Raises:
        InputError: a picture that cannot be read, or one outside of any class folder.
    """
    if loose := pictures.unlabelled:
        first = next(pictures.path(i) for i, label in enumerate(pictures.items.labels) if label < 0)
        more = f" ({loose} pictures do)" if loose > 1 else ""
        raise InputError(f"{first} lies in no class folder{more}: move it into one, or remove it.")
    parts = [((batch.images * 255).round().byte(), batch.labels) for batch in _every(pictures, 100)]
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Photographs(images, labels)


def fingerprint(pictures: ImageSet) -> str:
    """SHA-256 of the classes, of the pictures' files, names and class folders, in order, wherever they lie."""
    digest = hashlib.sha256(json.dumps(["upright", *pictures.classes.items()]).encode())
    for index in range(len(pictures)):
        digest.update("/".join(PurePath(pictures.path(index)).parts[-2:]).encode())
        source = pictures.items[index][0]
        with open(source, "rb") if isinstance(source, str) else source as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


class Teacher:
    """A model that answers once; `known_as` is its name with the SHA-256 of its weights."""

    def __init__(self, name: str, weights: str | None) -> None:
        self.model, mean, std = create(name, weights=weights)
        digest = hashlib.sha256()
        for value in self.model.state_dict().values():
            digest.update(value.reshape(-1).numpy())
        self.known_as = f"{name} {digest.hexdigest()}"
        try:
            self.preprocessing = Preprocessing.of(self.model, mean, std)
            self.classes = self.ask(torch.zeros(1, 3, *self.preprocessing.input_size)).shape[1]
        except Exception as error:  # a model may return, or refuse, anything
            raise InputError(
                f"{name} cannot teach: that takes a classifier that states its input size, and answers with a logit "
                "for each class."
            ) from error

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> log-probabilities (B, classes)."""
        return self.model(images).log_softmax(1)


def ask_teacher(
    teacher: Teacher, images: str, print_of_images: str, cache: Path, say: Callable[[str], object]
) -> Tensor:
    """Log-probabilities (N, 2, classes) of every picture and its mirror image, kept in the file `cache`.

    Raises:
        InputError: the file holds another teacher's answers, or answers about other photographs than `print_of_images`.
    """
    asked = f"{teacher.known_as}, photographs {print_of_images}"
    if cache.is_file():
        try:
            with safe_open(cache, "pt") as file:
                if (file.metadata() or {}).get("asked") == asked:
                    return file.get_tensor("log_probabilities")
        except SafetensorError:
            pass  # cut short or no such file at all: nobody's answers
        raise InputError(
            f"{cache} holds another teacher's answers, or answers about other photographs: delete it, or give another "
            "folder."
        )
    pictures = open_classes(images, teacher.preprocessing)
    say(f"asking the teacher about {len(pictures)} photographs")
    answers = torch.cat(
        [torch.stack([teacher.ask(x) for x in (b.images, b.images.flip(3))], 1) for b in _every(pictures, 50)]
    )
    cache.parent.mkdir(parents=True, exist_ok=True)
    with draft(cache) as path:
        save_file({"log_probabilities": answers}, path, {"asked": asked})
    return answers


def _every(pictures: ImageSet, size: int) -> Iterator[Batch]:
    """Batches of all the pictures; a training leaves none out in silence."""
    batches = load_batches(pictures, size)
    yield from batches
    failures = batches.failures
    if len(failures) == 1:
        raise InputError(f"{failures[0]}: mend or remove it before training.")
    if failures:
        named = "; ".join(map(str, failures[:NAMED])) + ("; ..." if len(failures) > NAMED else "")
        which = f"{len(failures)} of {len(pictures)} photographs"
        raise InputError(f"{which} cannot be read: mend or remove them before training. {named}.")


class Pupil(nn.Module):
    """A timm classifier, and a second head that learns all the teacher's classes and is thrown away."""

    def __init__(self, model: Any, taught: int | None) -> None:
        super().__init__()
        if not hasattr(model, "forward_head"):
            raise InputError(f"{type(model).__name__} cannot be trained on photographs: it is no timm classifier.")
        self.model = model
        self.second = None if taught is None else nn.Linear(model.head_hidden_size, taught)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.model.forward_features(images)
        logits = self.model.forward_head(features)
        return logits, None if self.second is None else self.second(self.model.forward_head(features, pre_logits=True))


class NameClasses:
    """The task: which of the folders a photograph is from."""

    def __init__(
        self,
        pupil: Pupil,
        size: int,
        known: Photographs,
        unseen: Photographs,
        norms: Any,
        sets: Mapping[str, ImageSet] | None = None,
    ) -> None:
        self.module = pupil
        self.sets = dict(sets or {})
        """What the photographs were read from, "images" and "validation"."""
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
        seen = self.unseen.images[: plan.validation], self.unseen.labels[: plan.validation]
        for images, labels in zip(*(each.split(100) for each in seen), strict=True):
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
    opened: Callable[[ImageSet], object] = lambda pictures: None,
) -> tuple[Plan, NameClasses]:
    """Everything `loop.train` needs for a model called `name`, with a class for each class folder of `images`.

    The teacher's answers are kept in `folder`, as `teacher.safetensors`; nothing else is written. Both sets of
    pictures go to `opened` before they are read.

    Raises:
        InputError: pictures that cannot be read, other class folders in the two sets, a model that is no classifier, or
            not of pictures of this size; answers in `folder` to other questions.
        RecipeError: a model that is not known or cannot be built with `args`.
    """
    kept = Preprocessing((round(size * MARGIN), round(size * MARGIN)), (0.0,) * 3, (1.0,) * 3)
    known, unseen = (open_classes(source, kept) for source in (images, validation))
    opened(known)
    opened(unseen)
    if odd := known.classes.keys() ^ unseen.classes.keys():
        raise InputError(f"{images} and {validation} must have the same class folders: only one has '{min(odd)}'.")
    if "num_classes" in (args or {}):
        raise RecipeError("num_classes is the number of class folders: leave it out of the model's arguments.")
    torch.manual_seed(seed)
    model, *norms = create(name, pretrained=False, args={"num_classes": len(known.classes), **(args or {})})
    wise = None if teacher is None else Teacher(teacher, teacher_weights)
    pupil = _checked(name, model, wise, len(known.classes), size)
    say(f"reading {len(known)} and {len(unseen)} photographs")
    photographs, looked_at = read(known), read(unseen)
    prints = fingerprint(known), fingerprint(unseen)
    if wise is not None:
        taught = ask_teacher(wise, images, prints[0], folder / "teacher.safetensors", say)
        photographs = replace(photographs, taught=taught)
    task = NameClasses(pupil, size, photographs, looked_at, norms, {"images": known, "validation": unseen})
    steps = max(1, epochs * len(known) // BATCH)
    plan = Plan(
        name, steps * BATCH, BATCH, RATE, warmup=min(500, steps // 10 + 1), seed=seed, every=max(1, steps // 50),
        validation=len(unseen),
        task=f"{size} pixels, args {json.dumps(dict(args or {}), sort_keys=True)}, teacher {wise and wise.known_as}, "
        f"photographs {prints[0]}, validation {prints[1]}",
    )  # fmt: skip
    return plan, task


def _checked(name: str, model: nn.Module, teacher: Teacher | None, classes: int, size: int) -> Pupil:
    """The pupil, once it has answered for an empty picture; raises InputError."""
    try:
        pupil = Pupil(model, None if teacher is None else teacher.classes).eval()
        with torch.no_grad():
            logits, _ = pupil(torch.zeros(1, 3, size, size))
        if logits.shape != (1, classes):
            raise ValueError(f"its answer has the shape {tuple(logits.shape)}")
    except InputError:
        raise
    except Exception as error:  # a model may refuse pictures in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{name} cannot be trained on photographs of {size} x {size} pixels ({reason}): give another size, or "
            'arguments such as {"img_size": ' + f"{size}" + "}."
        ) from error
    return pupil


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
