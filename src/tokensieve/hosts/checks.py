"""What openers refuse alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .._recording import whole
from ..errors import InputError, UnsupportedHost


def plain_patch(projection: nn.Module | None) -> tuple[int, ...] | None:
    """Height and width of the patches that a convolution embeds, if they lie side by side; else None."""
    if not isinstance(projection, nn.Conv2d) or projection.padding != (0, 0):
        return None
    return tuple(projection.stride) if projection.stride == projection.kernel_size else None


def covered(images: Tensor, grid: Sequence[int], patch: Sequence[int] | None) -> Tensor:
    """The part of the images (B, C, H, W) that a grid of patches covers, from the upper left corner on.

    Hosts leave out what is no whole patch at the right and lower edge, or fill it up with zeros: so is it done here.
    `patch` None is not known, and the whole image stands for the grid.
    """
    if patch is None:
        return images
    height, width = (whole(side) for side in images.shape[-2:])
    tall, wide = (count * side for count, side in zip(grid, patch, strict=True))
    if (tall, wide) == (height, width):
        return images
    images = images[..., : min(tall, height), : min(wide, width)]
    return F.pad(images, (0, max(0, wide - width), 0, max(0, tall - height)))


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
        name = next((name for name, part in model.named_modules() if part is module), "")
        where = f"{type(model).__name__}.{name}" if name else type(model).__name__
        if hasattr(module, "_hf_hook"):
            raise UnsupportedHost(
                f"{where} was placed by accelerate (device_map=), whose hooks would not run: load the model on one "
                "device, without device_map=."
            )
        what = "a forward of its own" if "forward" in module.__dict__ else "a hook"
        raise UnsupportedHost(
            f"{where} has {what}, which would not run, because the recipe acts inside {type(module).__name__}: put it "
            "on a module inside that is called as it is (a norm, an MLP), or remove it."
        )


def plain_linear(layer: nn.Module) -> bool:
    """Whether rows of a linear layer's weight may be used by themselves: nothing of it is replaced or hooked."""
    return type(layer) is nn.Linear and not hooked(layer)


def check_images(model: nn.Module, images: Tensor) -> Tensor:
    """The images, if they are a tensor of the rank of images."""
    if not isinstance(images, Tensor):
        raise InputError(f"Images are a {type(images).__name__}; {type(model).__name__} reads a tensor (B, 3, H, W).")
    if images.ndim != 4:
        raise InputError(f"Images have shape {tuple(images.shape)}; {type(model).__name__} reads (B, 3, H, W).")
    return images
