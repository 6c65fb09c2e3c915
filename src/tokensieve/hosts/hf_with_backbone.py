"""transformers' segmenters and depth estimators that hold one of its backbones.

The backbone is opened; the model's own forward runs, with a stand-in for the backbone that returns the maps computed by
the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import UnsupportedHost
from ..tokens import Tokens
from .base import Exit, Host
from .hf_calls import StandIn, WithParts, check_model
from .hf_dense import HFDPT, HFBackbone, arguments_of, blank
from .hf_staged import HFStaged
from .registry import host_for, register_host
from .staged import StagedHost
from .wrapping import WrappingHost

MODELS = (
    "CHMv2ForDepthEstimation",
    "DPTForDepthEstimation",
    "DepthAnythingForDepthEstimation",
    "PromptDepthAnythingForDepthEstimation",
    "UperNetForSemanticSegmentation",
    "ZoeDepthForDepthEstimation",
)


@register_host(*(f"transformers.models.{name}" for name in MODELS))
class HFWithBackbone(WrappingHost, Host):
    """A model around a backbone with tokens; dropped and merged patches are put back on the grid for its head."""

    reads_prefix = False
    class_token = True

    @classmethod
    def opened(cls, model: Any) -> Host | StagedHost:
        """A host chosen by the class of the backbone; a DPT without `backbone` has its own vision transformer.

        Raises:
            UnsupportedHost: no host is registered for the backbone.
        """
        check_model(model)
        if model.backbone is None:
            return HFDPT(model)
        kind = host_for(type(model.backbone))
        if kind is not None and issubclass(kind, HFBackbone):
            return cls(model)
        if kind is not None and issubclass(kind, HFStaged):
            return HFWithStagedBackbone(model)
        raise UnsupportedHost(
            f"{type(model).__name__} holds a {type(model.backbone).__name__}, for which no opener is written. "
            "Backbones that can be sieved: transformers' Dinov2Backbone, Dinov2WithRegistersBackbone, "
            "DINOv3ViTBackbone, BeitBackbone, and those of ConvNeXt and Swin."
        )

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inner = inner = _inner(model)
        self.blocks, self.levels = inner.blocks, inner.levels
        self.width, self.prefix = inner.width, inner.prefix
        self.cannot_drop_prefix = inner.cannot_drop_prefix

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return arguments_of(self.model, images, kwargs, "fill")

    def head(self, tokens: Tokens) -> Any:
        return self.inner.head(tokens)

    def read(
        self,
        levels: Sequence[Tokens],
        exits: Sequence[Exit],
        size: Sequence[int],
        *,
        fill: str = "nearest",
        hidden_states: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> Any:
        def backbone(**_kwargs: Any) -> Any:
            return self.inner.read(levels, exits, size, fill=fill, hidden_states=hidden_states)

        model = WithParts(self.model, backbone=StandIn(self.model.backbone, backbone))
        return model(blank(levels[0].x, size), output_hidden_states=hidden_states is not None, **kwargs)


class HFWithStagedBackbone(WrappingHost, StagedHost):
    """A model around a hierarchical backbone (stages), whose maps keep their full size."""

    sized = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inner = inner = _inner(model)
        self.family, self.background, self.channels_first = inner.family, inner.background, inner.channels_first
        self.stages, self.widths = inner.stages, inner.widths

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        images, kwargs = arguments_of(self.model, images, kwargs)
        self.inner.arguments(images, {})  # raises for image sizes that the backbone does not take
        return images, {"output_hidden_states": False} | kwargs

    def answer(self, maps: Sequence[Tensor], *, size: Sequence[int] = (), **kwargs: Any) -> Any:
        def backbone(output_hidden_states: bool | None = None, **_kwargs: Any) -> Any:
            return self.inner.answer(maps, output_hidden_states=output_hidden_states)

        return WithParts(self.model, backbone=StandIn(self.model.backbone, backbone))(blank(maps[0], size), **kwargs)


def _inner(model: Any) -> Any:
    kind = host_for(type(model.backbone))
    assert kind is not None
    return kind(model.backbone)
