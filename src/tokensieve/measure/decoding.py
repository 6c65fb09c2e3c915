"""How fast pictures are decoded and prepared: what no model behind them can outrun."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from ..data import Batches, Failure
from ..data.scanning import PICTURES, Kind
from .outputs import nothing_read

ENOUGH = 512
"""Pictures after which the rate is known."""


@dataclass(frozen=True)
class Decoding:
    """The speed of a pass over pictures without a model."""

    per_second: float
    """Pictures decoded, resized, cropped and normalised in a second, once every worker is at work."""
    pictures: int
    """Read in all, those of the workers' start included."""
    workers: int
    """Processes that read ahead; 0 where pictures and model take turns in one process."""
    failures: tuple[Failure, ...] = ()
    """Pictures that could not be read; they count nowhere."""
    of: str = PICTURES.many
    """What is decoded: pictures or videos."""


def decoding(batches: Batches, *, keep: int, workers: int, seconds: float = 10.0) -> tuple[Decoding, Tensor]:
    """Read pictures for `seconds`, or `ENOUGH` of them, and keep the first.

    Args:
        batches: of `load_batches`; small batches make the figure finer.
        keep: pictures to return; at least so many are read, and a smaller set is repeated to that number.
        workers: the processes that `batches` was given.

    Returns:
        The figure, and the kept pictures (keep, 3, H, W) or clips (keep, *clip_shape) float32.

    Raises:
        InputError: not one picture could be read.
    """
    kept: list[Tensor] = []
    start = perf_counter()
    arrived = [(0, start)]
    for batch in batches:
        count = arrived[-1][0] + len(batch.images)
        arrived.append((count, perf_counter()))
        if arrived[-2][0] < keep:
            kept.append(batch.images)
        if count >= keep and (count >= ENOUGH or perf_counter() - start >= seconds):
            break
    if not kept:
        raise nothing_read(batches)
    # The first batch of each worker comes late, with its start, and the workers' first batches come together.
    (before, since), (count, until) = arrived[min(workers, len(arrived) - 2)], arrived[-1]
    images = torch.cat(kept)
    images = torch.cat([images] * -(-keep // len(images)))[:keep]
    rate = (count - before) / (until - since)
    kind: Kind = getattr(batches, "kind", PICTURES)
    return Decoding(rate, count, workers, tuple(batches.failures), kind.many), images
