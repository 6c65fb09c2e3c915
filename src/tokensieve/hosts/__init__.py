"""How a model is opened: one file a family. The only place that knows other libraries' internals."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..attention import Attention
from ..errors import UnsupportedHost
from .base import Host, HostBlock
from .staged import StagedHost
from .timm_beit import TimmBeit
from .timm_convnext import TimmConvNeXt
from .timm_features import TimmFeatureGetter, TimmFeatureList
from .timm_swin import TimmSwin
from .timm_vit import MODELS, TimmEva, TimmViT

__all__ = ["Attention", "Host", "HostBlock", "StagedHost", "open_host", "open_tokens"]

_FAMILIES: dict[type[nn.Module], type[Host] | type[StagedHost]] = {
    **{model: TimmEva if model.__name__ == "Eva" else TimmViT for model in MODELS},
    TimmBeit.model_class: TimmBeit,
    TimmConvNeXt.model_class: TimmConvNeXt,
    **dict.fromkeys(TimmSwin.model_classes, TimmSwin),
}

_BACKBONES: dict[type[nn.Module], type[StagedHost]] = {
    **dict.fromkeys(TimmFeatureList.model_classes, TimmFeatureList),
    TimmFeatureGetter.model_class: TimmFeatureGetter,
}
"""What timm builds around models of which features alone are asked."""

_WHOLE_GRID = "its windows or strides need the whole grid"
_TOWERS = "it reads text too: sieve its model.vision_model, and give that one's pooler_output to what follows"

_HOOKED = (
    "it takes features by hooks or from a traced graph, which a sieve would go past: build it with feature_cls='list'"
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
    # transformers
    **dict.fromkeys(("CLIPModel", "SiglipModel"), _TOWERS),
    "ViTMAEForPreTraining": "its decoder needs all patches: sieve model.vit",
    "ViTForMaskedImageModeling": "its decoder needs the whole grid: sieve model.vit",
    "DeiTForMaskedImageModeling": "its decoder needs the whole grid: sieve model.deit",
    **dict.fromkeys(
        ("Dinov2Backbone", "Dinov2WithRegistersBackbone", "DINOv3ViTBackbone"),
        "it returns maps of several layers: sieve the model of that kind, and restore the grid by fast.trace(images)",
    ),
    "SwinForMaskedImageModeling": "its decoder needs the masked patches: sieve model.swin",
    "Swinv2ForMaskedImageModeling": "its decoder needs the masked patches: sieve model.swinv2",
    **dict.fromkeys(
        ("TimmWrapperModel", "TimmWrapperForImageClassification"),
        "sieve the model in it, in its place: model.timm_model = sieve(model.timm_model, recipe)",
    ),
    "BeitModel": "timm's Beit, with the same weights, can be",
    "BeitForImageClassification": "timm's Beit, with the same weights, can be",
    # open_clip
    "CLIP": "it reads text too: sieve its model.visual",
    "CustomTextCLIP": "it reads text too: sieve its model.visual",
    "CoCa": "it reads text too: sieve its model.visual",
    "TimmModel": "it is wrapped: sieve its model.trunk, in its place",
}


def open_host(model: nn.Module) -> Host | StagedHost:
    """Open a model for the stream, without copying or changing it.

    Raises:
        UnsupportedHost: for anything but the exact classes known here.
    """
    family = _family(type(model))
    if family is None:
        name = type(model).__name__
        known = ", ".join(cls.__name__ for cls in _FAMILIES)
        missing = _HINTS.get(name, f"no opener is written for {type(model).__module__}.{name}")
        raise UnsupportedHost(
            f"{name} cannot be sieved: {missing}. Models that can: timm's {known}, and ConvNeXt and Swin with "
            "features_only=True; transformers' ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP and MAE encoders, its ConvNeXt "
            "and Swin (V2 too) with their backbones; open_clip's VisionTransformer; used as they are."
        )
    return family(model)


def open_tokens(model: nn.Module, done: str) -> Host:
    """`open_host` for what works on tokens alone; `done` says what cannot be done to a model with stages."""
    host = open_host(model)
    if not isinstance(host, Host):
        raise UnsupportedHost(
            f"{type(model).__name__} cannot be {done}: its maps keep their full size. PaPr works on it."
        )
    return host


def _family(kind: type[nn.Module]) -> Callable[[Any], Host | StagedHost] | None:
    """Who opens a class. Openers of libraries that need not be installed are imported when a class of theirs comes."""
    if kind.__module__.startswith("transformers."):
        from . import hf_staged, hf_vit

        return hf_vit.HFViT if hf_vit.opens(kind) else hf_staged.opener(kind)
    if kind.__module__.startswith("open_clip."):
        from . import open_clip

        return open_clip.OpenClipViT if (kind.__module__, kind.__name__) == open_clip.MODEL else None
    return _FAMILIES.get(kind) or _BACKBONES.get(kind)
