"""Trace: a record of the tokens that a sieved model kept, merged and dropped for a batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._frozen import replace
from ..errors import InputError
from ..hosts import Exit
from ..tokens import Tokens
from .walk import Reads, Step


class Mask(NamedTuple):
    """Patches, or pixels of a stage, that were kept."""

    title: str
    kept: Tensor
    """(B, K) int64, ascending unless the recipe's order says otherwise."""
    grid: tuple[int, ...]
    """The grid from which they were selected."""


@dataclass
class Trace:
    """The output of a sieved model for a batch of images, and the tokens that each of its blocks read."""

    output: Any = None
    """The host's output."""
    significance: Tensor | None = None
    """(B, *grid) fp32: the map that ranked the patches; None if the recipe uses no map."""
    kept: Any = None
    """(B, K) int64: the patches kept before block 0, in token order, padded with -1 for images that keep fewer; None if
    none were dropped there. On a host with stages a list with an entry per stage: the pixels that the stage's last
    block ran on, None for all."""
    reads: list[Reads] = field(default_factory=list)
    """Numbers of tokens, prefix and padding included, of each block's keys, queries and MLP."""
    lengths: list[Tensor] = field(default_factory=list)
    """For each block (B,) int64: number of tokens of each image that its MLP read, with prefix, without padding."""
    tokens: Tokens | None = None
    """The last block's tokens after the host's final norm."""

    masks: list[Mask] = field(default_factory=list)
    """Patches kept by ranking, with their grid: one entry if patches were dropped before block 0, or one for each stage
    in which pixels were selected."""
    looks: Sequence[int] = ()
    """Blocks whose class attention is recorded."""
    class_attention: dict[int, Tensor] = field(default_factory=dict)
    """Block -> (B, N) attention of its first token to each token it reads, mean over heads, fp32 or more precise."""
    exits: list[tuple[int, Tensor]] = field(default_factory=list)
    """For each exit its block, and (B, P) int64: the token after it that represents each patch, -1 for patches that
    exited before."""
    _read: list[Tokens] = field(default_factory=list)

    def begin(self, tokens: Tokens, significance: Tensor) -> None:
        """Record the tokens kept before block 0, and the map."""
        self.kept, self.significance = tokens.positions, significance.unflatten(1, tokens.grid)
        if tokens.positions is not None:
            if tokens.real is not None:
                self.kept = tokens.positions.masked_fill(~tokens.real[:, tokens.prefix :], -1)
            self.masks.append(Mask("Kept patches", self.kept, tokens.grid))

    def see(self, step: Step) -> None:
        """Record a block's step; of its tokens everything but the activations."""
        self.reads.append(step.reads)
        self.lengths.append(step.tokens.lengths_per_image())
        self._read.append(replace(step.read, x=step.read.x.new_empty(0).expand(*step.read.x.shape[:2], 0), table=None))

    def end(self, tokens: Tokens, class_attention: dict[int, Tensor], exits: Sequence[Exit]) -> None:
        """Record the final tokens, the class attention and the exits."""
        self.tokens, self.class_attention, self.exits = (
            tokens,
            class_attention,
            [(point.block, point.source) for point in exits],
        )

    def forget(self) -> None:
        """Make the trace that of an empty batch, for which a dummy image was run; only token counts stay."""
        self.significance = None if self.significance is None else self.significance[:0]
        indices = self.kept if isinstance(self.kept, list) else [self.kept]
        indices = [None if index is None else index[:0] for index in indices]
        self.kept = indices if isinstance(self.kept, list) else indices[0]
        self.masks = [mask._replace(kept=mask.kept[:0]) for mask in self.masks]
        self.class_attention = {block: attention[:0] for block, attention in self.class_attention.items()}
        self.tokens = None if self.tokens is None else self.tokens.nothing()
        self.exits = [(block, source[:0]) for block, source in self.exits]
        self.lengths = [lengths[:0] for lengths in self.lengths]
        self._read = [tokens.nothing() for tokens in self._read]

    @property
    def reads_per_image(self) -> list[list[Reads]]:
        """`reads` for each image alone; for recipes without a method that selects queries by their attention."""
        per_image: list[list[Reads]] = [[] for _ in self.lengths[0]]
        for reads, read, lengths in zip(self.reads, self._read, self.lengths, strict=True):
            for image_reads, keys, mlp in zip(
                per_image, read.lengths_per_image().tolist(), lengths.tolist(), strict=True
            ):
                queries = keys if reads.queries == reads.keys else reads.queries
                image_reads.append(Reads(keys, keys if reads.q_proj == reads.keys else reads.q_proj, queries, mlp))
        return per_image

    @property
    def tokens_per_block(self) -> list[int]:
        """Number of tokens, prefix included, that each block's MLP read."""
        return [reads.mlp for reads in self.reads]

    @property
    def source(self) -> Tensor:
        """(B, P) int64: index of the last block's token that represents each patch, prefix counted; -1 if dropped."""
        assert self.tokens is not None
        assert self.tokens.source is not None
        return self.tokens.source

    @property
    def sources(self) -> list[Tensor]:
        """For each block (B, P) int64: index, among the tokens it reads, of the token that represents each patch."""
        sources = [tokens.source for tokens in self._read]
        return [source for source in sources if source is not None]

    @property
    def left_behind(self) -> Tensor:
        """(B, *grid) int64: the block after which each patch exited, early by `dtop` or after the last block."""
        assert self.tokens is not None
        left = torch.full_like(self.source, len(self.reads) - 1)
        later = [source for _, source in self.exits[1:]] + [self.source]
        for (block, source), after in zip(self.exits, later, strict=True):
            left = left.masked_fill((source >= 0) & (after < 0), block)
        return left.unflatten(1, self.tokens.grid)

    def restore(self, features: Tensor | None = None, fill: str = "nearest", block: int | None = None) -> Tensor:
        """Put token features back on the grid of patches.

        Args:
            features: (B, N, C) for all tokens of the last block, or (B, N - prefix, C) without the prefix; by default
                the final features.
            fill: value of a dropped patch: that of the `nearest` kept patch, or `zero`.
            block: index of a block, if `features` belong to that block's input tokens instead.

        Returns:
            (B, C, *grid).
        """
        if block is None:
            assert self.tokens is not None
            return self.tokens.on_grid(features, fill)
        if not -len(self._read) <= block < len(self._read) or features is None:
            raise InputError(
                f"restore(features, block=...) takes features and one of {len(self._read)} blocks, 0 to "
                f"{len(self._read) - 1}, not {block}."
            )
        return self._read[block].on_grid(features, fill)
