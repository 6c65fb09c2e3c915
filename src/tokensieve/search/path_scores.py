"""Significance of each patch for the head's input, over all paths through the deeper blocks (Patch Slimming)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..measure.outputs import evaluating
from ..methods.patch_slimming import PatchSlimming
from ..tokens import Tokens
from .dense_tokens import DenseTokens, exact

Approximation = Literal["head_mean"]
Masks = tuple[tuple[int, ...], ...]
"""The patches alive after each of the last blocks, the very last first."""


def significance_scores(
    model: nn.Module,
    loader: Iterable[Any],
    patches: Sequence[Sequence[int]] | None = None,
    *,
    limit: int | None = None,
    approx: Approximation | None = None,
) -> Tensor:
    """Upper bound on the change of the head's input if a patch is dropped after a block: section 3.2, exactly.

    The paper sums the squared norms over all H^(L-t) paths through the heads of the deeper blocks. With M = A'A for
    the product A of masked attentions along one path, the sum over paths follows

        M_L = I,  M_(l-1) = sum over h of P_l^h' (m_l m_l' * M_l) P_l^h,
        s_(t,i) = (M_t)_ii * sum over h of || P_t^h[i] |Z_(t-1)| ||^2,

    in O(H N^3) per block and image.

    Args:
        model, loader, limit: as in `slim`.
        patches: the patches kept after each block, nested, which mask the deeper blocks; None is all of them, except
            after the last block, where only prefix tokens are kept, as in the paper.
        approx: "head_mean" multiplies attentions averaged over heads instead, which may give another order.

    Returns:
        (L, P) float64, mean over images, on the CPU.

    Raises:
        UnsupportedHost, InputError: as `slim`.
        RecipeError: patches that are not nested, or of another depth.
    """
    with evaluating(model), torch.no_grad():
        dense = DenseTokens.read(model, loader, limit)
        depth, count = len(dense.host.blocks), math.prod(dense.grid)
        if patches is None:
            patches = [*[tuple(range(count))] * (depth - 1), ()]
        method = PatchSlimming(tuple(map(tuple, patches)), grid=dense.grid)
        if len(method.patches) != depth:
            raise RecipeError(f"patches has {len(method.patches)} blocks and this model has {depth}.")
        moments = Moments(dense, approx)
        return torch.stack([moments.scores(method.patches[:block:-1]) for block in reversed(range(depth))]).flip(0)


class Moments:
    """Computes the significance of patches from the last block towards the first; only the latest step is cached."""

    def __init__(self, dense: DenseTokens, approx: Approximation | None) -> None:
        if approx not in (None, "head_mean"):
            raise RecipeError(f'approx must be "head_mean" or None, not {approx!r}.')
        self.dense, self.average = dense, approx == "head_mean"
        self._norms: dict[int, list[Tensor]] = {}
        self._masks: Masks = ()
        self._held: list[Tensor] | None = None

    def scores(self, masks: Masks) -> Tensor:
        """(P,) float64 on the CPU: significance after the block before those in `masks`; -1 is the embedding."""
        block = len(self.dense.host.blocks) - 1 - len(masks)
        if block not in self._norms:
            self._norms[block] = [self._norm(block, chunk) for chunk in self.dense.chunks]
        total = torch.zeros(self._norms[block][0].shape[1], dtype=torch.float64)
        moments = self._at(masks)
        for turn, norm in enumerate(self._norms[block]):
            share = norm.double() if moments is None else norm.double() * self._diagonal(moments[turn]).double()
            total += share.sum(0).cpu()
        # The moments hold the mean over head paths, which fp32 can represent at any depth; the paper has the sum.
        paths = 1.0 if self.average else float(self._heads()) ** len(masks)
        return total[self.dense.prefix :] * (paths / self.dense.images)

    def _at(self, masks: Masks) -> list[Tensor] | None:
        """For each chunk M (B, N, N), or A (B, m, N) with averaged heads, under `masks`; None is the identity."""
        count = len(self._masks)
        if masks[:count] != self._masks:
            self._masks, self._held, count = (), None, 0
        for mask in masks[count:]:
            block = len(self.dense.host.blocks) - 1 - len(self._masks)
            moments: Sequence[Tensor | None] = self._held or [None] * len(self.dense.chunks)
            index = self.dense.index(mask)
            self._held = [
                self._step(block, chunk, index, moment)
                for chunk, moment in zip(self.dense.chunks, moments, strict=True)
            ]
            self._masks += (mask,)
        return self._held

    def _step(self, block: int, chunk: list[Tokens], index: Tensor, moment: Tensor | None) -> Tensor:
        """The moment one block closer to the input, with the tokens `index` (m,) kept after that block."""
        tokens = chunk[block]
        query_rows = index.expand(len(tokens.x), -1)
        attention = self.dense.host.blocks[block].qkv(tokens).only_queries(query_rows)
        heads = attention.q.shape[1]
        if self.average:
            mean = sum(attention.head_probabilities(head) for head in range(heads)) / heads
            assert isinstance(mean, Tensor)
            return mean if moment is None else moment[:, :, index] @ mean
        alive = None if moment is None else moment[:, index][:, :, index]
        total = torch.zeros((), device=tokens.x.device)
        for head in range(heads):
            rows = attention.head_probabilities(head)
            total = total + rows.transpose(1, 2) @ (rows if alive is None else alive @ rows) / heads
        return total

    def _norm(self, block: int, chunk: list[Tokens]) -> Tensor:
        """(B, N): for each token the sum over heads of || P^h[i] |Z| ||^2; before block 0 of || Z[i] ||^2."""
        if block < 0:
            return exact(chunk[0].x).square().sum(-1)
        size = exact(chunk[block].x).abs()
        attention = self.dense.host.blocks[block].qkv(chunk[block])
        norms = (attention.head_probabilities(head) @ size for head in range(attention.q.shape[1]))
        return torch.stack([norm.square().sum(-1) for norm in norms]).sum(0)

    def _diagonal(self, moment: Tensor) -> Tensor:
        return moment.square().sum(1) if self.average else moment.diagonal(dim1=1, dim2=2)

    def _heads(self) -> int:
        return self.dense.host.blocks[0].qkv(self.dense.chunks[0][0]).q.shape[1]
