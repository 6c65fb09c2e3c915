"""The judge: images held in memory, the dense model's answers to them, and how far a recipe's are from those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.inputs import InputSpec
from ..errors import InputError
from ..measure import macs
from ..measure.fidelity import kl_divergence
from ..measure.outputs import forward_batches, nothing_read
from ..methods import BaseMethod, PaPr
from ..recipe import Recipe
from ..stream import Sieved, sieve

Part = Literal["search", "heldout"]
RUNGS = (96,)
"""After so many images a recipe may be given up; a search that has fewer goes without. A tenth of the images holds half
of all loss, so that 32 images say little: giving up by them led searches astray."""


def losses(dense: Tensor, sieved: Tensor, classes: bool) -> tuple[Tensor, Tensor | None]:
    """What a search makes small, and the classes that stay: the one place where this is chosen.

    Args:
        dense, sieved: outputs (B, K).
        classes: they are scores of classes; else embeddings.

    Returns:
        KL(dense || sieved) in nats (B,), and whether both name the same class (B,); for embeddings 1 - cosine, None.
    """
    dense, sieved = dense.double(), sieved.double()
    if classes:
        return kl_divergence(dense, sieved), dense.argmax(1) == sieved.argmax(1)
    return 1 - F.cosine_similarity(dense, sieved, dim=1), None


@dataclass(frozen=True)
class Figures:
    """How far a recipe is from the dense model."""

    loss: float
    """Mean of `losses`."""
    agreement: float | None
    """Percent of the images to which both give the same class; None for embeddings."""
    accuracy: float | None
    """Percent of the images whose label comes first; None without labels."""
    images: int
    """How many the figures are of."""


class Judge:
    """Asks recipes about the images of a loader.

    Args:
        model: the host, in evaluation mode.
        loader: tensors of images, tuples that begin with images and labels, or one tensor (N, 3, H, W).
        holdout: share of the images that the search never sees.
        seed: of which images those are.
        batch: images that go through together.
        mean, std, pretrained: as in `sieve`.
        check: called between batches; ends the search by raising.

    Raises:
        InputError: nothing to read, too few images, images of different sizes, more than memory holds.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any] | Tensor,
        *,
        holdout: float,
        seed: int,
        batch: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        pretrained: bool,
        check: Callable[[], None],
    ) -> None:
        self.model, self.batch, self.check = model, batch, check
        self.settings: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
        self._maps: dict[PaPr, tuple[Tensor, float]] = {}
        self._judged: dict[tuple[str, Part], Figures] = {}
        images, self.dense, labels, self.classes = _read(model, loader, batch)
        count = len(images)
        held = round(count * holdout)
        if count - held < 2 or (holdout and not held):
            raise InputError(f"{count} images cannot be parted into some to search on and some held out: give more.")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.images, self.labels = images, labels
        self.parts: dict[Part, Tensor] = {"search": order[: count - held], "heldout": order[count - held :]}
        self.rungs = [rung for rung in RUNGS if rung < count - held] + [count - held]
        self.input_size = InputSpec(tuple(images.shape[1:]), InputSpec.of(model).layout)
        self.empty = sieve(model)

    @property
    def dense_accuracy(self) -> dict[Part, float | None]:
        """Of the dense model, in percent."""
        return {part: self._accuracy(self.dense[rows], rows) for part, rows in self.parts.items()}

    def judge(self, recipe: Recipe, part: Part) -> Figures:
        """All images of a part."""
        for figures in self.climb(recipe, part, [len(self.parts[part])]):
            last = figures
        return last

    def recalled(self, recipe: Recipe, part: Part) -> Figures:
        """What `judge` says, once for each recipe."""
        key = (str(recipe), part)
        if key not in self._judged:
            self._judged[key] = self.judge(recipe, part)
        return self._judged[key]

    def climb(self, recipe: Recipe, part: Part = "search", rungs: Sequence[int] | None = None) -> Iterator[Figures]:
        """The figures after each rung of images, by default `self.rungs`: whoever has seen enough stops asking."""
        rows, recall = self.parts[part], _Recall()
        fast = self._sieved(recipe, recall)
        answers: list[Tensor] = []
        begun = 0
        for rung in self.rungs if rungs is None else rungs:
            for start in range(begun, rung, self.batch):
                self.check()
                now = rows[start : min(start + self.batch, rung)]
                recall.rows = now
                with torch.inference_mode():
                    (batch,) = forward_batches([fast], [self.images[now]])
                answers.append(batch.outputs[0])
            begun = rung
            loss, same = losses(self.dense[rows[:rung]], torch.cat(answers), self.classes)
            agreement = None if same is None else 100 * float(same.double().mean())
            yield Figures(float(loss.mean()), agreement, self._accuracy(torch.cat(answers), rows[:rung]), rung)

    def macs(self, recipe: Recipe, include_proposal: bool = True) -> float:
        """Counted by `measure.macs`, the proposal's from the one time that it was asked."""
        own = macs(self._sieved(recipe, _Recall()), self.input_size, proposal=False)
        return own + (self.proposal_macs(recipe) if include_proposal else 0)

    def proposal_macs(self, recipe: Recipe) -> float:
        """MACs an image of what ranks patches for a recipe; 0 where nothing does."""
        return sum(self.map_of(method)[1] for method in recipe if _asks(method))

    def map_of(self, method: PaPr) -> tuple[Tensor, float]:
        """The map of every image (N, h, w), and its MACs an image. Asked once: whatever is kept where, it is the same.

        Raises:
            InputError: weights that cannot be had.
            RecipeError: a proposal that has no such layer.
        """
        key = replace(method, keep=0.5, stages=None, background=None)
        if key not in self._maps:
            fast = sieve(self.model, key, **self.settings).to(next(self.model.parameters()).device)
            asked: Any = fast.significance
            like, found = next(self.model.parameters()), []
            for chunk in self.images.split(self.batch):
                self.check()
                with torch.inference_mode():
                    found.append(asked.maps(fast.covered(chunk.to(like.device))))
            cost = macs(fast, self.input_size) - macs(fast, self.input_size, proposal=False)
            self._maps[key] = torch.cat(found), cost
        return self._maps[key]

    def sieved(self, recipe: Recipe) -> Sieved:
        """The recipe as the user will run it, its proposal inside."""
        return sieve(self.model, recipe, **self.settings).to(next(self.model.parameters()).device)

    def _sieved(self, recipe: Recipe, recall: _Recall) -> Sieved:
        """The recipe with the proposal's maps recalled instead of made."""
        methods: list[BaseMethod] = []
        for method in recipe:
            if _asks(method):
                recall.maps = self.map_of(method)[0]
                kept = {name: getattr(method, name) for name in (*method.not_of_the_map, "align_corners")}
                methods.append(PaPr(**kept, significance=recall))
            else:
                methods.append(method)
        return sieve(self.model, Recipe(tuple(methods)), **self.settings)

    def _accuracy(self, outputs: Tensor, rows: Tensor) -> float | None:
        if self.labels is None or not len(rows):
            return None
        return 100 * float((outputs.argmax(1) == self.labels[rows]).double().mean())


class _Recall:
    """A significance that gives the maps of the images at hand."""

    maps: Tensor
    rows: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) != len(self.rows):
            return self.maps[:1].expand(len(images), -1, -1)
        return self.maps[self.rows.to(self.maps.device)]


def _asks(method: BaseMethod) -> TypeGuard[PaPr]:
    """Whether a method needs maps that a network makes."""
    return isinstance(method, PaPr) and method.significance not in ("random", "centre") and method.ranks


def _read(model: nn.Module, loader: Iterable[Any] | Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """All images (N, 3, H, W) in the model's precision, its outputs (N, K), labels (N,) or None, if it classifies."""
    kept: list[Tensor] = []
    like = next(model.parameters())
    room = _free_memory()

    def keeping() -> Iterator[Any]:
        for given in loader.split(batch) if isinstance(loader, Tensor) else loader:
            images = given[0] if isinstance(given, tuple | list) and given else given
            if isinstance(images, Tensor):
                if kept and images.shape[1:] != kept[0].shape[1:]:
                    raise InputError(
                        f"The images have different sizes, {tuple(kept[0].shape[1:])} and {tuple(images.shape[1:])}: "
                        "resize them to one."
                    )
                kept.append(images.detach().to(device="cpu", dtype=like.dtype))
                if sum(each.nbytes for each in kept) > 0.7 * room:
                    raise InputError(
                        f"{sum(map(len, kept))} images fill the memory, and the search holds all of them: give fewer "
                        "(--limit), a few hundred are enough."
                    )
            yield given

    labels: list[Tensor | None] = []
    outputs: list[Tensor] = []
    classes = True
    for answers in forward_batches([model], keeping()):
        labels.append(answers.labels)
        outputs.append(answers.outputs[0])
        classes = classes and answers.classes
    if not outputs:
        raise nothing_read(loader)
    dense = torch.cat(outputs)
    if dense.ndim != 2:
        raise InputError(
            f"{type(model).__name__} returns shape {tuple(dense.shape)}: a search needs one row of scores or features "
            "an image, so pool the tokens."
        )
    known = [each for each in labels if each is not None]
    classes = classes and dense.shape[1] > 1
    complete = classes and len(known) == len(labels) and bool((torch.cat(known) >= 0).all())
    return torch.cat(kept), dense, torch.cat(known) if complete else None, classes


def _free_memory() -> float:
    """Bytes; without end where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return float("inf")
