"""The dense model's activations on some images, for the search of Patch Slimming."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, RecipeError, UnsupportedHost
from ..forward.walk import Step, walk
from ..hosts import Host, open_tokens
from ..measure.outputs import nothing_read, unpack
from ..tokens import Tokens

CHUNK = 8
"""Number of images whose attention matrices are held in memory at a time."""


class DenseTokens:
    """The dense model's activations on some images: before each block, and after the last."""

    def __init__(self, host: Host, chunks: list[list[Tokens]], size: tuple[int, ...]) -> None:
        self.host, self.chunks, self.size = host, chunks, size
        self.prefix, self.grid = host.prefix, chunks[0][0].grid
        self.images = sum(len(chunk[0].x) for chunk in chunks)

    @classmethod
    def read(cls, model: nn.Module, loader: Iterable[Any], limit: int | None) -> DenseTokens:
        """Run the model on the first `limit` images of a loader and keep its activations."""
        host = _open(model)
        chunks: list[list[Tokens]] = []
        size: tuple[int, ...] = ()
        for images in _chunks(model, loader, limit):
            if size and images.shape[1:] != size:
                raise InputError(f"The search needs images of one size, not {size} and {tuple(images.shape[1:])}.")
            size, tokens = tuple(images.shape[1:]), host.embed(images)
            chunk = [tokens]

            def keep(step: Step, chunk: list[Tokens] = chunk) -> None:
                chunk.append(step.tokens)

            walk(host.blocks, tokens, watch=[keep])
            chunks.append(chunk)
        if not chunks:
            raise nothing_read(loader)
        return cls(host, chunks, size)

    def index(self, patches: Sequence[int]) -> Tensor:
        """Indices of the prefix tokens and of `patches` in the sequence, (M,)."""
        indices = [*range(self.prefix), *(patch + self.prefix for patch in patches)]
        return torch.tensor(indices, device=self.chunks[0][0].x.device)


def _open(model: nn.Module) -> Host:
    """Open the host. Raises `UnsupportedHost` if Patch Slimming cannot be applied to it."""
    host, name = open_tokens(model, "slimmed"), type(model).__name__
    if not host.class_token or not host.reads_prefix:
        reason = "its head reads patch tokens too" if host.class_token else "it has no class token"
        raise UnsupportedHost(
            f"{name} cannot be slimmed: {reason}, and the search starts from a head that reads a class token. "
            "PaPr and ToMe do not need one."
        )
    for index, block in enumerate(host.blocks):
        if block.closed:
            raise UnsupportedHost(f"{name} cannot be slimmed: in block {index}, {block.closed}.")
    return host


def _chunks(model: nn.Module, loader: Iterable[Any], limit: int | None) -> Iterator[Tensor]:
    """The first `limit` images, a few at a time, on the model's device and in its precision."""
    if limit is not None and limit < 1:
        raise RecipeError(f"The limit on images must be at least 1, not {limit}.")
    weight, left = next(model.parameters()), limit
    for batch in loader:
        images, _ = unpack(batch)
        images = images if left is None else images[:left]
        yield from images.to(weight.device, weight.dtype).split(CHUNK)
        if left is not None:
            left -= len(images)
            if not left:
                return


def exact(x: Tensor) -> Tensor:
    """`x` in fp32, or in its own type if that is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
