"""What a method may look at when it acts: one class for each kind of place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from ..attention import BlockQKV
from ..tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The inputs of every method, and the only ones where none of the subclasses below applies."""

    block: int = 0
    """The block in which it acts, counted from 0; `depth` blocks in all."""
    depth: int = 1
    prepared: Any = None
    """The result of the method's own `prepare` before block 0."""
    module: Any = None
    """The method's own learned layers, from `build`."""

    def of(self, images: Tensor, count: int) -> Self:
        """The inputs for a subset of the batch: `images` (B',) int64 are batch indices; each has `count` tokens."""
        return self if self.prepared is None else replace(self, prepared=self.prepared[images])


@dataclass(frozen=True, kw_only=True)
class MapEvidence(Evidence):
    """Before block 0, and on hosts with stages: for methods with `needs_significance`."""

    significance: Tensor
    """(B, P) how much each patch matters, fp32."""

    def of(self, images: Tensor, count: int) -> Self:
        return replace(super().of(images, count), significance=self.significance[images])


@dataclass(frozen=True, kw_only=True)
class ExitEvidence(Evidence):
    """After a block with an auxiliary head: for methods with `reads_exits`."""

    probability: Tensor
    """(B, K, N) probability of each class at each token, prefix included; undefined at padding tokens."""

    def of(self, images: Tensor, count: int) -> Self:
        return replace(super().of(images, count), probability=self.probability[images][:, :, :count])


@dataclass(frozen=True, kw_only=True)
class AttentionEvidence(Evidence):
    """Inside a block, once its attention can be looked at."""

    attention: BlockQKV
    """The block's queries, keys and values."""
    attention_scores: Any = None
    """The second value that the method's own `attend` returned, or None."""

    def of(self, images: Tensor, count: int) -> Self:
        scores, keys = self.attention_scores, self.attention.keys_of(images)
        scores = None if scores is None else scores[images][:, :keys]
        return replace(super().of(images, count), attention=self.attention.of(images, count), attention_scores=scores)

    def keys(self, tokens: Tokens) -> Tensor:
        """(B, H, N, d_h) the tokens' keys before rotary embedding; a merged token has its ToMe destination's key."""
        keys = self.attention.keys
        if tokens.block_rows is None:
            return keys
        return keys.gather(2, tokens.block_rows[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))

    def class_attention(self) -> Tensor:
        """(B, N) how much the class token attends to each of the block's tokens, mean over heads, fp32 or more."""
        return self.attention.query_probabilities().mean(1)

    @staticmethod
    def follow(values: Tensor, tokens: Tokens) -> Tensor:
        """(B, N) values of the block's input tokens -> (B, M) values of the tokens that remain."""
        return values if tokens.block_rows is None else values.gather(1, tokens.block_rows)
