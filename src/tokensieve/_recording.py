"""Whether the current forward is recorded into a graph (by torch.compile, torch.export or torch.jit.trace), or run to
count its MACs; and helpers for code that must work in both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_counting_macs: ContextVar[bool] = ContextVar("counting_macs", default=False)


def recording() -> bool:
    """Whether this forward is being recorded into a graph. Python code must then not branch on tensor values or on the
    batch size, since the graph would keep one branch for all inputs."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def counting_macs() -> bool:
    """Whether the MACs of this forward are being counted; then no operator may be replaced by a faster kernel."""
    return _counting_macs.get()


@contextmanager
def while_counting_macs() -> Iterator[None]:
    """Context in which `counting_macs()` is True."""
    before = _counting_macs.set(True)
    try:
        yield
    finally:
        _counting_macs.reset(before)


def as_int(size: Any) -> int:
    """A size from `tensor.shape` as an integer.

    Under torch.jit.trace sizes are tensors, and a token count computed from one times a keep ratio would be rounded in
    float32.
    """
    return int(size) if isinstance(size, Tensor) else size


def is_empty(batch: Tensor) -> bool:
    """Whether a batch (B, ...) has no images; always False while a graph is recorded."""
    return not recording() and batch.shape[0] == 0


def dummy_batch(images: Tensor) -> Tensor:
    """One blank image (1, C, H, W) to run in place of an empty batch (0, C, H, W), which some hosts cannot handle."""
    return images.new_zeros(1, *images.shape[1:])
