"""How a model is opened: one file a family. The only place that knows other libraries' internals."""

from torch import nn

from ..attention import Attention
from ..errors import UnsupportedHost
from .base import Host, HostBlock
from .timm_vit import MODELS, TimmEva, TimmViT

__all__ = ["Attention", "Host", "HostBlock", "open_host"]

_FAMILIES: dict[type[nn.Module], type[Host]] = {
    model: TimmEva if model.__name__ == "Eva" else TimmViT for model in MODELS
}

_HINTS = {
    "OptimizedModule": "it is compiled: sieve the model first, then torch.compile what sieve() returns",
    "ScriptModule": "it is scripted: sieve the Python model",
    "RecursiveScriptModule": "it is scripted: sieve the Python model",
    "GraphModule": "it is a traced graph: sieve the Python model",
    "DataParallel": "it is wrapped: sieve model.module, then wrap what sieve() returns",
    "DistributedDataParallel": "it is wrapped: sieve model.module, then wrap what sieve() returns",
    "Sieved": "it is sieved already: add the methods to one recipe, and apply that to fast.model",
    "Beit": "its relative position bias is not gathered with the tokens",
    "Cait": "its class-attention blocks and talking heads are not opened",
    "Xcit": "its cross-covariance attention and local patch interaction need the whole grid",
    "VisionTransformerRelPos": "its relative position bias is not gathered with the tokens",
    "NaFlexVit": "its own patch masking is not joined with the stream",
}


def open_host(model: nn.Module) -> Host:
    """Open a model for the stream, without copying or changing it.

    Raises:
        UnsupportedHost: for anything but the exact classes known here.
    """
    family = _FAMILIES.get(type(model))
    if family is None:
        name = type(model).__name__
        known = ", ".join(cls.__name__ for cls in _FAMILIES)
        missing = _HINTS.get(name, f"no opener is written for {type(model).__module__}.{name}")
        raise UnsupportedHost(f"{name} cannot be sieved: {missing}. Models that can: timm's {known}, used as they are.")
    return family(model)
