"""timm's plain vision transformers created with `features_only=True`, which return maps of several blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import Format
from timm.models._features import feature_take_indices
from torch import Tensor

from ..tokens import Tokens
from .base import Exit, Host
from .registry import host_for
from .wrapping import WrappingHost


class TimmFeatureTokens(WrappingHost, Host):
    """A `features_only` wrapper of a model with tokens. Dropped patches take the features of the nearest kept patch, or
    zeros (`fill="zero"`)."""

    reads_prefix = False
    read_kwargs = ("fill",)

    def __init__(self, model: Any) -> None:
        host_class = host_for(type(model.model))
        assert host_class is not None
        self.model = model
        inner: Any = host_class(model.model)
        self.inner = inner
        self.width, self.prefix, self.class_token = inner.width, inner.prefix, inner.class_token
        self.cannot_drop_prefix = inner.cannot_drop_prefix
        indices, last = feature_take_indices(len(inner.blocks), model.out_indices)
        self.levels = sorted(set(indices))
        self.blocks = list(inner.blocks)[: last + 1]

    def head(self, tokens: Tokens) -> Any:
        raise NotImplementedError("a features_only model reads several blocks: call read()")

    def read(
        self,
        levels: Sequence[Tokens],
        exits: Sequence[Exit],
        size: Sequence[int],
        *,
        fill: str = "nearest",
        **kwargs: Any,
    ) -> list[Tensor]:
        grids = [tokens.whole_grid(fill) for tokens in levels]
        if self.model.norm:
            grids = [self.inner.features(tokens) for tokens in grids]
        patches = [tokens.x[:, self.prefix :] for tokens in grids]
        if self.model.output_fmt == Format.NLC:
            return patches
        return [x.transpose(1, 2).unflatten(2, grids[0].grid).contiguous() for x in patches]
