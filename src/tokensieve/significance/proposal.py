"""Proposals: small frozen ConvNets whose feature maps give the significance of patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from os import PathLike
from typing import Any, Self

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, fx, nn

from .. import zoo
from .._recording import recording
from ..data.inputs import InputSpec
from ..errors import InputError, RecipeError
from .fold import fold
from .graph import split

IMAGES_PER_THREAD = 4
"""On CPUs large batches run in pieces of this many 224 x 224 images per thread, so that they fit in the cache."""


class Frozen(nn.Module):
    """A module that is never trained: it stays in eval mode, and `.half()` and the like do not change its dtype."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def apply_device(tensor: Tensor) -> Tensor:
            probe = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            # Change only the device: casting to a lower precision and back would round the weights.
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        return super()._apply(apply_device, recurse)


class Proposal(Frozen):
    """A frozen network that maps images (B, 3, H, W) to features (B, K, h, w), without gradients and autocast.

    Args:
        features: the network, from images to features.
        name: its name, for messages.
        head: from features to logits (B, classes); None if there is no known classifier.
        channels: K, if known.
        mean, std: the normalisation of its input; None for a module that takes the host's images unchanged.
        dtype: the dtype of its input; None takes that of its parameters.
        in_pieces: run large batches in pieces on CPUs.
        video: whether it reads clips (B, 3, T, H, W).
        clip_size: frames, height and width to which clips are resized for it.
    """

    def __init__(
        self,
        features: nn.Module,
        name: str,
        *,
        head: nn.Module | None = None,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        dtype: torch.dtype | None = None,
        in_pieces: bool = False,
        video: bool = False,
        clip_size: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.head, self.channels = features, head, channels
        self.name, self.mean, self.std = name, mean, std
        self.dtype, self.in_pieces = dtype, in_pieces
        self.video, self.clip_size = video, clip_size
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, K, h, w); clips (B, 3, T, H, W) -> (B, K, t, h, w)."""
        with torch.no_grad():
            features = _in_full_precision(self._run, images)
        if not isinstance(features, Tensor) or features.ndim != images.ndim:
            raise RecipeError(_not_features(self.name, features))
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Features -> logits (B, classes), with gradients if these are enabled. Raises `RecipeError` without a head."""
        if self.head is None:
            raise RecipeError(f"The proposal {self.name} has no known classifier: use significance='mean'.")
        return _in_full_precision(self.head, features)

    def _run(self, images: Tensor) -> Tensor:
        images = images.to(self.dtype or _dtype_of(self.features) or images.dtype)
        if self.in_pieces and images.device.type == "cpu" and not recording():
            area = prod(images.shape[2:])
            piece = max(1, IMAGES_PER_THREAD * torch.get_num_threads() * 224 * 224 // area)
            if len(images) > piece:
                return torch.cat([self.features(chunk) for chunk in images.split(piece)])
        return self.features(images)


def named_proposal(
    name: str,
    *,
    layer: int | str | None = None,
    weights: str | PathLike[str] | None = None,
    sha256: str | None = None,
    args: Mapping[str, Any] | None = None,
    pretrained: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Proposal:
    """A ConvNet by its timm or torchvision name, optimised for inference and split at a feature map.

    Multi-branch blocks (MobileOne, RepVGG) are re-parameterised, BatchNorms are folded into convolutions, and weights
    are stored channels-last.

    Args:
        name: a name of timm or torchvision.
        layer: the feature map: None is the last before global pooling, an int the index of a stage (timm's
            `feature_info`, torchvision's children; negative from the end), a str the name of a submodule.
        weights, sha256, args, pretrained: as in `zoo.create`.
        dtype: the dtype of weights and input.
    """
    model, mean, std = zoo.create(name, weights=weights, sha256=sha256, args=args, pretrained=pretrained)
    model = reparameterize_model(model, inplace=True)
    parts = split(model, name, layer, _trial_images(model))
    for module in (parts.features, parts.head):
        if module is not None:
            fold(module)
            module.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)
    return Proposal(
        parts.features,
        name,
        head=parts.head,
        channels=parts.channels,
        mean=mean,
        std=std,
        dtype=dtype,
        in_pieces=True,
    )


def named_video_proposal(
    name: str,
    *,
    layer: int | str | None = None,
    weights: str | PathLike[str] | None = None,
    sha256: str | None = None,
    args: Mapping[str, Any] | None = None,
    pretrained: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Proposal:
    """A network of `zoo.VIDEO_PROPOSALS`, from clips (B, 3, T, H, W) to features (B, K, t, h, w).

    `weights` is a file that `zoo.video_proposal` can load; the bundled network needs none. BatchNorms are folded and
    3-D convolutions with flat kernels run as 2-D ones, see `fold`; `macs(fvcore_compat=True)` still counts the
    BatchNorms, as the papers do.

    Raises:
        RecipeError: `layer` or `args` are given, which only image proposals take.
        InputError: no weights are given, and `pretrained=False` does not allow random ones; none are downloaded.
    """
    if layer is not None or args:
        raise RecipeError(f"layer= and proposal_args= are for image proposals, but {name} reads video.")
    if weights is None and pretrained and name not in zoo.BUNDLED:
        raise InputError(
            f"The proposal {name} has no weights, and none are downloaded: give proposal_weights=FILE, a checkpoint of "
            "PyTorchVideo or mmaction2; or, to measure only cost, pass pretrained=False to sieve() for random weights."
        )
    state = None if weights is None else zoo.read_weights(weights, sha256)
    net: Any = zoo.video_proposal(name, state, pretrained=pretrained)
    mean, std, clip_size = net.mean, net.std, net.clip_size
    features = fx.symbolic_trace(net)
    fold(features)
    return Proposal(
        features.to(dtype).requires_grad_(False),
        name,
        channels=net.channels,
        mean=mean,
        std=std,
        dtype=dtype,
        in_pieces=True,
        video=True,
        clip_size=clip_size,
    )


def module_proposal(module: nn.Module | Callable[[Tensor], Tensor], layer: int | str | None = None) -> Proposal:
    """The user's own network as a proposal: not copied, optimised, renormalised or cast, only switched to eval mode.

    Without `layer` it must map images (B, 3, H, W) to features (B, K, h, w), and may be a function, such as the bound
    method `net.forward_features`. With `layer` it is a classifier, which is split there as in `named_proposal`.
    """
    if layer is None:
        name = getattr(module, "__name__", type(module).__name__)
        return Proposal(module if isinstance(module, nn.Module) else _Function(module), name)
    if not isinstance(module, nn.Module):
        raise RecipeError("layer= names a part of a module, but the proposal is a function: pass the module.")
    name = type(module).__name__
    parts = split(module.eval(), name, layer, _trial_images(module))
    return Proposal(parts.features, name, head=parts.head, channels=parts.channels)


class _Function(nn.Module):
    """A function as a module. The module of a bound method is a submodule, so that it is moved to other devices too."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        owner = getattr(function, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def _in_full_precision(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Call a function with autocast off. No context is entered if it is off already, since exporters would record it,
    or for meta tensors, which are used to count costs."""
    if tensor.is_meta or not torch.is_autocast_enabled(tensor.device.type):
        return function(tensor)
    with torch.autocast(tensor.device.type, enabled=False):
        return function(tensor)


def _dtype_of(module: nn.Module) -> torch.dtype | None:
    """The floating-point dtype of a module's parameters; None if there is none or more than one."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _trial_images(model: nn.Module) -> Tensor:
    """A noise image for a trial run, or a clip for 3-D convolutions, in the model's size and on its device."""
    parameter = next(model.parameters(), torch.empty(0))
    clip = (3, 16, 64, 64) if any(isinstance(module, nn.Conv3d) for module in model.modules()) else None
    noise = torch.randn(1, *(clip or InputSpec.of(model)), generator=torch.Generator().manual_seed(0))
    return noise.to(parameter.device, parameter.dtype)


def _not_features(name: str, output: Any) -> str:
    """The error message for a module whose output is not a feature map."""
    if not isinstance(output, Tensor):
        return f"The proposal {name} returns {type(output).__name__}, not a tensor of features (B, K, h, w)."
    if output.ndim == 2:
        return (
            f"The proposal {name} returns logits of shape {tuple(output.shape)}, not features (B, K, h, w): pass its "
            "forward_features, its name, or layer=."
        )
    return f"The proposal {name} returns a tensor of shape {tuple(output.shape)}, not features (B, K, h, w)."
