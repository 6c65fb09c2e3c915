"""The tokens that arrive at the exits of a segmenter, and the number that exits there at a given threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..forward.walk import Step
from ..hosts import Host
from ..methods import DToP
from ..methods.dtop import rank_in_class
from ..recipe import Recipe
from ..stream import sieve

DIGITS = 6
"""Maximum number of digits of a rounded threshold."""


@dataclass(frozen=True)
class Arrived:
    """The patch tokens that arrive at one exit, for I images."""

    confidence: Tensor
    """(I, N) probability of each token's most probable class, in the model's precision; -1 for padding."""
    rank: Tensor
    """(I, N) int64: number of tokens of the same image and class that are more confident."""
    prefix: int

    def stays(self, threshold: float, keep_per_class: int) -> Tensor:
        """(I, N) bool: the tokens that stay under `dtop`, as in `methods.dtop.exits`."""
        has_arrived = self.confidence >= 0
        stays = has_arrived & ~((self.confidence > threshold) & (self.rank >= keep_per_class))
        if keep_per_class == 0:  # if all tokens would exit, the least confident one stays
            last = self.confidence.masked_fill(~has_arrived, torch.inf).argmin(1, keepdim=True)
            stays |= ~stays.any(1, keepdim=True) & torch.zeros_like(stays).scatter(1, last, True)
        return stays

    def left(self, threshold: float, keep_per_class: int) -> Tensor:
        """(I,) int64: number of tokens that stay in each image, prefix included."""
        return self.stays(threshold, keep_per_class).sum(1) + self.prefix

    def threshold(self, keep_per_class: int, enough: Callable[[Tensor], bool]) -> float:
        """The largest threshold at which enough tokens exit; 1 if none has to, and the smallest threshold if even that
        is not enough.

        `enough` takes the numbers of tokens that stay (I,) int64, and must be monotonic: True also for lower numbers.
        """
        counts = self.left(1.0, keep_per_class)
        if enough(counts):
            return 1.0
        can_exit = (self.confidence >= 0) & (self.rank >= keep_per_class)
        steps: list[float] = sorted({0.0, *self.confidence[can_exit].tolist()})
        low, high = 0, len(steps) - 1  # at steps[0] the most tokens exit
        while high > low:
            middle = (low + high + 1) // 2
            if enough(self.left(steps[middle], keep_per_class)):
                low = middle
            else:
                high = middle - 1
        return self._rounded(steps, low, keep_per_class)

    def _rounded(self, steps: list[float], index: int, keep_per_class: int) -> float:
        """A threshold with few digits at which the same tokens exit as at this step."""
        floor, ceiling = steps[index], (steps[index + 1] if index + 1 < len(steps) else 1.0)
        target = self.left(floor, keep_per_class)
        for digits in range(2, DIGITS + 1):
            short = round((floor + ceiling) / 2, digits)
            if floor <= short < ceiling and short > 0 and torch.equal(self.left(short, keep_per_class), target):
                return short
        return floor or ceiling / 2


class ExitReader:
    """Runs a segmenter on images and records the tokens at its exits.

    Args:
        model: a host with exits.
        batches: returns batches of images (B, 3, H, W) on the model's device.
    """

    def __init__(self, model: Any, batches: Callable[[], Iterable[Tensor]]) -> None:
        self.model, self.batches = model, batches

    def read(
        self, blocks: int, dtop: DToP | None = None, blocks_read: Sequence[int] = ()
    ) -> tuple[dict[int, Arrived], Tensor]:
        """Run the first `blocks` blocks, with the exits of `dtop`.

        Returns:
            The tokens that arrive at each exit in `blocks_read`; and (blocks + 1, I) int64, the number of tokens that
            every block reads of each image, and that are left after the last of them.
        """
        fast = sieve(self.model, Recipe() if dtop is None else dtop)
        by_block: dict[int, list[tuple[Tensor, Tensor]]] = {block: [] for block in blocks_read}
        counts: list[Tensor] = []
        for images in self.batches():
            lengths: list[Tensor] = []

            def record(step: Step, lengths: list[Tensor] = lengths) -> None:
                lengths.append(step.tokens.lengths_per_image().cpu())
                if step.block in by_block:
                    by_block[step.block].append(_confidence(fast.host, step))

            with torch.inference_mode():
                tokens = fast.stream.run(images, watch=[record], blocks=blocks)
            counts.append(torch.stack([*lengths, tokens.lengths_per_image().cpu()]))
        arrived = {block: _joined(parts, fast.host.prefix) for block, parts in by_block.items()}
        return arrived, torch.cat(counts, dim=1)


def _confidence(host: Host, step: Step) -> tuple[Tensor, Tensor]:
    """Confidence, and rank within its class, of each patch token after a block."""
    tokens, prefix = step.tokens, step.tokens.prefix
    probability = host.predict(step.block, tokens).probability[:, :, prefix:]
    real = torch.ones_like(probability[:, 0], dtype=torch.bool) if tokens.real is None else tokens.real[:, prefix:]
    confidence = probability.amax(1).masked_fill(~real, -1)
    return confidence.cpu(), rank_in_class(probability, real).cpu()


def _joined(parts: list[tuple[Tensor, Tensor]], prefix: int) -> Arrived:
    """Batches with different numbers of tokens, joined."""
    longest = max(confidence.shape[1] for confidence, _ in parts)

    def filled(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, longest - values.shape[1]), value=-1)

    confidence, rank = (torch.cat([filled(batch[part_index]) for batch in parts]) for part_index in (0, 1))
    return Arrived(confidence, rank, prefix)
