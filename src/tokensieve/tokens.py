"""Tokens: the one thing that flows through a sieved model."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ._frozen import replace
from ._recording import recording
from .errors import InputError

PER_IMAGE = ("x", "positions", "size", "weight", "source", "block_rows")
"""Fields of `Tokens` whose first axis is the batch, except `lengths`."""


@dataclass(frozen=True)
class Tokens:
    """Token activations, and which patches of the grid each token represents. Never changed in place.

    B images, N tokens of which the first `prefix` are class, distillation or register tokens, d channels, P patches.
    """

    x: Tensor
    """(B, N, d) activations."""
    prefix: int
    grid: tuple[int, ...]
    """Patches along each axis, (h, w) or (t, h, w); its product is P."""
    positions: Tensor | None = None
    """(B, N - prefix) int64: the patch whose position each token has. None: 0, 1, 2, ... in row-major order."""
    table: Tensor | None = None
    """The host's positional table over the whole grid (rotary embedding); hosts gather its rows by `positions`."""
    size: Tensor | None = None
    """(B, N) number of patches averaged in each token. None: one each."""
    weight: Tensor | None = None
    """(B, N) factor on the exponential of each key's attention logit. None: one each."""
    source: Tensor | None = None
    """(B, P) int64: index of the token that represents each patch, -1 if it was dropped. None: not tracked."""
    block_rows: Tensor | None = None
    """(B, N) int64: index of each token in the input of the current block. None: no token has moved in this block."""
    lengths: Tensor | None = None
    """(B,) int64: number of tokens of each image, prefix included; the rest is padding. None: N for every image.
    `padding.py` adds and removes padding; attention and pooling ignore it."""

    @property
    def places(self) -> Tensor:
        """(B, N) int64: 0 ... N - 1 for each image."""
        return torch.arange(self.x.shape[1], device=self.x.device).expand(self.x.shape[0], -1)

    @property
    def whole(self) -> bool:
        """Whether every patch of the grid has its own token, in the grid's order."""
        return self.positions is None and self.x.shape[1] == prod(self.grid) + self.prefix

    @property
    def real(self) -> Tensor | None:
        """(B, N) bool: False for padding. None: there is no padding."""
        return None if self.lengths is None else self.places < self.lengths[:, None]

    @property
    def counted(self) -> Tensor | None:
        """(B, N) weight of each token in an average over patches: its size, 0 for padding. None: one each."""
        real = self.real
        if real is None:
            return self.size
        return real.to(exact_type(self.x)) if self.size is None else self.size * real

    def lengths_per_image(self) -> Tensor:
        """(B,) int64: number of tokens of each image, also where `lengths` is None."""
        batch, count, _ = self.x.shape
        return torch.full((batch,), count, device=self.x.device) if self.lengths is None else self.lengths

    def tracked(self) -> Tokens:
        """The same tokens with `source` set, so that it is tracked from here on."""
        start = torch.arange(prod(self.grid), device=self.x.device) + self.prefix
        return replace(self, source=start.expand(self.x.shape[0], -1))

    def images(self, which: Tensor) -> Tokens:
        """The tokens of the images with batch indices `which`, (B',) int64."""
        return self._images(which, (*PER_IMAGE, "lengths"))

    def nothing(self) -> Tokens:
        """An empty batch with the same number of tokens per image."""
        return self._images(slice(0), (*PER_IMAGE, "lengths"))

    def first(self, count: int) -> Tokens:
        """The first `count` tokens, prefix included. A view without a copy, so it costs no time."""
        if count == self.x.shape[1]:
            return self
        patches = count - self.prefix

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:, :count]

        return replace(
            self,
            x=self.x[:, :count],
            positions=None if self.positions is None else self.positions[:, :patches],
            table=self.table if self.table is None or self.positions is not None else self.table[..., :patches, :],
            size=cut(self.size),
            weight=cut(self.weight),
            source=None if self.source is None else self.source.masked_fill(self.source >= count, -1),
            block_rows=self.places[:, :count] if self.block_rows is None else cut(self.block_rows),
            lengths=None if self.lengths is None else self.lengths.clamp(max=count),
        )

    def of(self, images: Tensor, count: int) -> Tokens:
        """The first `count` tokens of the images with batch indices `images` (B',) int64; none of them is padding."""
        return replace(self._images(images, PER_IMAGE), lengths=None).first(count)

    def image(self, index: int, count: int) -> Tokens:
        """The first `count` tokens of one image, as a batch of one, without a copy."""
        return replace(self._images(slice(index, index + 1), PER_IMAGE), lengths=None).first(count)

    def _images(self, images: Tensor | slice, names: tuple[str, ...]) -> Tokens:
        """The tokens of some images of the batch; `names` are the fields to index by image."""
        selected = {name: None if (value := getattr(self, name)) is None else value[images] for name in names}
        return replace(self, **selected)

    def select(self, index: Tensor) -> Tokens:
        """Drop all patch tokens but `index` (B, K) int64, counted without the prefix; the prefix stays in front."""
        return self.take(torch.cat([self.places[:, : self.prefix], index + self.prefix], dim=1))

    def merge(
        self,
        keep: Tensor,
        sources: Tensor,
        destinations: Tensor,
        *,
        weigh: bool,
        by: Tensor | None = None,
        soften: Tensor | None = None,
        norm: Literal["mean", "max"] | None = None,
        merging: Tensor | None = None,
    ) -> Tokens:
        """Average the tokens `sources` into others.

        Args:
            keep: (B, M) int64, the tokens that stay, in their new order, prefix included.
            sources: (B, r) int64, the tokens that are merged away.
            destinations: (B, r) int64, where in the new order each of them goes; several may share a destination.
            weigh: from here on attention weights a merged token by its size (proportional attention).
            by: (B, N) fp32, the weight of each token in the average; None is its size.
            soften: (B, r) in [0, 1], the share of a source's weight that stays in attention; None is all of it.
            norm: scale each average to the `mean` norm of its group, with the weights of the average, or to the `max`.
            merging: (B, r) bool, which of the sources are merged, where their number differs between images; the
                others change nothing, whatever their destination is. None: all are merged.

        A merged token keeps the position of its destination.
        """
        size, weight = self.size, self.weight
        if size is None:
            size = torch.ones(self.x.shape[:2], dtype=exact_type(self.x), device=self.x.device)
        moved = size.gather(1, sources) if merging is None else size.gather(1, sources) * merging
        total = size.gather(1, keep).scatter_add_(1, destinations, moved)

        share, total_share = (moved, total) if by is None else _gathered(by, keep, sources, destinations, merging)
        total_share = total_share.gather(1, destinations)
        share = share / total_share.clamp(min=torch.finfo(total_share.dtype).tiny)  # padding has no size
        share = share.to(self.x.dtype)
        merged = replace(self, size=None, weight=None).take(keep)
        x = _average(self.x, merged.x, sources, destinations, share)
        if norm is not None:
            x = _stretch(x, self.x, keep, sources, destinations, share, norm, merging)

        if not weigh:
            weight = None if weight is None else weight.gather(1, keep)
        elif soften is None and (weight is None or weight is self.size):
            weight = total
        else:
            weight = torch.ones_like(size) if weight is None else weight
            weighted = weight.gather(1, sources) * (1 if soften is None else soften)
            weighted = weighted if merging is None else weighted * merging
            weight = weight.gather(1, keep).scatter_add(1, destinations, weighted)

        source = merged.source
        if self.source is not None and source is not None:
            moves = torch.full(self.x.shape[:2], -1, dtype=torch.int64, device=x.device)
            goes = destinations if merging is None else destinations.masked_fill(~merging, -1)
            moves = moves.scatter(1, sources, goes)
            moved_to = _lookup(moves, self.source)
            source = torch.where(moved_to >= 0, moved_to, source)
        return replace(merged, x=x, size=total, weight=weight, source=source)

    def fuse(self, keep: Tensor, dropped: Tensor, factor: Tensor) -> Tokens:
        """Keep some patch tokens and append one token: the sum of the others, each times its factor.

        Args:
            keep: (B, K) int64, patch tokens counted without the prefix.
            dropped: (B, R) int64, all others; the new token has the position of the first of them.
            factor: (B, R), the factor of each token in `dropped`.
        """
        index = torch.cat([self.places[:, : self.prefix], keep + self.prefix, dropped[:, :1] + self.prefix], dim=1)
        dropped = dropped + self.prefix
        kept_tokens = self.take(index)
        fused = factor.to(self.x.dtype)[:, None] @ rows(self.x, dropped)
        size = torch.ones(self.x.shape[:2], dtype=exact_type(self.x), device=self.x.device)
        size = size if self.size is None else self.size
        size = torch.cat([size.gather(1, index[:, :-1]), size.gather(1, dropped).sum(1, keepdim=True)], dim=1)
        source = kept_tokens.source
        if self.source is not None and source is not None:
            is_dropped = torch.zeros(self.x.shape[:2], dtype=torch.int64, device=keep.device).scatter(1, dropped, 1)
            patch_dropped = _lookup(is_dropped, self.source) == 1
            source = torch.where(patch_dropped, index.shape[1] - 1, source)
        return replace(kept_tokens, x=torch.cat([kept_tokens.x[:, :-1], fused], dim=1), size=size, source=source)

    def on_grid(self, features: Tensor | None = None, fill: str = "nearest") -> Tensor:
        """Put features of these tokens back on the grid of patches: see `restore`.

        Args:
            features: (B, N, C), or (B, N - prefix, C) without the prefix; by default the activations.
            fill: value of a dropped patch: that of the `nearest` kept patch, or `zero`.

        Returns:
            (B, C, *grid).

        Raises:
            InputError: features of another number of tokens, or no patch token is left.
        """
        assert self.source is not None
        features = self.x if features is None else features
        count, source = self.x.shape[1], self.source
        if count == self.prefix:
            raise InputError(
                "No patch token is left to restore: in its last block this recipe computes the prefix tokens alone."
            )
        if features.ndim != 3 or features.shape[1] not in (count, count - self.prefix):
            raise InputError(
                f"restore() takes features of shape (B, {count}, C), or (B, {count - self.prefix}, C) without "
                f"prefix tokens, not {tuple(features.shape)}."
            )
        if features.shape[1] != count:
            source = torch.where(source < 0, source, source - self.prefix)
        return restore(features, source, self.grid, fill)

    def whole_grid(self, fill: str = "nearest") -> Tokens:
        """Tokens for every patch of the grid, filled as by `on_grid`; the prefix tokens stay as they are."""
        if self.whole:
            return self
        x = torch.cat([self.x[:, : self.prefix], self.on_grid(fill=fill).flatten(2).transpose(1, 2)], dim=1)
        return Tokens(x, self.prefix, self.grid, table=self.table)

    def take(self, index: Tensor) -> Tokens:
        """The tokens at `index` (B, M) int64, counted in the whole sequence; the prefix must come first."""
        patches = index[:, self.prefix :] - self.prefix
        new_source = None
        if self.source is not None:
            new_index = torch.full(self.x.shape[:2], -1, dtype=torch.int64, device=index.device)
            order = torch.arange(index.shape[1], device=index.device).expand(index.shape[0], -1)
            new_source = _lookup(new_index.scatter(1, index, order), self.source)
        return replace(
            self,
            x=rows(self.x, index),
            positions=patches if self.positions is None else self.positions.gather(1, patches),
            size=None if self.size is None else self.size.gather(1, index),
            weight=None if self.weight is None else self.weight.gather(1, index),
            source=new_source,
            block_rows=index if self.block_rows is None else self.block_rows.gather(1, index),
        )


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, K) of x (B, N, d) -> (B, K, d). Copies whole rows; `gather` on the CPU copies single values."""
    picked = x.flatten(0, 1).index_select(0, _flat(index, x.shape[1]))
    return picked.view(x.shape[0], index.shape[1], x.shape[2])


def restore(features: Tensor, source: Tensor, grid: tuple[int, ...], fill: str = "nearest") -> Tensor:
    """Spread token features back over the grid of patches.

    Args:
        features: (B, N, C) one row per token, prefix included, as `source` counts them.
        source: (B, P) int64, the token of each patch, -1 where it was dropped.
        grid: patches along each axis; their product is P.
        fill: a dropped patch takes the row of the `nearest` kept patch (ties: the lower index), or `zero`.

    Returns:
        (B, C, *grid).
    """
    if fill not in ("nearest", "zero"):
        raise InputError(f'fill must be "nearest" or "zero", not {fill!r}.')
    if fill == "nearest" and (recording() or source.device.type != "cpu" or bool((source < 0).any())):
        axes = torch.meshgrid(*(torch.arange(n, device=source.device) for n in grid), indexing="ij")
        places = torch.stack([axis.flatten() for axis in axes], dim=1)
        distance = (places[:, None] - places[None]).square().sum(-1)
        distance = distance.masked_fill((source < 0)[:, None, :], torch.iinfo(torch.int64).max)
        source = source.gather(1, distance.argmin(-1))
    dense = rows(features, source.clamp(min=0))
    dense = dense.masked_fill((source < 0)[..., None], 0)
    return dense.transpose(1, 2).reshape(features.shape[0], features.shape[2], *grid)


def exact_type(x: Tensor) -> torch.dtype:
    """fp32, or the type of `x` if that is more precise."""
    return torch.promote_types(x.dtype, torch.float32)


def _gathered(
    by: Tensor, keep: Tensor, sources: Tensor, destinations: Tensor, merging: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Values of `by` at the sources, (B, r), and their sums at the kept tokens, own value included, (B, M)."""
    moved = by.gather(1, sources) if merging is None else by.gather(1, sources) * merging
    return moved, by.gather(1, keep).scatter_add(1, destinations, moved)


def _average(x: Tensor, kept: Tensor, sources: Tensor, destinations: Tensor, share: Tensor) -> Tensor:
    """The weighted mean, computed as a correction of the few rows that receive sources.

    A destination d becomes d + sum of share * (source - d). `kept` (B, M, d) is a copy and is changed in place.
    """
    flat = kept.flatten(0, 1)
    receivers = _flat(destinations, kept.shape[1])
    step = rows(x, sources).flatten(0, 1) - flat.index_select(0, receivers)
    return flat.index_add_(0, receivers, step * share.view(-1, 1)).view(kept.shape)


def _stretch(
    averaged: Tensor,
    x: Tensor,
    keep: Tensor,
    sources: Tensor,
    destinations: Tensor,
    share: Tensor,
    norm: str,
    merging: Tensor | None,
) -> Tensor:
    """Scale averages (B, M, d) to the mean or largest norm of their group; rows that received nothing stay as is."""
    norms = x.norm(dim=-1)
    kept_norms, source_norms = norms.gather(1, keep), norms.gather(1, sources)
    if norm == "max":
        source_norms = source_norms if merging is None else source_norms * merging  # no norm is below 0
        target_norms = kept_norms.scatter_reduce(1, destinations, source_norms, "amax")
    else:
        target_norms = kept_norms.scatter_add(
            1, destinations, share * (source_norms - kept_norms.gather(1, destinations))
        )
    length = averaged.norm(dim=-1)
    factor = torch.where(length > 0, target_norms / length.clamp(min=torch.finfo(x.dtype).tiny), 1)
    none = torch.zeros_like(factor)
    if merging is None:
        received = none.scatter(1, destinations, 1) > 0
    else:
        received = none.scatter_add(1, destinations, merging.to(x.dtype)) > 0
    return averaged * torch.where(received, factor, 1)[..., None]


def _flat(index: Tensor, length: int) -> Tensor:
    """(B, K) positions in sequences of `length` -> positions in their concatenation, (B K,)."""
    starts = torch.arange(index.shape[0], device=index.device) * length
    return (index + starts[:, None]).flatten()


def _lookup(table: Tensor, source: Tensor) -> Tensor:
    """table[source] for each image, with -1 in `source` staying -1."""
    return table.gather(1, source.clamp(min=0)).masked_fill(source < 0, -1)
