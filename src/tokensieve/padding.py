"""Padding of batches whose images have different numbers of tokens. Only this file adds and removes it;
`BlockQKV.mask` and `Tokens.counted` exclude padding tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ._frozen import replace
from ._recording import recording
from .attention import BlockQKV
from .errors import UnsupportedHost
from .tokens import PER_IMAGE, Tokens, exact_type

CALL = 2**21
"""Padding tokens times channels squared whose work in a block takes as long as one more call of it."""
ReduceFn = Callable[[Tensor, Tokens], Tokens]
_PACKS = ContextVar("packs", default=True)


class Attending(Protocol):
    """A method that computes the attention itself."""

    name: ClassVar[str]

    def attend(self, attention: BlockQKV) -> tuple[Tensor, Tensor]: ...


def per_length(tokens: Tokens, act: ReduceFn, count: int, name: str) -> Tokens:
    """Call `act` once for each group of images of equal length, without padding, and pad the results to one batch.

    Args:
        tokens: with `lengths`.
        act: (batch indices (B',) int64, the tokens of these images) -> their reduced tokens.
        count: the minimum length to pad to.
        name: what acts, for the error.

    Raises:
        UnsupportedHost: under torch.compile or export, whose graph must not depend on lengths.
    """
    results = [(images, act(images, tokens.of(images, length))) for images, length in groups(tokens.lengths, name)]
    return pad([images for images, _ in results], [piece for _, piece in results], count)


def one_by_one(tokens: Tokens, run: Callable[[Tokens], Tensor]) -> Tensor:
    """`run` on the tokens of one image after the other, without padding: (B, N, d), zeros in place of padding."""
    assert tokens.lengths is not None
    output = torch.zeros_like(tokens.x)
    for image, count in enumerate(tokens.lengths.tolist()):
        output[image, :count] = run(tokens.image(image, count))[0]
    return output


@contextmanager
def unpacked() -> Iterator[None]:
    """Context in which padding is computed like any token, as in a graph, so that counts of MACs follow the shapes."""
    token = _PACKS.set(False)
    try:
        yield
    finally:
        _PACKS.reset(token)


@dataclass(frozen=True)
class Packing:
    """Images of different lengths as one sequence without padding, for layers that treat each token separately."""

    index: Tensor
    """(T,) int64: flat index of each real token in (B, N)."""
    inverse: Tensor
    """(B N,) int64: index among the T tokens of each position in (B, N); 0 for padding, which is never read."""
    batch: int
    count: int

    @classmethod
    def of(cls, tokens: Tokens) -> Packing | None:
        """The packing of these tokens; None if there is no padding, and in graphs, whose sizes must be fixed."""
        real = None if recording() or not _PACKS.get() else tokens.real
        if real is None:
            return None
        flat = real.flatten()
        inverse = (flat.cumsum(0) - 1) * flat
        return cls(flat.nonzero()[:, 0], inverse, *real.shape)

    def pack(self, x: Tensor) -> Tensor:
        """(B, N, ...) -> (1, T, ...)."""
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """(1, T, ...) -> (B, N, ...), with copies of the first token in place of padding."""
        rows = x[0].flatten(1)  # heads are strided: copying them first is faster than selecting their rows
        return rows.index_select(0, self.inverse).view(self.batch, self.count, *x.shape[2:])


def faster_one_by_one(tokens: Tokens) -> bool:
    """Whether running images one after the other is faster than padding them to the longest.

    On a CPU a large matrix product gains no efficiency from more rows, so padding costs time. A call per image costs a
    little too, so it does not pay for small images.
    """
    if tokens.lengths is None or recording() or tokens.x.device.type != "cpu":
        return False
    batch, count, width = tokens.x.shape
    padding = batch * count - int(tokens.lengths.sum())
    return padding * width**2 > CALL * batch


def attend_per_length(method: Attending, attention: BlockQKV) -> tuple[Tensor, Tensor]:
    """Call `method.attend` once for each group of images of equal length, without padding, and pad the results."""
    batches = list(groups(attention.lengths, method.name))
    results = [method.attend(attention.of(indices, length)) for indices, length in batches]
    order, count = torch.cat([indices for indices, _ in batches]).argsort(), attention.q.shape[2]
    attended = torch.cat([filled(out.transpose(1, 2), count).transpose(1, 2) for out, _ in results])[order]
    return attended, torch.cat([filled(scores, count) for _, scores in results])[order]


def groups(lengths: Tensor | None, name: str) -> Iterator[tuple[Tensor, int]]:
    """For each distinct length, shortest first: the batch indices (B',) int64 of its images, ascending; the length."""
    assert lengths is not None
    if recording():
        raise UnsupportedHost(
            f"{name} acts on images with different numbers of tokens, which a compiled or exported graph cannot "
            f"handle: let {name} act in an earlier block, or call the model without compiling it."
        )
    for count in lengths.unique().tolist():
        yield (lengths == count).nonzero()[:, 0], count


def pad(images: Sequence[Tensor], parts: Sequence[Tokens], count: int = 0) -> Tokens:
    """Join `parts` to one batch, ordered by their batch indices `images`; zero-pad to the longest, at least `count`."""
    order = torch.cat(list(images)).argsort()
    count = max([count, *(part.x.shape[1] for part in parts)])
    lengths = torch.cat([part.lengths_per_image() for part in parts])[order]
    unpadded = bool((lengths == count).all())

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        values = [_default(part, name) if value is None else value for part, value in zip(parts, values, strict=True)]
        if name == "source":  # one entry for each patch, not for each token: nothing to pad
            return torch.cat(values)[order]
        full = count - parts[0].prefix if name == "positions" else count
        return torch.cat([filled(value, full) for value in values])[order]

    return replace(parts[0], **{name: joined(name) for name in PER_IMAGE}, lengths=None if unpadded else lengths)


def compact(tokens: Tokens, stays: Tensor) -> Tokens:
    """The tokens where `stays` (B, N) bool is True, in order, padded to the longest image; under torch.compile or
    export, whose sizes must not depend on images, to all N. Padding holds removed tokens."""
    lengths = stays.sum(1)
    longest = stays.shape[1] if recording() else int(lengths.max())
    taken = tokens.take(stays.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :longest])
    if not recording() and bool((lengths == longest).all()):
        return replace(taken, lengths=None)
    source = taken.source
    source = None if source is None else source.masked_fill(source >= lengths[:, None], -1)
    return replace(taken, source=source, lengths=lengths)


def filled(values: Tensor, count: int) -> Tensor:
    """(B, N, ...) -> (B, count, ...), zero-padded at the end."""
    if values.shape[1] == count:
        return values
    return torch.cat([values, values.new_zeros(len(values), count - values.shape[1], *values.shape[2:])], dim=1)


def _default(part: Tokens, name: str) -> Tensor:
    """The values of a field that is None."""
    if name == "positions":
        return part.places[:, : part.x.shape[1] - part.prefix]
    if name == "block_rows":
        return part.places
    return torch.ones(part.x.shape[:2], dtype=exact_type(part.x), device=part.x.device)
