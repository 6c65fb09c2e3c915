"""Models of which only a sub-module is sieved, such as a segmenter with its backbone."""

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


class _InputRecorder:
    """A significance function that records the images it gets, which are the input of the sieved sub-module.

    Its map, (B, 3, H, W) -> (B, 8, 8), is zero everywhere and costs no MACs.
    """

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        return images.new_zeros(len(images), 8, 8)


class WrappedBackbone:
    """A backbone that is sieved as a sub-module of a larger model.

    The constructor runs the model with a sieved backbone, to check that the model calls it, and with unchanged images.

    Args:
        model: the larger model; takes images (B, 3, H, W) and passes them to the backbone unchanged.
        backbone: the backbone's name in the model, as for `model.get_submodule`.
        input_size: size of the images, without the batch.

    Raises:
        InputError: there is no such sub-module.
        UnsupportedHost: the backbone cannot be sieved; or the model does not call it once with unchanged images, so
            that sieving it would not save the same MACs in the whole model.
    """

    def __init__(self, model: nn.Module, backbone: str, input_size: InputSpec) -> None:
        self.model, self.backbone, self.host_model = model, backbone, submodule(model, backbone)
        backbone_macs = macs(self.host_model, input_size)
        total_macs = macs(model, input_size)
        recorder = _InputRecorder()
        sieved = sieve(self.host_model, PaPr(keep=0.6, significance=recorder))  # any keep ratio below 1 will do
        saved_in_backbone = backbone_macs - macs(sieved, input_size)
        saved_in_model = total_macs - macs(self.with_backbone(sieved), input_size)
        if round(saved_in_model) != round(saved_in_backbone):
            raise UnsupportedHost(
                f"{type(model).__name__} cannot be tuned through its {backbone}: sieving it saves "
                f"{saved_in_backbone / 1e9:.4g} GMAC in the sub-module and {saved_in_model / 1e9:.4g} in the whole "
                "model. The model must call the sub-module once, with the unchanged images, directly or by "
                "forward_features or forward_intermediates."
            )
        parameter = next(model.parameters())
        images = torch.rand(1, *input_size, generator=torch.Generator().manual_seed(0)).to(
            parameter.device, parameter.dtype
        )
        recorder.inputs.clear()
        with torch.no_grad():
            self.with_backbone(sieved)(images)
        # The significance function gets the part of the images that whole patches cover.
        if len(recorder.inputs) != 1 or not torch.equal(recorder.inputs[0], sieved.covered(images)):
            raise UnsupportedHost(
                f"{type(model).__name__} changes the images before its {backbone} reads them: normalise and resize "
                "images in the data loader instead."
            )
        self.outside_macs = round(total_macs - backbone_macs)
        """MACs per image of the whole model minus those of the backbone called alone.

        Added to the MACs of a sieved backbone, it gives those of the whole model. It is less than the cost of the
        layers around the backbone if the backbone alone also runs layers that the model skips, such as a classifier.
        """

    def with_backbone(self, module: nn.Module) -> nn.Module:
        """A copy of the model with `module` in place of the backbone; all other modules and weights are shared."""
        return _with_replacement(self.model, self.backbone.split("."), module)


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The sub-module of `model` with this name, such as "body.vit".

    Raises:
        InputError: there is none.
    """
    names = [path for path, _ in model.named_modules() if path]
    if name not in names:
        raise InputError(f"{type(model).__name__} has no sub-module {name!r}{nearest(name, names)}.")
    return model.get_submodule(name)


def _with_replacement(model: nn.Module, path: list[str], replacement: nn.Module) -> nn.Module:
    """A copy of `model` with `replacement` at `path`; only the modules along the path are copied."""
    if not path:
        return replacement
    modules: dict[str, Any] = vars(model)["_modules"]
    if "forward" in vars(model):
        raise UnsupportedHost(
            f"{type(model).__name__} has a forward that was set on the instance, which would run the dense "
            "sub-module instead of the sieved one."
        )
    copied = copy.copy(model)
    copied.__dict__["_modules"] = {**modules, path[0]: _with_replacement(modules[path[0]], path[1:], replacement)}
    return copied
