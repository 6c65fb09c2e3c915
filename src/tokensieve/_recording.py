"""Whether a forward is being recorded into a graph (by torch.compile, torch.export or torch.jit.trace) or counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_counted: ContextVar[bool] = ContextVar("counted", default=False)


def recording() -> bool:
    """Whether this forward is being recorded into a graph, which must not depend on pixel values or the batch size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def counted() -> bool:
    """Whether the MACs of this forward are being counted; then no operator may be replaced by a faster kernel."""
    return _counted.get()


@contextmanager
def counting() -> Iterator[None]:
    """Context in which `counted` is True."""
    before = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(before)


def as_int(count: Any) -> int:
    """A size as an integer. Under torch.jit.trace sizes are tensors, whose product with a ratio would be float32."""
    return int(count) if isinstance(count, Tensor) else count


def is_empty(batch: Tensor) -> bool:
    """Whether a batch is empty; always False while a graph is recorded."""
    return not recording() and batch.shape[0] == 0


def dummy_batch(images: Tensor) -> Tensor:
    """One blank image to run in place of an empty batch, which blocks of several hosts cannot handle."""
    return images.new_zeros(1, *images.shape[1:])
