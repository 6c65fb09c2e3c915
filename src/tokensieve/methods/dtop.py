"""Dynamic token pruning (DToP): tokens that a segmenter's auxiliary heads classify with confidence exit early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import RecipeError
from ..padding import compact
from ..tokens import Tokens
from .base import BaseMethod, ExitEvidence, HostFacts, Method, Place, TokenSite, register
from .matching import ranked
from .schedule import Layers, blocks, layers_field, shares_field


@register
@dataclass(frozen=True)
class DToP(Method[ExitEvidence]):
    """Early exits of easy tokens (Tang et al., ICCV 2023, arXiv 2308.01045, section 3.3).

    After some blocks the segmenter's auxiliary heads predict the class of each token. Tokens whose highest class
    probability is above a threshold exit: later attention and MLPs do not process them, and their prediction is final.
    The most confident tokens of each class stay as context.

    threshold=1, with budget=None, changes nothing.

    Args:
        threshold: in (0, 1]; tokens with a higher probability exit, none at 1. Or a tuple, one for each exit.
        layers: the blocks after which tokens exit; None is all of the segmenter's exits but the last.
        keep_per_class: how many of the exiting tokens of each class stay as context; with 0 at least one token stays.
        class_probability: the head that decides, for tokens that exited, whether their class is in the image: that of
            the `last` block, as published, or that of the `stage` where they exited.
        budget: None is the published rule. Or, instead of `threshold`, the share of the patches that stays after each
            exit, in (0, 1], or a tuple of them: first the context, then the tokens with the least confidence. The count
            is then the same for all images, as compiled or exported graphs need; not the published method.
    """

    threshold: float | tuple[float, ...] = shares_field(0.95)
    layers: Layers = layers_field()
    keep_per_class: int = 5
    class_probability: Literal["last", "stage"] = "last"
    budget: float | tuple[float, ...] | None = shares_field(None)

    name: ClassVar[str] = "dtop"
    place: ClassVar[Place] = "after"
    pads: ClassVar[bool] = True
    knows_padding: ClassVar[bool] = True
    reads_exits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.keep_per_class) is not int or self.keep_per_class < 0:
            raise RecipeError(f"dtop: keep_per_class must be a whole number from 0 up, not {self.keep_per_class!r}.")
        if self.class_probability not in ("last", "stage"):
            raise RecipeError(f"dtop: class_probability must be last or stage, not {self.class_probability!r}.")

    def on(self, host: HostFacts) -> DToP:
        """Fill in `layers` from the host's exits where it is None."""
        method = super().on(host)
        return method if method.layers is not None else replace(method, layers=tuple(host.exits)[:-1])

    def check(self, host: HostFacts, others: Sequence[BaseMethod]) -> None:
        super().check(host, others)
        stages = blocks(self.layers, len(host.blocks), ())
        for block in stages:
            if block not in tuple(host.exits)[:-1]:
                raise RecipeError(
                    f"dtop: there is no head after block {block}; tokens can exit after blocks "
                    f"{', '.join(map(str, tuple(host.exits)[:-1]))}."
                )
        for setting in ("threshold", "budget"):
            setting_value = getattr(self, setting)
            if isinstance(setting_value, tuple) and len(setting_value) != len(stages):
                raise RecipeError(
                    f"dtop: {setting} has {len(setting_value)} values, but tokens exit after {len(stages)} blocks."
                )

    @property
    def exit_classes(self) -> str:
        return self.class_probability

    @property
    def varies(self) -> bool:
        return self.budget is None

    def acts(self, site: TokenSite) -> bool:
        if self.budget is not None:
            return self.left(site) < site.tokens
        return (stage := self._stage(site.block, site.depth)) is not None and _at(self.threshold, stage) < 1

    def left(self, site: TokenSite) -> int:
        """The number given by `budget`; with budget=None all tokens, since the number kept depends on the image."""
        stage = self._stage(site.block, site.depth)
        if self.budget is None or stage is None:
            return site.tokens
        return site.prefix + min(max(round(_at(self.budget, stage) * site.patches), 1), site.tokens - site.prefix)

    def _stage(self, block: int, depth: int) -> int | None:
        """Index of the block among the exits in `layers`; None if no tokens exit after it."""
        acting = sorted(blocks(self.layers, depth, ()))
        return acting.index(block) if block in acting else None

    def reduce(self, tokens: Tokens, left: int, evidence: ExitEvidence) -> Tokens:
        stage, prefix = self._stage(evidence.block, evidence.depth), tokens.prefix
        assert stage is not None
        probability = evidence.probability[:, :, prefix:]
        real = tokens.real
        exited = torch.zeros_like(probability[:, 0], dtype=torch.bool) if real is None else ~real[:, prefix:]
        if self.budget is not None:
            index = least_certain(probability, left - prefix, self.keep_per_class)
            return tokens.select(index)
        exited = exits(probability, exited, _at(self.threshold, stage), self.keep_per_class)
        return compact(tokens, torch.cat([exited.new_ones(exited.shape[0], prefix), ~exited], dim=1))


@torch.no_grad()
def exits(prediction: Tensor, exited: Tensor, threshold: float, keep_per_class: int) -> Tensor:
    """The tokens that have exited after this exit (arXiv 2308.01045, section 3.3).

    Args:
        prediction: (B, K, N) probability of each class at each token; columns of exited tokens are ignored.
        exited: (B, N) bool, tokens that exited earlier.
        threshold: tokens whose highest probability is above it exit.
        keep_per_class: of those, the k most confident tokens of each class stay; ties go to the lower index.

    Returns:
        (B, N) bool, `exited` included. At least one token stays in each image that had one.
    """
    confidence, _ = prediction.max(1)
    candidate = (confidence > threshold) & ~exited
    exiting = candidate & (rank_in_class(prediction, candidate) >= keep_per_class)
    # Without context tokens all could exit: keep the least confident one.
    last = confidence.masked_fill(exited, torch.inf).argmin(1, keepdim=True)
    empty = (exited | exiting).all(1, keepdim=True)
    exiting = exiting & ~(empty & torch.zeros_like(exiting).scatter(1, last, True))
    return exited | exiting


@torch.no_grad()
def least_certain(prediction: Tensor, count: int, keep_per_class: int) -> Tensor:
    """Indices (B, count) int64, ascending, of the context tokens of each class and of the least confident others.

    Context tokens are the `keep_per_class` most confident of each class. `prediction` (B, K, N) is the probability of
    each class at each token.
    """
    confidence, _ = prediction.max(1)
    all_tokens = torch.ones_like(confidence, dtype=torch.bool)
    context = rank_in_class(prediction, all_tokens) < keep_per_class
    # context tokens (scores above 2) come before all others (scores from 0 to 1)
    order = ranked(torch.where(context, 2 + confidence, 1 - confidence))
    return order[:, :count].sort(dim=1).values


@torch.no_grad()
def rank_in_class(prediction: Tensor, candidate: Tensor) -> Tensor:
    """(B, N) int64: the number of more confident candidates with the same predicted class; N for non-candidates."""
    batch, classes, count = prediction.shape
    confidence, predicted = prediction.max(1)
    predicted = predicted.masked_fill(~candidate, classes)
    order = ranked(confidence)
    order = order.gather(1, predicted.gather(1, order).argsort(dim=1, stable=True))  # by class, then by confidence
    sizes = predicted.new_zeros(batch, classes + 1).scatter_add(1, predicted, torch.ones_like(predicted))
    starts = (sizes.cumsum(1) - sizes).gather(1, predicted.gather(1, order))
    positions = torch.arange(count, device=predicted.device) - starts
    rank = torch.zeros_like(order).scatter(1, order, positions)
    return rank.masked_fill(~candidate, count)


def _at(values: float | tuple[float, ...], stage: int) -> float:
    return values[stage] if isinstance(values, tuple) else values
