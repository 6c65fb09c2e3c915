"""Evidence: the inputs of a method besides the tokens, one class for each kind of place where methods act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from ..attention import BlockQKV
from ..tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The inputs that all methods get; the subclasses below add more."""

    block: int = 0
    """Index of the block in which the method acts, from 0."""
    depth: int = 1
    """Number of blocks of the model."""
    prepared: Any = None
    """The result of the method's own `prepare` before block 0."""
    module: Any = None
    """The method's own learned layers, from `build`."""

    def of(self, images: Tensor, count: int) -> Self:
        """The evidence for some images: `images` (B',) int64 are batch indices, each image has `count` tokens."""
        return self if self.prepared is None else replace(self, prepared=self.prepared[images])


@dataclass(frozen=True, kw_only=True)
class MapEvidence(Evidence):
    """For methods with `needs_significance`, which act before block 0 or on hierarchical hosts."""

    significance: Tensor
    """(B, P) the significance of each patch, fp32."""

    def of(self, images: Tensor, count: int) -> Self:
        return replace(super().of(images, count), significance=self.significance[images])


@dataclass(frozen=True, kw_only=True)
class ExitEvidence(Evidence):
    """For methods with `reads_exits`, which act after a block with an auxiliary head."""

    probability: Tensor
    """(B, K, N) probability of each class at each token, prefix included; undefined at padding tokens."""

    def of(self, images: Tensor, count: int) -> Self:
        return replace(super().of(images, count), probability=self.probability[images][:, :, :count])


@dataclass(frozen=True, kw_only=True)
class AttentionEvidence(Evidence):
    """For methods inside a block, which can use its attention."""

    attention: BlockQKV
    """The block's queries, keys and values."""
    attention_scores: Any = None
    """The second value that the method's own `attend` returned, or None."""

    def of(self, images: Tensor, count: int) -> Self:
        scores, keys = self.attention_scores, self.attention.keys_of(images)
        scores = None if scores is None else scores[images][:, :keys]
        return replace(super().of(images, count), attention=self.attention.of(images, count), attention_scores=scores)

    def keys(self, tokens: Tokens) -> Tensor:
        """(B, H, N, d_h) the tokens' keys before rotary embedding; a merged token has its destination's key."""
        keys = self.attention.keys
        if tokens.block_rows is None:
            return keys
        return keys.gather(2, tokens.block_rows[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))

    def class_attention(self) -> Tensor:
        """(B, N) attention of the class token to each token of the block, mean over heads, at least in fp32."""
        return self.attention.query_probabilities().mean(1)

    @staticmethod
    def follow(values: Tensor, tokens: Tokens) -> Tensor:
        """Values (B, N) of the block's input tokens -> values (B, M) of the tokens that remain."""
        return values if tokens.block_rows is None else values.gather(1, tokens.block_rows)
