"""Pooling after merging, as it would be over every patch that the merged tokens stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from .._frozen import replace
from .._recording import is_empty
from ..tokens import Tokens


def weighed(tokens: Tokens) -> Tokens:
    """Patch tokens scaled by their share of the patches, so that their plain average is the weighted one."""
    if tokens.counted is None:
        return tokens
    size = tokens.counted[:, tokens.prefix :]
    share = size * (size.shape[1] / size.sum(1, keepdim=True))
    patches = tokens.x[:, tokens.prefix :] * share.to(tokens.x.dtype)[..., None]
    return replace(tokens, x=torch.cat([tokens.x[:, : tokens.prefix], patches], dim=1))


def key_bias(tokens: Tokens) -> Tensor | None:
    """(B, N) log(size), which attention pooling adds to the logits of its keys; `key_padding_mask` in torch's words."""
    return None if tokens.counted is None or is_empty(tokens.x) else tokens.counted.log().to(tokens.x.dtype)
