"""Hosts: adapters that run the models of other libraries, one file per model family.

Only this package knows those libraries' internals.
"""

from torch import nn

from ..attention import BlockQKV
from ..errors import UnsupportedHost
from . import (  # noqa: F401
    hf_beit,
    hf_dense,
    hf_eomt,
    hf_staged,
    hf_video,
    hf_vit,
    hf_vjepa2,
    hf_with_backbone,
    hf_yolos,
    open_clip,
    timm_beit,
    timm_convnext,
    timm_features,
    timm_swin,
    timm_vit,
    torchvision_staged,
    torchvision_vit,
)
from .base import Exit, Host, HostBlock
from .registry import HOSTS, complete, host_for, register_host
from .staged import PixelBlock, Stage, StagedHost

__all__ = [
    "BlockQKV",
    "Exit",
    "Host",
    "HostBlock",
    "PixelBlock",
    "Stage",
    "StagedHost",
    "host_for",
    "open_host",
    "open_tokens",
    "register_host",
]

BUILT_IN = tuple(HOSTS)
"""The model classes that tokensieve opens by itself; users can add others with `register_host`."""

_WHOLE_GRID = "its windows or strides need the whole grid"
_DIVIDED = (
    "its divided attention reads each position across all frames and each frame across all positions, so that no patch "
    "may be missing (transformers' VideoMAE, ViViT and V-JEPA 2 attend to all patches jointly, and can be sieved)"
)
_TOWERS = "it reads text too: sieve its model.vision_model, and pass its pooler_output to the layers that follow"

_SHRINKS = (
    "its keys come from maps that strided convolutions shrink, and its MLPs contain convolutions: both need the "
    "whole grid"
)
_PIXEL_LEVEL = (
    "sieve its backbone instead: model.model.pixel_level_module.encoder = "
    "sieve(model.model.pixel_level_module.encoder, recipe)"
)

_HOOKED = (
    "it collects features by hooks or from a traced graph, which a sieved forward bypasses: build it with "
    "feature_cls='list'"
)

_HINTS = {
    "OptimizedModule": "it is compiled: sieve the model first, then torch.compile what sieve() returns",
    "ScriptModule": "it is scripted: sieve the Python model",
    "RecursiveScriptModule": "it is scripted: sieve the Python model",
    "GraphModule": "it is a traced graph: sieve the Python model",
    "DataParallel": "it is wrapped: sieve model.module, then wrap what sieve() returns",
    "DistributedDataParallel": "it is wrapped: sieve model.module, then wrap what sieve() returns",
    "Sieved": "it is sieved already: add the methods to one recipe, and apply that to fast.model",
    # timm
    "Cait": "its class-attention blocks and talking heads are not opened",
    "Xcit": "its cross-covariance attention and local patch interaction need the whole grid",
    "VisionTransformerRelPos": "its relative position bias is not gathered with the tokens",
    "NaFlexVit": "its own patch masking is not joined with the stream",
    **dict.fromkeys(("VisionTransformerSAM", "SwinTransformerV2Cr"), _WHOLE_GRID),
    **dict.fromkeys(("Hiera", "HieraDet", "MultiScaleVit", "PoolingVisionTransformer", "Twins"), _WHOLE_GRID),
    **dict.fromkeys(("FeatureHookNet", "FeatureGraphNet"), _HOOKED),
    # torchvision
    "MaxVit": _WHOLE_GRID,
    "MViT": "its attention pools queries, keys and values over the grid, which must be whole (torchvision's "
    "SwinTransformer3d takes PaPr, transformers' VideoMAE every method)",
    "VideoResNet": "it has no tokens; it can be the proposal of a model that has tokens",
    "S3D": "it has no tokens; it can be the proposal of a model that has tokens",
    # transformers
    **dict.fromkeys(("TimesformerModel", "TimesformerForVideoClassification"), _DIVIDED),
    "VideoMAEForPreTraining": "its decoder needs all patches: sieve model.videomae",
    **dict.fromkeys(("CLIPModel", "SiglipModel"), _TOWERS),
    "ViTMAEForPreTraining": "its decoder needs all patches: sieve model.vit",
    "ViTForMaskedImageModeling": "its decoder needs the whole grid: sieve model.vit",
    "DeiTForMaskedImageModeling": "its decoder needs the whole grid: sieve model.deit",
    "SwinForMaskedImageModeling": "its decoder needs the masked patches: sieve model.swin",
    "Swinv2ForMaskedImageModeling": "its decoder needs the masked patches: sieve model.swinv2",
    **dict.fromkeys(
        ("TimmWrapperModel", "TimmWrapperForImageClassification"),
        "sieve the timm model inside it: model.timm_model = sieve(model.timm_model, recipe)",
    ),
    **dict.fromkeys(
        (
            "SegformerModel",
            "SegformerForImageClassification",
            "SegformerForSemanticSegmentation",
            "GLPNForDepthEstimation",
        ),
        _SHRINKS,
    ),
    **dict.fromkeys(("VitDetModel", "VitDetBackbone"), _WHOLE_GRID),
    "VitMatteForImageMatting": "the windows of its VitDetBackbone need the whole grid",
    **dict.fromkeys(("MaskFormerForInstanceSegmentation", "Mask2FormerForUniversalSegmentation"), _PIXEL_LEVEL),
    "YolosModel": "sieve the YolosForObjectDetection around it",
    "DPTModel": "sieve the DPTForDepthEstimation or DPTForSemanticSegmentation around it",
    "BeitModel": "timm's Beit, with the same weights, can be sieved",
    "BeitForImageClassification": "timm's Beit, with the same weights, can be sieved",
    # open_clip
    "CLIP": "it reads text too: sieve its model.visual",
    "CustomTextCLIP": "it reads text too: sieve its model.visual",
    "CoCa": "it reads text too: sieve its model.visual",
    "TimmModel": "it wraps a timm model: model.trunk = sieve(model.trunk, recipe)",
}


def open_host(model: nn.Module) -> Host | StagedHost:
    """The host (adapter) of a model, made without copying or changing the model.

    Raises:
        UnsupportedHost: for anything but the exact classes that are registered (see `register_host`).
    """
    host = host_for(type(model))
    if host is None:
        name = type(model).__name__
        names = [cls.__name__ for cls in type(model).__mro__]  # the class of a traced graph has the name of its model
        reason = next(
            (_HINTS[model_name] for model_name in names if model_name in _HINTS),
            f"no opener is written for {type(model).__module__}.{name}",
        )
        timm_names = _built_in_names("timm.models", excluding="_features")
        torchvision_names = _built_in_names("torchvision.models")
        raise UnsupportedHost(
            f"{name} cannot be sieved: {reason}. Models that can: timm's {timm_names}, and ConvNeXt and Swin with "
            f"features_only=True; torchvision's {torchvision_names}; transformers' ViT, DeiT, DINOv2, "
            "DINOv3, CLIP, SigLIP and MAE encoders, its VideoMAE, ViViT and V-JEPA 2, its ConvNeXt and Swin (V2 too), "
            "the backbones of DINOv2, DINOv3, BEiT, ConvNeXt and Swin, with Depth Anything, DPT, ZoeDepth and UperNet "
            "around them, BEiT's segmenter, EoMT and YOLOS; "
            f"open_clip's VisionTransformer{_registered_names()}; used as they are."
        )
    return complete(host.opened(model))


def open_tokens(model: nn.Module, operation: str) -> Host:
    """`open_host` for operations that need a host with tokens.

    `operation` is a participle for the error message, such as "tuned".

    Raises:
        UnsupportedHost: the model cannot be opened, or is a hierarchical model (stages) without tokens.
    """
    host = open_host(model)
    if not isinstance(host, Host):
        raise UnsupportedHost(
            f"{type(model).__name__} cannot be {operation}: its maps keep their full size. PaPr works on it."
        )
    return host


def _built_in_names(library: str, excluding: str = "") -> str:
    """Names of the built-in model classes of a library, joined by commas, without those of the module `excluding`."""
    classes = [cls for cls in BUILT_IN if isinstance(cls, type) and cls.__module__.startswith(library)]
    return ", ".join(cls.__name__ for cls in classes if cls.__module__ != f"{library}.{excluding}")


def _registered_names() -> str:
    """The end of a sentence that names the model classes which other code has registered; may be empty."""
    package = f"{__package__.partition('.')[0]}."
    registered = [cls for cls, host in HOSTS.items() if not host.__module__.startswith(package)]
    names = [cls if isinstance(cls, str) else cls.__name__ for cls in registered]
    return f"; registered here: {', '.join(names)}" if names else ""
