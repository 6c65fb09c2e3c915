"""A forward that is being recorded into a graph: by torch.compile, torch.export or torch.jit.trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def recording() -> bool:
    """Whether this forward becomes a graph, which must not depend on what these images hold or how many they are."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def whole(count: Any) -> int:
    """A size as an integer. torch.jit.trace makes sizes tensors, whose product with a share would be in float32."""
    return int(count) if isinstance(count, Tensor) else count


def is_empty(batch: Tensor) -> bool:
    """Whether a batch is empty; one that is recorded never is."""
    return not recording() and batch.shape[0] == 0


def dummy_batch(images: Tensor) -> Tensor:
    """One blank image in the place of none: blocks of several hosts, and what ranks, fail on an empty batch."""
    return images.new_zeros(1, *images.shape[1:])
