"""The host class of segmenters, so that they can be sieved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..data.inputs import InputSpec
from ..hosts import Exit, Host, register_host
from ..hosts.wrapping import WrappingHost
from ..tokens import Tokens
from .atm_segmenters import CascadedSegViT, SegViT
from .map_segmenters import LinearSegmenter, Setr, SetrMla
from .segmenter import Segmenter


@register_host(SegViT, CascadedSegViT, Setr, SetrMla, LinearSegmenter)
class SegmenterHost(WrappingHost, Host):
    """A segmenter with a plain vision transformer as backbone. Without exits its heads read the whole grid: merged
    patches share their token, dropped ones get the nearest kept one (with `fill="zero"`: zeros)."""

    read_kwargs = ("fill", "stages")
    rebound = ("slide",)
    dense_only = ("features", "stages", "scores")

    def __init__(self, model: nn.Module) -> None:
        assert isinstance(model, Segmenter)
        inner = model.host
        self.model, self.inner = model, inner
        self.levels, self.exits = model.levels, model.exits
        self.blocks = list(inner.blocks)[: model.levels[-1] + 1]
        self.width = inner.width
        self.class_token = inner.class_token and model.class_token
        self.prefix = model.prefix
        self.reads_prefix = False

    @property
    def input_spec(self) -> InputSpec:
        """The input spec, with the size of the segmenter's crops, or else the backbone's size."""
        crop: tuple[int, int] | None = self.model.crop
        return self.inner.input_spec if crop is None else self.inner.input_spec.resized(*crop)

    def embed(self, images: Tensor) -> Tokens:
        return self.model.embed(images, self.inner)

    def features(self, tokens: Tokens) -> Tokens:
        return self.model.level(len(self.blocks) - 1, tokens)

    def head(self, tokens: Tokens) -> Any:
        raise NotImplementedError("a segmenter is read level by level")

    def predict(self, block: int, tokens: Tokens) -> Any:
        tokens, real = self.model.level(block, tokens), tokens.real
        return self.model.predict(block, tokens.x, real)

    def read(
        self,
        levels: Sequence[Tokens],
        exits: Sequence[Exit],
        size: Sequence[int],
        *,
        fill: str = "nearest",
        stages: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Scores (B, K, H, W); with `stages` the output of every head on the whole grid, as `Segmenter.stages`."""
        model, grid = self.model, levels[-1].grid
        if not exits:
            grids = [tokens.whole_grid(fill) for tokens in levels]
            tokens_of_levels = [model.level(block, tokens) for block, tokens in zip(self.levels, grids, strict=True)]
            return model.supervised(tokens_of_levels) if stages else model.answer(tokens_of_levels, size)
        if stages:
            return model.staged(self._heads(levels, exits), grid)
        last = levels[-1]
        assert last.source is not None
        end = (self.predict(self.levels[-1], last), last.source, exits[0].class_probability)
        stages_left = [(stage.prediction, stage.source, stage.class_probability) for stage in exits]
        return model.at_size(model.assembled([*stages_left, end], grid), size)

    def _heads(self, levels: Sequence[Tokens], exits: Sequence[Exit]) -> list[tuple[Any, Tensor]]:
        """The output of every head on the tokens after its block, and the token of each patch."""
        exited = {stage.block: (stage.prediction, stage.source) for stage in exits}
        predictions = []
        for block, tokens in zip(self.levels, levels, strict=True):
            assert tokens.source is not None
            predictions.append(exited.get(block) or (self.predict(block, tokens), tokens.source))
        return predictions
