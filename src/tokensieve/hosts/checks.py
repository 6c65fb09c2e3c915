"""What openers refuse alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .._recording import as_int
from ..data.inputs import LAYOUTS
from ..errors import InputError, UnsupportedHost


def plain_patch(projection: nn.Module | None) -> tuple[int, ...] | None:
    """Sides of the patches that a convolution embeds, (frames,) height and width, if they lie side by side, or None."""
    if not isinstance(projection, (nn.Conv2d, nn.Conv3d)) or any(projection.padding):
        return None
    return tuple(projection.stride) if projection.stride == projection.kernel_size else None


def covered(images: Tensor, grid: Sequence[int], patch: Sequence[int] | None) -> Tensor:
    """The part of the images (B, C, H, W), or clips (B, C, T, H, W), that a grid of patches covers, from its start on.

    Hosts leave out what is no whole patch at the far edges, or fill it up with zeros: so is it done here. `patch` None
    is not known, and the whole image stands for the grid.
    """
    if patch is None:
        return images
    filled: list[int] = []  # from the last side on, as `pad` takes them
    for axis, (count, side) in enumerate(zip(grid, patch, strict=True), start=2):
        side_length, grid_length = as_int(images.shape[axis]), count * side
        images = images if side_length <= grid_length else images.narrow(axis, 0, grid_length)
        filled = [0, max(0, grid_length - side_length), *filled]
    return F.pad(images, filled) if any(filled) else images


def channels_first(images: Tensor, layout: str) -> Tensor:
    """Images or clips of a layout of `InputSpec`, with their channels in front: (B, C, H, W) or (B, C, T, H, W)."""
    return images.transpose(1, 2) if layout == "TCHW" else images


def check_size(model: nn.Module, images: Tensor, size: Sequence[int]) -> Tensor:
    """The images (B, C, H, W), if they have the one size (height, width) that the model reads."""
    if tuple(images.shape[2:]) != tuple(size):
        raise InputError(
            f"Images have shape {tuple(images.shape)}; this {type(model).__name__} reads (B, 3, {size[0]}, {size[1]})."
        )
    return images


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether a module has hooks or a forward put in the place of its own.

    transformers collects hidden states by hooks that it leaves on its layers: they are no user's, and do not count.
    """
    if "forward" in module.__dict__:
        return True
    hooks = [hook for name in _HOOKS for hook in (getattr(module, name) or {}).values()]
    return any(not _own(getattr(hook, "func", hook)) for hook in hooks)


def _own(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def refuse_hooks(model: nn.Module, bypassed: Iterable[nn.Module]) -> None:
    """Refuse hooks and replaced forwards on modules which the stream does not call as a whole: they would not run."""
    for module in bypassed:
        if not hooked(module):
            continue
        name = next((name for name, submodule in model.named_modules() if submodule is module), "")
        path = f"{type(model).__name__}.{name}" if name else type(model).__name__
        if hasattr(module, "_hf_hook"):
            raise UnsupportedHost(
                f"{path} was placed by accelerate (device_map=), whose hooks would not run: load the model on one "
                "device, without device_map=."
            )
        reason = "a forward of its own" if "forward" in module.__dict__ else "a hook"
        raise UnsupportedHost(
            f"{path} has {reason}, which would not run, because the recipe acts inside {type(module).__name__}: put it "
            "on a module inside that is called as it is (a norm, an MLP), or remove it."
        )


def plain_linear(layer: nn.Module) -> bool:
    """Whether rows of a linear layer's weight may be used by themselves: nothing of it is replaced or hooked."""
    return type(layer) is nn.Linear and not hooked(layer)


def check_images(model: nn.Module, images: Tensor, layout: str = "CHW") -> Tensor:
    """The images, or the clips of another layout, if they are a tensor of the rank of these."""
    noun, name = "Images" if layout == "CHW" else "Clips", type(model).__name__
    reads = "(B, 3, H, W)" if layout == "CHW" else f"(batch, {LAYOUTS[layout]})"
    if not isinstance(images, Tensor):
        raise InputError(f"{noun} are a {type(images).__name__}; {name} reads a tensor {reads}.")
    if images.ndim != 1 + len(layout):
        raise InputError(f"{noun} have shape {tuple(images.shape)}; {name} reads {reads}.")
    return images
