"""A forward that is being recorded into a graph, by torch.compile, torch.export or torch.jit.trace, or counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_counted: ContextVar[bool] = ContextVar("counted", default=False)


def recording() -> bool:
    """Whether this forward becomes a graph, which must not depend on what these images hold or how many they are."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def counted() -> bool:
    """Whether the MACs of this forward are counted, for which each operator runs as itself, however slow."""
    return _counted.get()


@contextmanager
def counting() -> Iterator[None]:
    """Count what runs in here: see `counted`."""
    before = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(before)


def as_int(count: Any) -> int:
    """A size as an integer. torch.jit.trace makes sizes tensors, whose product with a share would be in float32."""
    return int(count) if isinstance(count, Tensor) else count


def is_empty(batch: Tensor) -> bool:
    """Whether a batch is empty; one that is recorded never is."""
    return not recording() and batch.shape[0] == 0


def dummy_batch(images: Tensor) -> Tensor:
    """One blank image, to be run in place of an empty batch, on which blocks of several hosts and rankings fail."""
    return images.new_zeros(1, *images.shape[1:])
