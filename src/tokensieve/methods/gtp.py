"""GTP: drops tokens, and propagates a part of their features to neighbouring tokens on a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._frozen import replace
from .._recording import as_int
from ..attention import BlockQKV
from ..errors import RecipeError
from ..tokens import Tokens, rows
from .base import AttentionEvidence, Method, Place, TokenSite, register
from .matching import metric, product, ranked
from .schedule import Layers, Schedule, at, layers_field, schedule_field


@register
@dataclass(frozen=True)
class GTP(Method[AttentionEvidence]):
    """Graph-based token propagation (Xu et al., WACV 2024, section 3).

    The score of a token is its attention to itself times the attention it receives; the `r` tokens with the lowest
    score are dropped in each block. Each kept token receives alpha times the edge weight times the features of dropped
    tokens. The graph connects neighbours on the grid and the most similar embedded patches, and is normalised once.

    In blocks where it acts, attention is computed head by head from the attention matrix, whose diagonal and column
    sums are needed. Fused attention cannot be used there, but a B x H x N x N matrix is never in memory.

    Args:
        r: tokens dropped in each block, as for `tome`.
        alpha: share of a dropped token that is propagated along each edge.
        sparsity: share of the attention matrix that is kept, the largest entries of each head, in (0, 1].
        neighbours: number of most similar patches to which each patch is connected.
        graph: `mixed`, or only `spatial` or `semantic` edges.
        layers: the blocks that act, as a slice or by their indices; None means all.
    """

    r: Schedule = schedule_field()
    alpha: float = 0.1
    sparsity: float = 1.0
    neighbours: int = 8
    graph: Literal["mixed", "spatial", "semantic"] = "mixed"
    layers: Layers = layers_field()

    name: ClassVar[str] = "gtp"
    place: ClassVar[Place] = "inside"
    attends: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sparsity <= 1:
            raise RecipeError(
                f"gtp: sparsity must be the share of attention that is kept, in (0, 1], not {self.sparsity}."
            )
        if not self.alpha >= 0:
            raise RecipeError(f"gtp: alpha must be 0 or more, not {self.alpha}.")
        if not isinstance(self.neighbours, int) or self.neighbours < 1:
            raise RecipeError(f"gtp: neighbours must be an integer from 1 up, not {self.neighbours!r}.")
        if self.graph not in ("mixed", "spatial", "semantic"):
            raise RecipeError(f"gtp: graph must be mixed, spatial or semantic, not {self.graph!r}.")

    def left(self, site: TokenSite) -> int:
        most = max(site.tokens - site.prefix - 1, 0)
        return site.tokens - min(at(self.r, self.layers, site.block, site.depth), most)

    def prepare(self, tokens: Tokens) -> Tensor:
        """(B, P, P) the normalised graph of the embedded patches."""
        unit = metric(tokens.x[:, tokens.prefix :])
        batch, patches, _ = unit.shape
        edges = torch.zeros(batch, patches, patches, dtype=unit.dtype, device=unit.device)
        if self.graph != "spatial":
            diagonal = torch.eye(patches, dtype=torch.bool, device=unit.device)
            cosine = product(unit, unit.transpose(1, 2)).masked_fill(diagonal, -2)
            nearest = ranked(cosine)[:, :, : min(self.neighbours, patches - 1)]
            edges = edges.scatter(2, nearest, 1)
        if self.graph != "semantic":
            edges = torch.maximum(edges, _adjacent(tokens.grid, unit))
        scale = edges.sum(2).clamp(min=1).rsqrt()
        return scale[:, :, None] * edges * scale[:, None, :]

    def attend(self, attention: BlockQKV) -> tuple[Tensor, Tensor]:
        """The attention's output, and the scores (B, N) of the tokens; those with the lowest score are dropped."""
        outputs, self_attention, received = [], [], []
        for head in range(attention.q.shape[1]):
            matrix = attention.head_probabilities(head)
            if self.sparsity < 1:
                matrix = sparse(matrix, self.sparsity)
            value = attention.v[:, head]
            outputs.append(F.dropout(matrix, attention.dropout).to(value.dtype) @ value)
            self_attention.append(matrix.diagonal(dim1=1, dim2=2))
            received.append(matrix.sum(1))
        score = torch.stack(self_attention).amax(0) * torch.stack(received).amax(0)
        return torch.stack(outputs, dim=1), score

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        prefix, graph = tokens.prefix, evidence.prepared
        score = evidence.follow(evidence.attention_scores, tokens)[:, prefix:]
        order = ranked(score)
        kept, dropped = order[:, : left - prefix], order[:, left - prefix :]
        kept_positions, dropped_positions = (
            index if tokens.positions is None else tokens.positions.gather(1, index) for index in (kept, dropped)
        )
        edges = kept_positions[:, :, None] * graph.shape[2] + dropped_positions[:, None, :]
        share = self.alpha * graph.flatten(1).gather(1, edges.flatten(1)).view(edges.shape)

        weight = score.new_ones(tokens.x.shape[:2]) if tokens.weight is None else tokens.weight
        received = share.to(tokens.x.dtype) @ rows(tokens.x, dropped + prefix)
        received_weight = (share @ weight.gather(1, dropped + prefix)[:, :, None])[:, :, 0]
        kept_tokens = replace(tokens, weight=weight).select(kept)
        assert kept_tokens.weight is not None
        x = torch.cat([kept_tokens.x[:, :prefix], kept_tokens.x[:, prefix:] + received], dim=1)
        weight = torch.cat([kept_tokens.weight[:, :prefix], kept_tokens.weight[:, prefix:] + received_weight], dim=1)
        return replace(kept_tokens, x=x, weight=weight)


def sparse(matrix: Tensor, share: float) -> Tensor:
    """Keep the largest `share` of each image's entries of matrices (B, N, N), and set the others to 0; entries equal to
    the smallest kept one are kept too."""
    flat = matrix.flatten(1)
    smallest = flat.topk(max(int(share * as_int(flat.shape[1])), 1), dim=1, sorted=False).values.amin(1)
    return matrix.masked_fill(matrix < smallest[:, None, None], 0)


def _adjacent(grid: tuple[int, ...], unit: Tensor) -> Tensor:
    """(P, P) 1 for patches that are neighbours, also diagonally, else 0; in the dtype and on the device of `unit`."""
    axes = torch.meshgrid(*(torch.arange(n, device=unit.device) for n in grid), indexing="ij")
    positions = torch.stack([axis.flatten() for axis in axes], dim=1)
    return ((positions[:, None] - positions[None]).abs().amax(2) == 1).to(unit.dtype)
