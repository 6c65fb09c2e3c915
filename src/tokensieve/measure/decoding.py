"""Speed of decoding and preprocessing pictures, which limits the speed of any model that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from ..data import Batches, Failure
from ..data.scanning import PICTURES, Kind
from .outputs import nothing_read

ENOUGH = 512
"""Number of pictures after which the measured rate is accurate enough."""


@dataclass(frozen=True)
class Decoding:
    """The speed of a pass over pictures without a model."""

    per_second: float
    """Pictures decoded, resized, cropped and normalised per second, once every worker has started."""
    pictures: int
    """Number of pictures read, including those read while workers started."""
    workers: int
    """Loader processes; 0 if pictures are read in the process that runs the model."""
    failures: tuple[Failure, ...] = ()
    """Pictures that could not be read; they are not counted."""
    of: str = PICTURES.many
    """The media decoded: pictures or videos."""


def decoding(batches: Batches, *, keep: int, workers: int, seconds: float = 10.0) -> tuple[Decoding, Tensor]:
    """Read pictures for `seconds`, or `ENOUGH` of them, and return the rate and the first pictures.

    Args:
        batches: a loader of `load_batches`; smaller batches give a more exact rate.
        keep: number of pictures to return; at least that many are read, and a smaller set is repeated.
        workers: number of worker processes of `batches`.
        seconds: time to spend.

    Returns:
        The measured rate, and the first pictures (keep, 3, H, W) or clips (keep, *clip_shape) float32.

    Raises:
        InputError: no picture could be read.
    """
    first_images: list[Tensor] = []
    start = perf_counter()
    arrived = [(0, start)]
    for batch in batches:
        count = arrived[-1][0] + len(batch.images)
        arrived.append((count, perf_counter()))
        if arrived[-2][0] < keep:
            first_images.append(batch.images)
        if count >= keep and (count >= ENOUGH or perf_counter() - start >= seconds):
            break
    if not first_images:
        raise nothing_read(batches)
    # The first batches of all workers arrive late and together, since starting a worker takes time: leave them out.
    (before, since), (count, until) = arrived[min(workers, len(arrived) - 2)], arrived[-1]
    images = torch.cat(first_images)
    images = torch.cat([images] * -(-keep // len(images)))[:keep]
    rate = (count - before) / (until - since)
    kind: Kind = getattr(batches, "kind", PICTURES)
    return Decoding(rate, count, workers, tuple(batches.failures), kind.many), images
