"""Padding: images of one batch with unlike numbers of tokens, filled up to one. It is made and taken away here alone;
`Attention.mask` and `Tokens.counted` leave it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ._frozen import replace
from ._recording import recording
from .attention import BlockQKV
from .errors import UnsupportedHost
from .tokens import Tokens

Act = Callable[[Tensor, Tokens], Tokens]


class Attending(Protocol):
    """A method that computes the attention itself."""

    name: ClassVar[str]

    def attend(self, attention: BlockQKV) -> tuple[Tensor, Tensor]: ...


def each(tokens: Tokens, act: Act, count: int, name: str) -> Tokens:
    """Let `act` see the images of each length together, without padding, and fill up what it returns.

    Args:
        tokens: with `lengths`.
        act: images (B',) int64, and their tokens -> their tokens after it.
        count: what to fill up to, at the least.
        name: what acts, for the error.

    Raises:
        UnsupportedHost: the forward is being recorded, and a graph must not depend on lengths.
    """
    results = [(images, act(images, tokens.of(images, length))) for images, length in groups(tokens.lengths, name)]
    return pad([images for images, _ in results], [part for _, part in results], count)


def attend_each(method: Attending, attention: BlockQKV) -> tuple[Tensor, Tensor]:
    """What a method that computes the attention itself makes of it, without padding, and filled up again."""
    alike = groups(attention.lengths, method.name)
    parts = [(images, *method.attend(attention.of(images, count))) for images, count in alike]
    order, count = torch.cat([images for images, *_ in parts]).argsort(), attention.q.shape[2]
    attended = torch.cat([filled(part.transpose(1, 2), count).transpose(1, 2) for _, part, _ in parts])[order]
    return attended, torch.cat([filled(found, count) for *_, found in parts])[order]


def groups(lengths: Tensor | None, name: str) -> Iterator[tuple[Tensor, int]]:
    """The images of each length, shortest first: (B',) int64 in ascending order, and that length."""
    assert lengths is not None
    if recording():
        raise UnsupportedHost(
            f"{name} acts on images with unlike numbers of tokens, each with its own count, which a compiled or "
            f"exported graph cannot: let {name} act in an earlier block, or call the model as it is."
        )
    for count in lengths.unique().tolist():
        yield (lengths == count).nonzero()[:, 0], count


def pad(images: Sequence[Tensor], parts: Sequence[Tokens], count: int = 0) -> Tokens:
    """One batch of several, `images` saying whose tokens each holds: filled up with zeros to the longest, or more."""
    order = torch.cat(list(images)).argsort()
    count = max([count, *(part.x.shape[1] for part in parts)])
    lengths = torch.cat([part.each() for part in parts])[order]
    whole = bool((lengths == count).all())

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        values = [_default(part, name) if value is None else value for part, value in zip(parts, values, strict=True)]
        if name == "source":
            return torch.cat(values)[order]
        full = count - parts[0].prefix if name == "positions" else count
        return torch.cat([filled(value, full) for value in values])[order]

    names = ("x", "positions", "size", "weight", "source", "block_rows")
    return replace(parts[0], **{name: joined(name) for name in names}, lengths=None if whole else lengths)


def compact(tokens: Tokens, stays: Tensor) -> Tokens:
    """The tokens where `stays` (B, N) bool is True, in their order, filled up to the longest image; in a graph that is
    recorded, whose sizes must not depend on images, to all N."""
    lengths = stays.sum(1)
    longest = stays.shape[1] if recording() else int(lengths.max())
    taken = tokens.take(stays.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :longest])
    if not recording() and bool((lengths == longest).all()):
        return replace(taken, lengths=None)
    source = taken.source
    source = None if source is None else source.masked_fill(source >= lengths[:, None], -1)
    return replace(taken, source=source, lengths=lengths)


def filled(values: Tensor, count: int) -> Tensor:
    """(B, N, ...) -> (B, count, ...), zeros behind."""
    if values.shape[1] == count:
        return values
    return torch.cat([values, values.new_zeros(len(values), count - values.shape[1], *values.shape[2:])], dim=1)


def _default(part: Tokens, name: str) -> Tensor:
    """What a field that is None stands for."""
    if name == "positions":
        return part.places[:, : part.x.shape[1] - part.prefix]
    if name == "block_rows":
        return part.places
    return torch.ones(part.x.shape[:2], dtype=torch.promote_types(part.x.dtype, torch.float32), device=part.x.device)
