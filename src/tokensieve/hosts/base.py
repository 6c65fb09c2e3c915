"""The contract of a host: the user's model, opened and not copied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Tokens


class Heads(NamedTuple):
    """What a block's attention reads: all of it the block's own arithmetic, up to the attention itself."""

    q: Tensor
    """(B, H, N, d_h), as k and v."""
    k: Tensor
    v: Tensor
    keys: Tensor
    """(B, H, N, d_h) the keys after key norm and before rotary embedding."""
    gate: Tensor | None = None
    """(B, N, H d_h) factor on the attention's output, where the host has one."""
    dropout: float = 0.0
    """Of the attention probabilities; not zero only in training."""

    def attend(self, bias: Tensor | None = None) -> Tensor:
        """Fused attention; `bias` (B, 1, 1, N) is added to the logits. Returns (B, H, N, d_h)."""
        return F.scaled_dot_product_attention(self.q, self.k, self.v, attn_mask=bias, dropout_p=self.dropout)


class HostBlock(ABC):
    """One block of the host. Called whole where nothing acts in it; else through its three verbs."""

    closed: str | None = None
    """Why no method can act inside this block, or None."""

    @abstractmethod
    def __call__(self, tokens: Tokens) -> Tensor:
        """The block as it is: tokens.x -> (B, N, d)."""

    @abstractmethod
    def qkv(self, tokens: Tokens) -> Heads:
        """Norm, projections, key norm, positions."""

    @abstractmethod
    def attention_out(self, attended: Tensor, heads: Heads, x: Tensor) -> Tensor:
        """Projection, scale, drop path and residual: (B, H, N, d_h) and x (B, N, d) -> (B, N, d)."""

    @abstractmethod
    def mlp(self, x: Tensor) -> Tensor:
        """Norm, MLP, scale, drop path and residual: (B, N, d) -> (B, N, d)."""


class Host(ABC):
    """A model opened into the parts of the stream. Holds references to its sub-modules and nothing else."""

    model: Any
    """The host itself, an `nn.Module` whose parts the opener knows by name."""
    blocks: Sequence[HostBlock]
    prefix: int
    """Class, distillation and register tokens in front of the patch tokens."""
    cannot_merge: str | None = None
    """Why this host's head cannot pool merged tokens, or None."""

    @abstractmethod
    def __init__(self, model: nn.Module) -> None:
        """Open `model`; raises `UnsupportedHost` for what would go wrong silently."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tokens:
        """Everything before block 0: (B, 3, H, W) -> tokens of all patches, with position, prefix and pre-norm."""

    @abstractmethod
    def features(self, tokens: Tokens) -> Tokens:
        """Everything after the last block that is still a token: the final norm."""

    @abstractmethod
    def head(self, tokens: Tokens) -> Tensor:
        """Pooling, which minds sizes, and classifier: what `features` gave -> the host's own output."""
