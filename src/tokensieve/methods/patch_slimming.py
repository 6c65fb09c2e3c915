"""Patch Slimming: keeps a fixed set of patches for all images, which shrinks from block to block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..errors import InputError, RecipeError, UnsupportedHost
from ..tokens import Tokens
from .base import BaseMethod, Evidence, HostFacts, Method, Place, TokenSite, register


@register
@dataclass(frozen=True)
class PatchSlimming(Method[Evidence]):
    """Keep patches selected in advance, the same for all images (Tang et al., CVPR 2022, section 3).

    Args:
        patches: for each block the patches that remain after it, as row-major indices on the grid, each a subset of
            those of the previous block. `slim` searches them. An empty tuple keeps only prefix tokens, for hosts whose
            head reads only these.
        form: `A`, the paper's formula: kept patches are the queries, all tokens at the block the keys and values. `B`
            drops the others before the block, so that they are not keys and values either.
        grid: patches along each axis of the images for which `patches` were selected; images of another size are
            refused. None allows any grid that has these patches.
    """

    patches: tuple[tuple[int, ...], ...]
    form: Literal["A", "B"] = "A"
    grid: tuple[int, ...] | None = None

    name: ClassVar[str] = "patch_slimming"
    place: ClassVar[Place] = "queries"

    def __post_init__(self) -> None:
        if self.form not in ("A", "B"):
            raise RecipeError(f"patch_slimming: form must be A or B, not {self.form!r}.")
        if not _counts(self.grid, least=1) and self.grid is not None:
            raise RecipeError(f"patch_slimming: grid must be a tuple of integers, such as (14, 14), not {self.grid!r}.")
        patches = self.patches
        if not isinstance(patches, tuple | list) or not patches or not all(map(_counts, patches)):
            raise RecipeError(
                "patch_slimming: patches must be a tuple with one tuple of patch indices for each block, such as "
                "((0, 1, 2), (1,), ())."
            )
        for block, kept in enumerate(patches):
            if len(set(kept)) != len(kept):
                raise RecipeError(f"patch_slimming: block {block} has a patch twice.")
            if self.grid is not None and kept and max(kept) >= prod(self.grid):
                raise RecipeError(f"patch_slimming: a grid of {_spell(self.grid)} has no patch {max(kept)}.")
        for block, (before, after) in enumerate(pairwise(patches), 1):
            already_dropped = set(after) - set(before)
            if already_dropped:
                raise RecipeError(
                    f"patch_slimming: block {block} keeps patch {min(already_dropped)}, which block {block - 1} has "
                    "dropped; each block's patches must be among those of the previous block."
                )
        object.__setattr__(self, "patches", tuple(tuple(sorted(kept)) for kept in patches))
        object.__setattr__(self, "grid", None if self.grid is None else tuple(self.grid))
        if self.form == "B":
            object.__setattr__(self, "place", "before")

    def left(self, site: TokenSite) -> int:
        if site.depth != len(self.patches):
            raise RecipeError(
                f"patch_slimming has the patches of {len(self.patches)} blocks and this model has {site.depth}: "
                "search them for this model, with tokensieve slim."
            )
        return min(site.tokens, site.prefix + len(self.patches[site.block]))

    def prepare(self, tokens: Tokens) -> None:
        """Raise InputError for images with another grid than the one for which the patches were selected."""
        count = 1 + max((max(kept) for kept in self.patches if kept), default=-1)
        if self.grid is None and prod(tokens.grid) < count:
            raise InputError(f"patch_slimming keeps patch {count - 1}; these images have {prod(tokens.grid)} patches.")
        if self.grid not in (None, tokens.grid):
            raise InputError(
                f"patch_slimming was searched on images of {_spell(self.grid or ())} patches and these have "
                f"{_spell(tokens.grid)}: search again for this size, or use the size of the search."
            )

    def build(self, width: int, depth: int, pretrained: bool) -> nn.Module:
        return _Rows(self.patches)

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        index = evidence.module.of(evidence.block)
        return tokens.select(index.expand(tokens.x.shape[0], -1))

    def check(self, host: HostFacts, others: Sequence[BaseMethod]) -> None:
        super().check(host, others)
        name = type(host.model).__name__
        if not self.patches[-1] and not host.reads_prefix:
            raise UnsupportedHost(
                f"{name} cannot take patch_slimming: its head reads patches too, and none is kept in the last block."
            )
        other_names = [other.name for other in others if other.name != "readout"]
        if other_names:
            raise RecipeError(
                f"{name} cannot take patch_slimming: it identifies patches by their position in the image, which "
                f"{' and '.join(other_names)} would change; leave one of them out."
            )


class _Rows(nn.Module):
    """Constant index tensors: for each block, the positions of the kept patches among the block's input patches."""

    def __init__(self, patches: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        inputs: Sequence[int] = range(1 + max(patches[0], default=-1))  # at block 0 positions equal patch indices
        for block, kept in enumerate(patches):
            index_of = {patch: position for position, patch in enumerate(inputs)}
            index = torch.tensor([index_of[patch] for patch in kept], dtype=torch.int64)
            self.register_buffer(f"block{block}", index, persistent=False)
            inputs = kept

    def of(self, block: int) -> Tensor:
        return cast(Tensor, getattr(self, f"block{block}"))  # torch 2.6 cannot compile get_buffer


def _counts(values: Any, least: int = 0) -> bool:
    """Whether this is a sequence of integers of at least `least`."""
    return isinstance(values, tuple | list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= least for n in values
    )


def _spell(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
