"""timm's ConvNeXt, Swin and Swin-V2 created with `features_only=True`: they return maps of some stages, and no head
runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import timm
from packaging.version import Version
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureListNet, feature_take_indices
from timm.models.convnext import ConvNeXt, ConvNeXtStage
from timm.models.swin_transformer import SwinTransformer, SwinTransformerStage
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Stage
from torch import Tensor, nn

from ..errors import UnsupportedHost
from .base import Host
from .checks import check_images, plain_patch
from .registry import host_for, register_host
from .staged import Stage, StagedHost, checkpointed
from .timm_convnext import TimmConvNeXt, convnext_stages
from .timm_feature_tokens import TimmFeatureTokens
from .timm_swin import TimmSwin, swin_stages

Opener = Callable[[nn.Module, Iterable[Any]], list[Stage]]
STAGES: dict[type[nn.Module], tuple[type[StagedHost], Opener]] = {
    ConvNeXtStage: (TimmConvNeXt, convnext_stages),
    SwinTransformerStage: (TimmSwin, swin_stages),
    SwinTransformerV2Stage: (TimmSwin, swin_stages),
}
WHOLE: dict[type[nn.Module], type[StagedHost]] = {
    ConvNeXt: TimmConvNeXt,
    SwinTransformer: TimmSwin,
    SwinTransformerV2: TimmSwin,
}
SUPPORTED = (
    "features_only models can be sieved if they wrap timm's ConvNeXt, SwinTransformer or SwinTransformerV2 (maps of "
    "stages), or its VisionTransformer, Eva or Beit (maps of blocks)"
)


@register_host(FeatureListNet, FeatureDictNet)
class TimmFeatureList(StagedHost):
    """A wrapper that holds the model's parts up to the last requested stage; it returns a list or dict of maps."""

    def __init__(self, model: Any) -> None:
        self.model = model
        parts = list(model.items())
        kinds = [type(module) for _, module in parts]
        first = next((index for index, kind in enumerate(kinds) if kind in STAGES), len(parts))
        if len(set(kinds[first:])) != 1:
            part_names = ", ".join(dict.fromkeys(type(module).__name__ for _, module in parts))
            raise UnsupportedHost(f"{type(model).__name__} cannot be sieved: {SUPPORTED}, and it holds {part_names}.")
        kind, open_stages = STAGES[kinds[first]]
        self.family, self.background, self.channels_first = kind.family, kind.background, kind.channels_first
        self.names = [name for name, _ in parts[first:]]
        self.stem = [module for _, module in parts[:first]]
        self.stages = open_stages(model, [module for _, module in parts[first:]])
        if model.grad_checkpointing:
            checkpointed(self.stages, [True] * len(self.stages))
        self.widths = [info["num_chs"] for info in model.feature_info.info[: len(self.stages)]]

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        stages = [module for module in self.model.values() if type(module) in STAGES]
        return [self.model, *stages, *(stage.blocks for stage in stages)]

    @property
    def patch(self) -> Sequence[int] | None:
        convolutions = [module for stem in self.stem for module in stem.modules() if isinstance(module, nn.Conv2d)]
        return plain_patch(convolutions[0] if convolutions else None)

    def embed(self, images: Tensor) -> Tensor:
        x = check_images(self.model, images)
        for module in self.stem:
            x = module(x)
        return x

    def features(self, x: Tensor) -> Tensor:
        return x

    def answer(self, maps: Sequence[Tensor]) -> list[Tensor] | OrderedDict[str, Tensor]:
        """The requested maps, in the model's own layout and order."""
        names, named_maps = self.model.return_layers, zip(self.names, maps[1:], strict=True)
        selected = OrderedDict((names[name], x) for name, x in named_maps if name in names)
        return list(selected.values()) if type(self.model) is FeatureListNet else selected


@register_host(FeatureGetterNet)
class TimmFeatureGetter(StagedHost):
    """A wrapper that calls `forward_intermediates` of the whole model: maps (B, C, H, W)."""

    def __init__(self, model: Any) -> None:
        inner = type(model.model)
        if inner not in WHOLE:
            name = type(model).__name__
            raise UnsupportedHost(f"{name} cannot be sieved: {SUPPORTED}, and it holds {inner.__name__}.")
        self.model, self.inner = model, WHOLE[inner](model.model)
        host = self.inner
        self.family, self.background, self.channels_first = host.family, host.background, host.channels_first
        self.stages, self.widths = host.stages, host.widths
        # timm 1.0.15's ConvNeXt counts its stem as the first map, and leaves the norm out
        self.counts_stem = inner is ConvNeXt and Version(timm.__version__) < Version("1.0.16")

    @classmethod
    def opened(cls, model: Any) -> Host | StagedHost:
        """A host for maps of stages, or `TimmFeatureTokens` for maps of the blocks of a model with tokens."""
        kind = host_for(type(model.model))
        return TimmFeatureTokens(model) if kind is not None and issubclass(kind, Host) else cls(model)

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return [self.model, *self.inner.bypassed]

    @property
    def patch(self) -> Sequence[int] | None:
        return self.inner.patch

    def embed(self, images: Tensor) -> Tensor:
        return self.inner.embed(images)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(x) if self.model.norm and not self.counts_stem else x

    def answer(self, maps: Sequence[Tensor]) -> list[Tensor]:
        *earlier, last = maps if self.counts_stem else maps[1:]
        all_maps = [*earlier, self.features(last)]
        indices, _ = feature_take_indices(len(all_maps), self.model.out_indices, as_set=True)
        selected = [x for index, x in enumerate(all_maps) if index in indices]
        return selected if self.channels_first else [x.permute(0, 3, 1, 2).contiguous() for x in selected]
