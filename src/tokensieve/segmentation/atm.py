"""ATM (attention-to-mask) heads: queries, one per class, attend to tokens, and the attention's logits are the masks.

Shapes: B images, K classes (and queries), N tokens of D channels, decoders with d channels and H attention heads.

SegViT (Zhang et al., NeurIPS 2022, arXiv 2210.05844), sections 3.1 and 3.2; with two classes per query and one head per
exit, DToP (Tang et al., ICCV 2023, arXiv 2308.01045), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._frozen import replace

DROPOUT = 0.1
"""Dropout rate in training of attention probabilities and of the outputs of sub-layers."""


@dataclass(frozen=True)
class AtmPrediction:
    """The output of an ATM head on N tokens, for K classes and K queries."""

    classes: Tensor
    """(B, K, C) logits of each query. C = 2: its class is in the image (index 0), or is not (index 1). C = K + 1: the K
    classes, or no class (the last index)."""
    masks: Tensor
    """(B, K, N) for each query and token the logit that the token belongs to the query's mask; (B, K, h, w) on the grid
    of patches."""

    @property
    def probability(self) -> Tensor:
        """(B, K, N), or (B, K, h, w): probability of each class at each token.

        With C = 2 the probability that the query's class is in the image, times that of the mask; with C = K + 1 the
        sum over all queries of the query's probability of the class times that of its mask, which can be above 1.
        """
        masks, classes = self.masks.sigmoid(), self.classes.softmax(-1)
        if classes.shape[-1] == 2:
            presence = classes[..., 0]
            return presence.reshape(*presence.shape, *[1] * (masks.ndim - 2)) * masks
        return (classes[..., :-1].transpose(1, 2) @ masks.flatten(2)).unflatten(2, masks.shape[2:])

    def on_grid(self, prefix: int, grid: Sequence[int]) -> AtmPrediction:
        """The prediction without the first `prefix` tokens, with masks on the grid: (B, K, h, w)."""
        return replace(self, masks=self.masks[:, :, prefix:].unflatten(2, tuple(grid)))


class CrossAttention(nn.Module):
    """Attention of queries to tokens, with biases in the projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(
        self, queries: Tensor, tokens: Tensor, real: Tensor | None, *, with_masks: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (B, K, d) and tokens (B, N, d) -> (B, K, d) and, with `with_masks`, the scaled attention logits
        averaged over heads, (B, K, N); else None.

        `real` (B, N) bool is False for padding tokens, which are not attended to; None: no padding. The logits returned
        for padding have no meaning.
        """
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q(queries), self.k(tokens), self.v(tokens))
        )
        dropout = DROPOUT if self.training else 0.0
        attention_mask = None if real is None else real[:, None, None, :]
        if not with_masks:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=dropout)
            return self.proj(out.transpose(1, 2).flatten(2)), None
        # Fused kernels do not return the logits. One head at a time, so that no tensor (B, H, K, N) is allocated.
        q, logits_sum, outs = q * q.shape[3] ** -0.5, None, []
        for head in range(self.heads):
            logits = q[:, head] @ k[:, head].transpose(1, 2)
            logits_sum = logits if logits_sum is None else logits_sum + logits
            weights = (logits if real is None else logits.masked_fill(~real[:, None], float("-inf"))).softmax(-1)
            outs.append(F.dropout(weights, dropout) @ v[:, head])
        assert logits_sum is not None
        return self.proj(torch.cat(outs, dim=2)), logits_sum / self.heads


class AtmLayer(nn.Module):
    """A decoder layer with post-norm residuals: self-attention of the queries (optional), attention to tokens, MLP."""

    def __init__(self, width: int, heads: int, self_attention: bool) -> None:
        super().__init__()
        self.self_attention = (
            nn.MultiheadAttention(width, heads, dropout=DROPOUT, batch_first=True) if self_attention else None
        )
        self.norm1 = nn.LayerNorm(width) if self_attention else None
        self.cross_attention = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(
        self, queries: Tensor, tokens: Tensor, real: Tensor | None, *, with_masks: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (B, K, d) and tokens (B, N, d) -> the queries after the layer, and the mask logits of
        `CrossAttention`."""
        if self.self_attention is not None and self.norm1 is not None:
            mixed, _ = self.self_attention(queries, queries, queries, need_weights=False)
            queries = self.norm1(queries + self.dropout(mixed))
        attended, logits = self.cross_attention(queries, tokens, real, with_masks=with_masks)
        queries = self.norm2(queries + self.dropout(attended))
        hidden = self.dropout(self.linear1(queries).relu())
        return self.norm3(queries + self.dropout(self.linear2(hidden))), logits


class AtmDecoder(nn.Module):
    """Projects and normalises the tokens of one block, and runs the layers in which queries attend to them."""

    def __init__(self, channels: int, width: int, heads: int, layers: int, self_attention: bool = True) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(channels, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(AtmLayer(width, heads, self_attention) for _ in range(layers))

    def forward(self, queries: Tensor, tokens: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, K, d) and tokens (B, N, D) -> the queries after the last layer, and the last layer's mask logits
        (B, K, N). `real` as for `AtmHead`."""
        tokens = self.norm(self.project(tokens))
        masks: Tensor | None = None
        for index, layer in enumerate(self.layers, 1):
            queries, masks = layer(queries, tokens, real, with_masks=index == len(self.layers))
        assert masks is not None
        return queries, masks


class AtmHead(nn.Module):
    """The ATM head of one block, as in DToP: each query predicts whether its class is present, and its mask.

    Args:
        channels: D, channels of the tokens.
        num_classes: K.
        width, heads, layers: channels d, attention heads and layers of the decoder.
    """

    def __init__(self, channels: int, num_classes: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.decoder = AtmDecoder(channels, width, heads, layers)
        self.queries = nn.Embedding(num_classes, width)
        self.classifier = nn.Linear(width, 2)
        initialise(self)

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> AtmPrediction:
        """Tokens (B, N, D), which may be only some of the block's -> the prediction for each of them.

        `real` (B, N) bool, as `Tokens.real`, is False for padding, which is masked; predictions for padding have no
        meaning. Each image needs at least one token.
        """
        queries = self.queries.weight.expand(tokens.shape[0], -1, -1)
        queries, masks = self.decoder(queries, tokens, real)
        return AtmPrediction(self.classifier(queries), masks)


class AtmCascade(nn.Module):
    """ATM heads of several blocks, from the deepest to the shallowest: each gets the queries of the head before, and
    the mask logits of all heads are summed.

    Args:
        channels: D, channels of the tokens.
        num_classes: K.
        levels: number of blocks that it reads.
        width, heads, layers: channels d, attention heads and layers of each decoder.
        classes: C of `AtmPrediction.classes`: 2 or K + 1.
        self_attention: whether queries attend to each other.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        levels: int,
        width: int,
        heads: int,
        layers: int,
        classes: int,
        self_attention: bool,
    ) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(AtmDecoder(channels, width, heads, layers, self_attention) for _ in range(levels))
        self.queries = nn.Embedding(num_classes, width)
        self.classifier = nn.Linear(width, classes)
        initialise(self)

    def forward(self, levels: Sequence[Tensor], real: Tensor | None = None) -> AtmPrediction:
        """The tokens (B, N, D) of each block, the shallowest first -> the prediction after the last head.

        `real` as for `AtmHead`.
        """
        queries, masks = self._decode(levels, real)[-1]
        return AtmPrediction(self.classifier(queries), masks)

    def stages(self, levels: Sequence[Tensor], real: Tensor | None = None) -> list[AtmPrediction]:
        """The prediction after each head, the deepest block's first; all are supervised in training."""
        decoded = self._decode(levels, real)
        return [AtmPrediction(self.classifier(queries), masks) for queries, masks in decoded]

    def _decode(self, levels: Sequence[Tensor], real: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """After each head, the deepest block's first: the queries (B, K, d), and the sum of the mask logits so far
        (B, K, N)."""
        queries = self.queries.weight.expand(levels[0].shape[0], -1, -1)
        decoded: list[tuple[Tensor, Tensor]] = []
        for decoder, tokens in zip(self.decoders, reversed(levels), strict=True):
            queries, masks = decoder(queries, tokens, real)
            decoded.append((queries, masks + decoded[-1][1] if decoded else masks))
        return decoded


def initialise(head: nn.Module) -> None:
    """Initialise linear layers from a normal distribution with std 0.02, truncated at two std; biases are zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(module.bias)
