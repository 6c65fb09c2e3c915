"""How much each patch matters to what the head reads, over all paths through the deeper blocks."""

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
    """How much dropping each patch after each block can change what the head reads: section 3.2, exactly.

    The paper sums the squared norms over all H^(L-t) paths through the heads of the deeper blocks. With M = A'A for
    the product A of masked attentions along one path, the sum over paths follows

        M_L = I,  M_(l-1) = sum over h of P_l^h' (m_l m_l' * M_l) P_l^h,
        s_(t,i) = (M_t)_ii * sum over h of || P_t^h[i] |Z_(t-1)| ||^2,

    at O(H N^3) for a block and an image.

    Args:
        model, loader, limit: as in `slim`.
        patches: the patches alive after each block, nested, which mask the deeper blocks; None is all of them, but
            for the last block, after which prefix tokens alone are alive, as in the paper.
        approx: "head_mean" multiplies the attentions averaged over heads instead, and may rank otherwise.

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
            raise RecipeError(f"patches names {len(method.patches)} blocks and this model has {depth}.")
        moments = Moments(dense, approx)
        return torch.stack([moments.scores(method.patches[:block:-1]) for block in reversed(range(depth))]).flip(0)


class Moments:
    """Significance of patches, from the last block upwards. Only the latest step is held."""

    def __init__(self, dense: DenseTokens, approx: Approximation | None) -> None:
        if approx not in (None, "head_mean"):
            raise RecipeError(f'approx must be "head_mean" or None, not {approx!r}.')
        self.dense, self.average = dense, approx == "head_mean"
        self._norms: dict[int, list[Tensor]] = {}
        self._masks: Masks = ()
        self._held: list[Tensor] | None = None

    def scores(self, masks: Masks) -> Tensor:
        """(P,) float64 on the CPU: s of the block before those that `masks` are of; of -1, what is embedded."""
        block = len(self.dense.host.blocks) - 1 - len(masks)
        if block not in self._norms:
            self._norms[block] = [self._norm(block, chunk) for chunk in self.dense.chunks]
        total = torch.zeros(self._norms[block][0].shape[1], dtype=torch.float64)
        moments = self._at(masks)
        for turn, norm in enumerate(self._norms[block]):
            share = norm.double() if moments is None else norm.double() * self._diagonal(moments[turn]).double()
            total += share.sum(0).cpu()
        # The paper's sum over head paths; the mean, which fp32 holds at any depth, is what is carried along.
        paths = 1.0 if self.average else float(self._heads()) ** len(masks)
        return total[self.dense.prefix :] * (paths / self.dense.images)

    def _at(self, masks: Masks) -> list[Tensor] | None:
        """For each chunk M (B, N, N), or with averaged heads A (B, m, N), under `masks`; None is the identity."""
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
        """One block further up, where the tokens `index` (m,) are alive after it."""
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
