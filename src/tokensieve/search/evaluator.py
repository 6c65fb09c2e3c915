"""Evaluates recipes: how far their outputs are from the dense model's, on images held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from ..cascade_recipe import CascadeRecipe
from ..data.inputs import InputSpec
from ..errors import InputError
from ..measure import macs
from ..measure.comparison import OutputKind, check_shapes
from ..measure.intervals import Interval, agreement_interval, percent_interval
from ..measure.outputs import forward_batches, nothing_read
from ..measure.scores import IGNORE_INDEX, Accuracy
from ..methods import BaseMethod, PaPr
from ..recipe import Recipe
from ..stream import Sieved, sieve
from .wrapped import WrappedBackbone

Part = Literal["search", "heldout"]
STEPS = (96,)
"""Numbers of images after which a recipe may be pruned; a search with fewer images does not prune. A tenth of the
images has half of all divergence, so that 32 images are too few: pruning by them misled searches."""

MAP_SCORES = {"class-map": "miou", "depth": "delta1"}
"""Kind of output -> the figure of its `MapScore` that counts as accuracy."""


@dataclass(frozen=True)
class Figures:
    """Loss of a recipe relative to the dense model."""

    divergence: float
    """Mean of the output kind's divergence: KL, 1 - cosine or relative error, see `measure.comparison`."""
    agreement: float | None
    """Percent of the images, or pixels, with the same class in both; for depth, of the pixels whose depths differ by
    less than a factor of 1.25. None for embeddings and feature maps."""
    accuracy: float | None
    """Top-1 accuracy in percent; for class maps the mean IoU in percent, for depth maps the percentage of pixels within
    a factor of 1.25 of the label. None without labels."""
    images: int
    """Number of images."""
    kind: str = "classes"
    """Kind of the outputs, a name of `measure.comparison.KINDS`."""
    interval: Interval | None = None
    """95 % interval of an agreement over pixels, in percent, by bootstrap over the images; None for others."""
    cost: float | None = None
    """In a search for cascades: the cost of a cascade with the recipe as first member, as a share of the dense MACs."""

    def __post_init__(self) -> None:
        if self.interval is not None:  # JSON has it as a list
            object.__setattr__(self, "interval", Interval(*self.interval))

    @property
    def value(self) -> float:
        """The objective that the search minimises: the divergence, or the cost of a cascade."""
        return self.divergence if self.cost is None else self.cost

    @property
    def agreement_interval(self) -> Interval | None:
        """95 % interval of the agreement, in percent."""
        return self.interval or (percent_interval(self.agreement, self.images) if self.kind == "classes" else None)


class Evaluator:
    """Evaluates recipes on the images of a loader, against the dense model.

    Args:
        model: the host, in evaluation mode.
        loader: tensors of images, tuples that begin with images and labels, or one tensor (N, 3, H, W).
        holdout: share of the images that are held out.
        seed: random seed of the split.
        batch: batch size.
        mean, std, pretrained: as in `sieve`.
        check: called between batches; may raise to end the search.
        kind: kind of the outputs, if it cannot be inferred; see `measure.comparison.kind_of`.
        ignore_index: the label of pixels that are not scored.
        backbone: name of the sub-module that is the host, if the model itself is not; see `WrappedBackbone`.

    Raises:
        InputError: no or too few images, images of different sizes, more images than memory holds.
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
        kind: str | None = None,
        ignore_index: int | None = IGNORE_INDEX,
        backbone: str | None = None,
    ) -> None:
        self.model, self.batch, self.check = model, batch, check
        self.settings: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
        self.goal: Callable[[Recipe, Tensor, Tensor], float] | None = None
        """The objective instead of the divergence: a function of a recipe, its outputs and the dense model's."""
        self._maps: dict[PaPr, tuple[Tensor, float]] = {}
        self._evaluated: dict[tuple[str, Part], Figures] = {}
        images, self.dense, labels, self.kind = _read(model, loader, batch, kind)
        self.ignore_index = ignore_index
        count = len(images)
        held_out = round(count * holdout)
        if count - held_out < 2 or (holdout and not held_out):
            raise InputError(f"{count} images cannot be divided into some to search on and some held out: give more.")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.images, self.labels = images, labels
        self.parts: dict[Part, Tensor] = {"search": order[: count - held_out], "heldout": order[count - held_out :]}
        self.steps = [step for step in STEPS if step < count - held_out] + [count - held_out]
        self.input_size = InputSpec(tuple(images.shape[1:]), InputSpec.of(model).layout)
        self.wrapped = None if backbone is None else WrappedBackbone(model, backbone, self.input_size)
        self.host_model = model if self.wrapped is None else self.wrapped.host_model
        self.empty = sieve(self.host_model)

    @property
    def dense_accuracy(self) -> dict[Part, float | None]:
        """The dense model's accuracy on each part, as `Figures.accuracy`."""
        return {part: self._accuracy([self.dense[rows]], [rows]) for part, rows in self.parts.items()}

    def evaluate(self, recipe: Recipe, split: Part) -> Figures:
        """The figures of a recipe on all images of a part."""
        for figures in self.figures_by_step(recipe, split, [len(self.parts[split])]):
            last = figures
        return last

    def recalled(self, recipe: Recipe, split: Part) -> Figures:
        """`evaluate`, cached for each recipe and part."""
        key = (str(recipe), split)
        if key not in self._evaluated:
            self._evaluated[key] = self.evaluate(recipe, split)
        return self._evaluated[key]

    def figures_by_step(
        self, recipe: Recipe, split: Part = "search", steps: Sequence[int] | None = None
    ) -> Iterator[Figures]:
        """The figures after each step of images, by default `self.steps`: a caller may stop at any of them."""
        rows, cached_maps = self.parts[split], _CachedMaps()
        fast = self._sieved(recipe, cached_maps)
        collected = _Collected(self.kind)
        done = 0
        for step in self.steps if steps is None else steps:
            for start in range(done, step, self.batch):
                self.check()
                rows_now = rows[start : min(start + self.batch, step)]
                cached_maps.rows = rows_now
                with torch.inference_mode():
                    (batch,) = forward_batches([fast], [self.images[rows_now]])
                keep = self.labels is not None or self.goal is not None
                collected.add(rows_now, self.dense[rows_now], batch.outputs[0], keep=keep)
            done = step
            figures = collected.figures(self._accuracy(collected.outputs, collected.rows))
            if self.goal is not None:
                cost = self.goal(recipe, torch.cat(collected.outputs), self.dense[torch.cat(collected.rows)])
                figures = replace(figures, cost=cost)
            yield figures

    def outputs(self, recipe: Recipe, part: Part) -> Tensor:
        """The outputs of a recipe on all images of a part, (N, ...)."""
        outputs, cached_maps = [], _CachedMaps()
        fast = self._sieved(recipe, cached_maps)
        for rows in self.parts[part].split(self.batch):
            self.check()
            cached_maps.rows = rows
            with torch.inference_mode():
                outputs += [batch.outputs[0] for batch in forward_batches([fast], [self.images[rows]])]
        return torch.cat(outputs)

    def figures_of(self, outputs: Tensor, part: Part) -> Figures:
        """The figures of given outputs (N, ...) on all images of a part."""
        rows, collected = self.parts[part], _Collected(self.kind)
        collected.add(rows, self.dense[rows], outputs, keep=True)
        return collected.figures(self._accuracy(collected.outputs, collected.rows))

    def macs(self, recipe: Recipe, include_proposal: bool = True) -> float:
        """MACs per image by `measure.macs`; those of a proposal are cached."""
        host_macs = macs(self._sieved_host(recipe, _CachedMaps()), self.input_size, proposal=False)
        return host_macs + self.outside_macs + (self.proposal_macs(recipe) if include_proposal else 0)

    @property
    def outside_macs(self) -> int:
        """MACs per image of the whole model minus those of the host called alone, see `WrappedBackbone`."""
        return 0 if self.wrapped is None else self.wrapped.outside_macs

    def proposal_macs(self, recipe: Recipe) -> float:
        """MACs per image of the proposals of a recipe; 0 without any."""
        return sum(self.map_of(method)[1] for method in recipe if _needs_maps(method))

    def check_map(self, method: PaPr) -> None:
        """Check that a method's maps can be computed on this host. Raises as `map_of`, and `RecipeError`."""
        if _needs_maps(method):
            self.map_of(method)
        else:
            self._host(Recipe.of(method))

    def map_of(self, method: PaPr) -> tuple[Tensor, float]:
        """The maps of all images (N, h, w), or of clips (N, t, h, w), and their MACs per image. Cached, since they do
        not depend on the keep ratio.

        Raises:
            InputError: weights that cannot be loaded.
            RecipeError: the proposal has no such layer.
        """
        key = replace(method, keep=0.5, stages=None, background=None)
        if key not in self._maps:
            fast = self._host(Recipe.of(key))
            significance: Any = fast.significance
            parameter, maps = next(self.model.parameters()), []
            for chunk in self.images.split(self.batch):
                self.check()
                with torch.inference_mode():
                    maps.append(significance.maps(fast.covered(chunk.to(parameter.device))))
            cost = macs(fast, self.input_size) - macs(fast, self.input_size, proposal=False)
            self._maps[key] = torch.cat(maps), cost
        return self._maps[key]

    def sieved(self, recipe: Recipe | CascadeRecipe) -> nn.Module:
        """The sieved model as the user will run it, proposal included."""
        return self._whole(self._host(recipe))

    def batch_of(self, rows: Tensor) -> Tensor:
        """Images (B, 3, H, W) by their indices, on the model's device."""
        return self.images[rows].to(next(self.model.parameters()).device)

    def host_sieved(self, recipe: Recipe) -> Sieved:
        """The host alone under a recipe, proposal included."""
        return self._host(recipe)

    def _host(self, recipe: Recipe | CascadeRecipe) -> Sieved:
        return sieve(self.host_model, recipe, **self.settings).to(next(self.model.parameters()).device)

    def _whole(self, fast: Sieved) -> nn.Module:
        return fast if self.wrapped is None else self.wrapped.with_backbone(fast)

    def _sieved(self, recipe: Recipe, cached_maps: _CachedMaps) -> nn.Module:
        """The sieved model with cached maps instead of the proposal."""
        return self._whole(self._sieved_host(recipe, cached_maps))

    def _sieved_host(self, recipe: Recipe, cached_maps: _CachedMaps) -> Sieved:
        methods: list[BaseMethod] = []
        for method in recipe:
            if _needs_maps(method):
                cached_maps.maps = self.map_of(method)[0]
                settings = {name: getattr(method, name) for name in (*method.not_of_the_map, "align_corners")}
                methods.append(PaPr(**settings, significance=cached_maps))
            else:
                methods.append(method)
        return sieve(self.host_model, Recipe(tuple(methods)), **self.settings)

    def _accuracy(self, outputs: Sequence[Tensor], rows: Sequence[Tensor]) -> float | None:
        if self.labels is None or not sum(map(len, rows)):
            return None
        scorer = self.kind.scorer(1, self.ignore_index)
        for part, indices in zip(outputs, rows, strict=True):
            scorer.update(part, self.labels[indices])
        score = scorer.result()
        return score.top[1] if isinstance(score, Accuracy) else score.figures[MAP_SCORES[self.kind.name]]


class _Collected:
    """Accumulates the comparison of outputs with the dense ones: a few numbers for each image."""

    def __init__(self, kind: OutputKind) -> None:
        self.kind = kind
        self.divergence: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.outputs: list[Tensor] = []
        """The outputs, if labels or a goal need them."""
        self.rows: list[Tensor] = []

    def add(self, rows: Tensor, dense: Tensor, sieved: Tensor, keep: bool) -> None:
        check_shapes(dense, sieved)
        self.rows.append(rows)
        self.divergence.append(self.kind.divergence(dense, sieved))
        if not self.kind.across_images and (shares := self.kind.agreement(dense, sieved)) is not None:
            self.shares.append(shares)
        if keep:
            self.outputs.append(sieved)

    def figures(self, accuracy: float | None) -> Figures:
        divergence, shares = torch.cat(self.divergence), torch.cat(self.shares) if self.shares else None
        pixels = shares is not None and self.kind.name != "classes"
        return Figures(
            divergence=float(divergence.mean()),
            agreement=None if shares is None else 100 * float(shares.mean()),
            accuracy=accuracy,
            images=len(divergence),
            kind=self.kind.name,
            interval=agreement_interval(shares) if shares is not None and pixels else None,
        )


class _CachedMaps:
    """A significance function that returns the cached maps of the current batch."""

    maps: Tensor
    rows: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) != len(self.rows):
            return self.maps[:1].expand(len(images), *self.maps.shape[1:])
        return self.maps[self.rows.to(self.maps.device)]


def _needs_maps(method: BaseMethod) -> TypeGuard[PaPr]:
    """Whether a method needs maps computed by a network."""
    return isinstance(method, PaPr) and method.needs_proposal and method.ranks


def _read(
    model: nn.Module, loader: Iterable[Any] | Tensor, batch: int, kind: str | None
) -> tuple[Tensor, Tensor, Tensor | None, OutputKind]:
    """Read all images: (N, 3, H, W) in the model's precision, its outputs (N, ...), labels or None, and the kind."""
    all_images: list[Tensor] = []
    parameter = next(model.parameters())
    free_memory = _free_memory()

    def collecting_batches() -> Iterator[Any]:
        for item in loader.split(batch) if isinstance(loader, Tensor) else loader:
            images = item[0] if isinstance(item, tuple | list) and item else item
            if isinstance(images, Tensor):
                if all_images and images.shape[1:] != all_images[0].shape[1:]:
                    raise InputError(
                        f"The images have different sizes, {tuple(all_images[0].shape[1:])} and "
                        f"{tuple(images.shape[1:])}: resize them to one size."
                    )
                all_images.append(images.detach().to(device="cpu", dtype=parameter.dtype))
                if sum(tensor.nbytes for tensor in all_images) > 0.7 * free_memory:
                    raise _too_many(all_images)
            yield item

    labels: list[Tensor | None] = []
    outputs: list[Tensor] = []
    kind_of_output: OutputKind | None = None
    for batch_outputs in forward_batches([model], collecting_batches()):
        labels.append(batch_outputs.labels)
        outputs.append(batch_outputs.outputs[0])
        kind_of_output = kind_of_output or batch_outputs.kind(kind)
        if sum(t.nbytes for t in (*all_images, *outputs)) > 0.7 * free_memory:
            raise _too_many(all_images)
    if kind_of_output is None:
        raise nothing_read(loader)
    dense = torch.cat(outputs)
    if kind_of_output.name == "tokens":
        raise InputError(
            f"{type(model).__name__} returns shape {tuple(dense.shape)}: a search needs scores, an embedding or a map "
            'for each image: pool the tokens, or put them back on the grid; for a depth map, give kind="depth".'
        )
    known_labels = [t for t in labels if t is not None]
    complete = len(known_labels) == len(labels) and all(map(kind_of_output.labelled, known_labels))
    return torch.cat(all_images), dense, torch.cat(known_labels) if complete else None, kind_of_output


def _too_many(images: list[Tensor]) -> InputError:
    return InputError(
        f"{sum(map(len, images))} images fill the memory; the search holds all of them and the model's outputs: give "
        "fewer (--limit), a few hundred are enough."
    )


def _free_memory() -> float:
    """Free memory in bytes; infinite if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return float("inf")
