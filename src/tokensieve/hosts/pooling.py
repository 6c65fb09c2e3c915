"""Pooling after merging: a merged token counts as many times as the patches it represents."""

from __future__ import annotations

import torch
from torch import Tensor

from .._frozen import replace
from .._recording import is_empty
from ..tokens import Tokens


def weighed(tokens: Tokens) -> Tokens:
    """Scale patch tokens by their size, so that their plain average equals the average weighted by size."""
    if tokens.counted is None:
        return tokens
    size = tokens.counted[:, tokens.prefix :]
    share = size * (size.shape[1] / size.sum(1, keepdim=True))
    patches = tokens.x[:, tokens.prefix :] * share.to(tokens.x.dtype)[..., None]
    return replace(tokens, x=torch.cat([tokens.x[:, : tokens.prefix], patches], dim=1))


def key_bias(tokens: Tokens) -> Tensor | None:
    """(B, N) log(size), to be added to the logits of the keys in attention pooling (torch's `key_padding_mask`); None
    if all tokens count once."""
    return None if tokens.counted is None or is_empty(tokens.x) else tokens.counted.log().to(tokens.x.dtype)
