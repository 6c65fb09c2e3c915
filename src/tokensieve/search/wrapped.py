"""A model that contains the host as a sub-module, such as a segmenter with its backbone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..data.inputs import InputSpec
from ..errors import InputError, UnsupportedHost, nearest
from ..measure import macs
from ..methods import PaPr
from ..stream import sieve


class _Probe:
    """A significance function that records the host's input; its constant map costs no MACs."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        return images.new_zeros(len(images), 8, 8)


class Wrapped:
    """The sub-module that is sieved, and the model around it.

    Args:
        model: takes images (B, 3, H, W) and passes them to the sub-module unchanged.
        backbone: the sub-module's name, as for `model.get_submodule`.
        input_size: size of the images.

    Raises:
        InputError: there is no such sub-module.
        UnsupportedHost: it cannot be sieved, or the whole model does not save the same MACs as the sub-module.
    """

    def __init__(self, model: nn.Module, backbone: str, input_size: InputSpec) -> None:
        self.model, self.backbone, self.host_model = model, backbone, submodule(model, backbone)
        backbone_macs = macs(self.host_model, input_size)
        total_macs = macs(model, input_size)
        probe = _Probe()
        fast = sieve(self.host_model, PaPr(keep=0.6, significance=probe))
        saved, expected = (
            total_macs - macs(self.with_backbone(fast), input_size),
            backbone_macs - macs(fast, input_size),
        )
        if round(saved) != round(expected):
            raise UnsupportedHost(
                f"{type(model).__name__} cannot be tuned by its {backbone}: sieving it saves {expected / 1e9:.4g} GMAC "
                f"in the sub-module and {saved / 1e9:.4g} in the whole model. The model must call it once, with the "
                "unchanged images, directly or by forward_features or forward_intermediates."
            )
        parameter = next(model.parameters())
        images = torch.rand(1, *input_size, generator=torch.Generator().manual_seed(0)).to(
            parameter.device, parameter.dtype
        )
        probe.inputs.clear()
        with torch.no_grad():
            self.with_backbone(fast)(images)
        if len(probe.inputs) != 1 or not torch.equal(probe.inputs[0], fast.covered(images)):
            raise UnsupportedHost(
                f"{type(model).__name__} changes the images before its {backbone} reads them: normalise and resize "
                "images in the data loader instead."
            )
        self.outside = round(total_macs - backbone_macs)
        """MACs per image of the model around the sub-module, minus what the sub-module computes without use."""

    def with_backbone(self, module: nn.Module) -> nn.Module:
        """A copy of the model with another sub-module in place of the backbone; everything else is shared."""
        return _replaced(self.model, self.backbone.split("."), module)


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The sub-module with this name.

    Raises:
        InputError: it does not exist.
    """
    names = [path for path, _ in model.named_modules() if path]
    if name not in names:
        raise InputError(f"{type(model).__name__} has no sub-module {name!r}{nearest(name, names)}.")
    return model.get_submodule(name)


def _replaced(model: nn.Module, path: list[str], replacement: nn.Module) -> nn.Module:
    if not path:
        return replacement
    modules: dict[str, Any] = vars(model)["_modules"]
    if "forward" in vars(model):
        raise UnsupportedHost(
            f"{type(model).__name__} has a forward that was set on the instance, which would run the dense model."
        )
    copied = copy.copy(model)
    copied.__dict__["_modules"] = {**modules, path[0]: _replaced(modules[path[0]], path[1:], replacement)}
    return copied
