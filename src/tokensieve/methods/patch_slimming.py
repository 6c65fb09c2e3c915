"""Patch Slimming: the same patches for every image, fewer from block to block."""

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
    """Keep patches chosen beforehand, the same for all images (Tang et al., CVPR 2022, section 3).

    Args:
        patches: for each block the patches that are alive after it, as row-major indices on the grid; what a block
            drops never comes back. `slim` searches them. An empty tuple leaves prefix tokens alone, which takes a host
            whose head reads nothing else.
        form: `A`, the paper's formula, makes queries of the kept patches alone, keys and values of all that arrive;
            `B` drops the others before the block, so that nothing reads them.
        grid: patches along each axis of the images that `patches` were chosen on; other images are refused. None
            takes any grid that has these patches.
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
            raise RecipeError(
                f"patch_slimming: grid must be made of whole numbers, such as (14, 14), not {self.grid!r}."
            )
        patches = self.patches
        if not isinstance(patches, tuple | list) or not patches or not all(map(_counts, patches)):
            raise RecipeError(
                "patch_slimming: patches must be a tuple with one tuple of patch indices for each block, such as "
                "((0, 1, 2), (1,), ())."
            )
        for block, kept in enumerate(patches):
            if len(set(kept)) != len(kept):
                raise RecipeError(f"patch_slimming: block {block} names a patch twice.")
            if self.grid is not None and kept and max(kept) >= prod(self.grid):
                raise RecipeError(f"patch_slimming: a grid of {_spell(self.grid)} has no patch {max(kept)}.")
        for block, (before, after) in enumerate(pairwise(patches), 1):
            back = set(after) - set(before)
            if back:
                raise RecipeError(
                    f"patch_slimming: block {block} keeps patch {min(back)}, which block {block - 1} has dropped; "
                    "each block's patches must be among those of the block before."
                )
        object.__setattr__(self, "patches", tuple(tuple(sorted(kept)) for kept in patches))
        object.__setattr__(self, "grid", None if self.grid is None else tuple(self.grid))
        if self.form == "B":
            object.__setattr__(self, "place", "before")

    def left(self, site: TokenSite) -> int:
        if site.depth != len(self.patches):
            raise RecipeError(
                f"patch_slimming names the patches of {len(self.patches)} blocks and this model has {site.depth}: "
                "search them for this model, with tokensieve slim."
            )
        return min(site.tokens, site.prefix + len(self.patches[site.block]))

    def prepare(self, tokens: Tokens) -> None:
        """Refuse images whose patches are not the ones that were chosen from."""
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
    """Constants: which of the patches that arrive at a block stay."""

    def __init__(self, patches: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        arriving: Sequence[int] = range(1 + max(patches[0], default=-1))  # at block 0 a patch's place is its index
        for block, kept in enumerate(patches):
            index_of = {patch: position for position, patch in enumerate(arriving)}
            index = torch.tensor([index_of[patch] for patch in kept], dtype=torch.int64)
            self.register_buffer(f"block{block}", index, persistent=False)
            arriving = kept

    def of(self, block: int) -> Tensor:
        return cast(Tensor, getattr(self, f"block{block}"))  # torch 2.6 does not compile get_buffer


def _counts(values: Any, least: int = 0) -> bool:
    """Whether this is a sequence of whole numbers."""
    return isinstance(values, tuple | list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= least for n in values
    )


def _spell(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
