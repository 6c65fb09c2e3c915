"""GTP: tokens that are dropped hand a part of themselves to their neighbours on a graph."""

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

    A token that attends to itself and is attended to is hard to replace; the `r` easiest are dropped in each block,
    and each kept token receives alpha times what the graph says of them. The graph joins neighbours on the grid and
    the most similar embedded patches, and is normalised once.

    Where it acts, attention is computed head by head from its matrix: diagonal and column sums of all of it are needed,
    so fused attention is lost there, though no B x H x N x N is ever held.

    Args:
        r: tokens dropped in each block, as for `tome`.
        alpha: share of a dropped token that is handed on along each edge.
        sparsity: share of the attention matrix that is kept, the largest of each head, in (0, 1].
        neighbours: most similar patches that each patch is joined with.
        graph: `mixed`, or `spatial` or `semantic` alone.
        layers: the blocks that act, as a slice or by their numbers; None means all.
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
            raise RecipeError(f"gtp: sparsity is the share of attention that is kept, in (0, 1], not {self.sparsity}.")
        if not self.alpha >= 0:
            raise RecipeError(f"gtp: alpha must be 0 or more, not {self.alpha}.")
        if not isinstance(self.neighbours, int) or self.neighbours < 1:
            raise RecipeError(f"gtp: neighbours must be a whole number from 1 up, not {self.neighbours!r}.")
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
            itself = torch.eye(patches, dtype=torch.bool, device=unit.device)
            cosine = product(unit, unit.transpose(1, 2)).masked_fill(itself, -2)
            nearest = ranked(cosine)[:, :, : min(self.neighbours, patches - 1)]
            edges = edges.scatter(2, nearest, 1)
        if self.graph != "semantic":
            edges = torch.maximum(edges, _adjacent(tokens.grid, unit))
        scale = edges.sum(2).clamp(min=1).rsqrt()
        return scale[:, :, None] * edges * scale[:, None, :]

    def attend(self, attention: BlockQKV) -> tuple[Tensor, Tensor]:
        """The attention's output, and (B, N) how hard each token is to replace."""
        outputs, itself, received = [], [], []
        for head in range(attention.q.shape[1]):
            matrix = attention.head_probabilities(head)
            if self.sparsity < 1:
                matrix = sparse(matrix, self.sparsity)
            value = attention.v[:, head]
            outputs.append(F.dropout(matrix, attention.dropout).to(value.dtype) @ value)
            itself.append(matrix.diagonal(dim1=1, dim2=2))
            received.append(matrix.sum(1))
        score = torch.stack(itself).amax(0) * torch.stack(received).amax(0)
        return torch.stack(outputs, dim=1), score

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        prefix, graph = tokens.prefix, evidence.prepared
        score = evidence.follow(evidence.attention_scores, tokens)[:, prefix:]
        order = ranked(score)
        kept, dropped = order[:, : left - prefix], order[:, left - prefix :]
        at_kept, at_gone = (
            index if tokens.positions is None else tokens.positions.gather(1, index) for index in (kept, dropped)
        )
        edges = at_kept[:, :, None] * graph.shape[2] + at_gone[:, None, :]
        share = self.alpha * graph.flatten(1).gather(1, edges.flatten(1)).view(edges.shape)

        weight = score.new_ones(tokens.x.shape[:2]) if tokens.weight is None else tokens.weight
        handed = share.to(tokens.x.dtype) @ rows(tokens.x, dropped + prefix)
        received = (share @ weight.gather(1, dropped + prefix)[:, :, None])[:, :, 0]
        stay = replace(tokens, weight=weight).select(kept)
        assert stay.weight is not None
        x = torch.cat([stay.x[:, :prefix], stay.x[:, prefix:] + handed], dim=1)
        return replace(
            stay, x=x, weight=torch.cat([stay.weight[:, :prefix], stay.weight[:, prefix:] + received], dim=1)
        )


def sparse(matrix: Tensor, share: float) -> Tensor:
    """(B, N, N) with all but the largest `share` of each image's entries set to 0; ties with the smallest kept stay."""
    flat = matrix.flatten(1)
    smallest = flat.topk(max(int(share * as_int(flat.shape[1])), 1), dim=1, sorted=False).values.amin(1)
    return matrix.masked_fill(matrix < smallest[:, None, None], 0)


def _adjacent(grid: tuple[int, ...], like: Tensor) -> Tensor:
    """(P, P) 1 where two different patches touch, corners included."""
    axes = torch.meshgrid(*(torch.arange(n, device=like.device) for n in grid), indexing="ij")
    positions = torch.stack([axis.flatten() for axis in axes], dim=1)
    return ((positions[:, None] - positions[None]).abs().amax(2) == 1).to(like.dtype)
