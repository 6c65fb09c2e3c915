"""The dense model's activations on some images, which Patch Slimming's search reads."""

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
"""Images whose attention matrices are held at a time."""


class DenseTokens:
    """The dense model's activations on some images: before each block, and after the last."""

    def __init__(self, host: Host, chunks: list[list[Tokens]], size: tuple[int, ...]) -> None:
        self.host, self.chunks, self.size = host, chunks, size
        self.prefix, self.grid = host.prefix, chunks[0][0].grid
        self.images = sum(len(chunk[0].x) for chunk in chunks)

    @classmethod
    def read(cls, model: nn.Module, loader: Iterable[Any], limit: int | None) -> DenseTokens:
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
    """The host, or why Patch Slimming makes no sense on it."""
    host, name = open_tokens(model, "slimmed"), type(model).__name__
    if not host.class_token or not host.reads_prefix:
        why = "its head reads patch tokens too" if host.class_token else "it has no class token"
        raise UnsupportedHost(
            f"{name} cannot be slimmed: {why}, and the search starts from a head that reads a class token. "
            "PaPr and ToMe need none."
        )
    for index, block in enumerate(host.blocks):
        if block.closed:
            raise UnsupportedHost(f"{name} cannot be slimmed: in block {index}, {block.closed}.")
    return host


def _chunks(model: nn.Module, loader: Iterable[Any], limit: int | None) -> Iterator[Tensor]:
    """The first `limit` images, a few at a time, where the model is and in its precision."""
    if limit is not None and limit < 1:
        raise RecipeError(f"The limit on images must be at least 1, not {limit}.")
    like, left = next(model.parameters()), limit
    for batch in loader:
        images, _ = unpack(batch)
        images = images if left is None else images[:left]
        yield from images.to(like.device, like.dtype).split(CHUNK)
        if left is not None:
            left -= len(images)
            if not left:
                return


def exact(x: Tensor) -> Tensor:
    """In fp32, or more where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
