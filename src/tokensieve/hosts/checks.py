"""Checks that several hosts share: sizes and shapes of images, patches, hooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .._recording import as_int
from ..data.inputs import LAYOUTS
from ..errors import InputError, UnsupportedHost


def plain_patch(projection: nn.Module | None) -> tuple[int, ...] | None:
    """Patch size of an embedding convolution, ([frames,] height, width); None if patches overlap or are padded."""
    if not isinstance(projection, (nn.Conv2d, nn.Conv3d)) or any(projection.padding):
        return None
    return tuple(projection.stride) if projection.stride == projection.kernel_size else None


def covered(images: Tensor, grid: Sequence[int], patch: Sequence[int] | None) -> Tensor:
    """The part of the images (B, C, H, W), or clips (B, C, T, H, W), that a grid of patches covers.

    An incomplete patch at the right or bottom edge is cropped or padded with zeros, as hosts do. If `patch` is None
    (unknown) the images are returned unchanged.
    """
    if patch is None:
        return images
    padding: list[int] = []  # from the last axis to the first, the order of `pad`
    for axis, (count, side) in enumerate(zip(grid, patch, strict=True), start=2):
        side_length, grid_length = as_int(images.shape[axis]), count * side
        images = images if side_length <= grid_length else images.narrow(axis, 0, grid_length)
        padding = [0, max(0, grid_length - side_length), *padding]
    return F.pad(images, padding) if any(padding) else images


def channels_first(images: Tensor, layout: str) -> Tensor:
    """Images or clips in a layout of `InputSpec` -> channels first: (B, C, H, W) or (B, C, T, H, W)."""
    return images.transpose(1, 2) if layout == "TCHW" else images


def check_size(model: nn.Module, images: Tensor, size: Sequence[int]) -> Tensor:
    """Return the images (B, C, H, W); raises InputError if they do not have the model's size (height, width)."""
    if tuple(images.shape[2:]) != tuple(size):
        raise InputError(
            f"Images have shape {tuple(images.shape)}; this {type(model).__name__} reads (B, 3, {size[0]}, {size[1]})."
        )
    return images


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, or a `forward` that replaces that of its class.

    Hooks of transformers, which it leaves on its layers to collect hidden states, do not count.
    """
    if "forward" in module.__dict__:
        return True
    hooks = [hook for name in _HOOKS for hook in (getattr(module, name) or {}).values()]
    return any(not _of_transformers(getattr(hook, "func", hook)) for hook in hooks)


def _of_transformers(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def refuse_hooks(model: nn.Module, bypassed: Iterable[nn.Module]) -> None:
    """Raise UnsupportedHost if a bypassed module has hooks or a replaced `forward`: neither would run."""
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
        reason = "a replaced forward" if "forward" in module.__dict__ else "a hook"
        raise UnsupportedHost(
            f"{path} has {reason}, which would not run, because the recipe acts inside {type(module).__name__}: put it "
            "on a module inside that is called as it is (a norm, an MLP), or remove it."
        )


def plain_linear(layer: nn.Module) -> bool:
    """Whether the weight of a layer may be used without calling it: a plain `nn.Linear` without hooks."""
    return type(layer) is nn.Linear and not hooked(layer)


def check_images(model: nn.Module, images: Tensor, layout: str = "CHW") -> Tensor:
    """Return the images, or clips of a video layout; raises InputError unless they are a tensor of the right rank."""
    noun, name = "Images" if layout == "CHW" else "Clips", type(model).__name__
    reads = "(B, 3, H, W)" if layout == "CHW" else f"(batch, {LAYOUTS[layout]})"
    if not isinstance(images, Tensor):
        raise InputError(f"{noun} are a {type(images).__name__}; {name} reads a tensor {reads}.")
    if images.ndim != 1 + len(layout):
        raise InputError(f"{noun} have shape {tuple(images.shape)}; {name} reads {reads}.")
    return images


def unknown_block(block: nn.Module, known: Iterable[str] = ()) -> str:
    """Why methods that act inside a block cannot run in this one, whose class is not one of `known`."""
    classes = ", ".join(known)
    why = f"{type(block).__name__} is not a block that can be stopped between attention and MLP"
    return f"{why} (those that can: {classes})" if classes else why
