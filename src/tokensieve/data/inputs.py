"""The images that a model reads: how many channels, how high, how wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from timm.layers import SpaceToDepth
from torch import Tensor, nn

from ..errors import InputError, SieveError, cause


def own_input_size(model: nn.Module, size: int | Sequence[int] | None = None) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model reads: as it was built, or of the size that is given.

    Args:
        model: of timm, transformers or open_clip; what `sieve`, `torch.compile` or a wrapper made of one; any other
            module where the whole of `size` is given.
        size: a side in pixels, (H, W), or (C, H, W); None is what the model was built for.

    Raises:
        InputError: the model does not state what is not given; a size that is none.
    """
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None:
        whole = isinstance(sides, Sequence) and len(sides) in (2, 3) and all(isinstance(n, int) for n in sides)
        if not whole or min(sides) < 1 or isinstance(size, bool):
            raise InputError(
                f"input_size is a side in pixels, (height, width) or (channels, height, width), not {size!r}."
            )
    if sides is not None and len(sides) == 3:
        return sides[0], sides[1], sides[2]
    sides, channels = size_of(model) if sides is None else sides, channels_of(model)
    if sides is None or channels is None:
        missing = "size of its images" if sides is None else "number of channels"
        raise InputError(f"{type(model).__name__} states no {missing}: give input_size=(channels, height, width).")
    return channels, sides[0], sides[1]


def likely_input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model most likely reads: torchvision's ConvNets, for one, state none."""
    return channels_of(model) or 3, *(size_of(model) or (224, 224))


def size_of(model: nn.Module) -> tuple[int, int] | None:
    """Height and width that a model was built for, in pixels; None where it states none."""
    for size in _stated_sizes(model):
        if isinstance(size, int):
            return size, size
        if isinstance(size, tuple | list) and len(size) == 2:
            return size[0], size[1]
    return None


def channels_of(model: nn.Module) -> int | None:
    """Channels of the images that a model reads: of its first convolution, whatever its weights were made for.

    None where that cannot be told.
    """
    stated = _stated(model)
    folded = 1
    for part in model.modules() if stated.get("first_conv", True) else ():
        if isinstance(part, SpaceToDepth):
            folded = part.bs**2
        if isinstance(part, nn.Conv2d):
            return part.in_channels // folded
    configured = getattr(getattr(model, "config", None), "num_channels", None)
    return configured or next(iter(stated.get("input_size", ())), None)


def _stated_sizes(model: nn.Module) -> Iterator[Any]:
    """What a model says of its size, the most certain first."""
    for name, part in model.named_modules():  # as it was built, where its weights may be for another size
        if name.rpartition(".")[2] == "patch_embed":
            yield getattr(part, "img_size", None)
    for part in model.modules():
        yield getattr(getattr(part, "config", None), "image_size", None)
        yield getattr(part, "image_size", None)
        yield _own(part).get("input_size", ())[1:]


def _stated(model: nn.Module) -> dict[str, Any]:
    """What timm's configuration says, of the model or of the one that it wraps."""
    return next((stated for part in model.modules() if (stated := _own(part))), {})


def _own(part: nn.Module) -> dict[str, Any]:
    stated = getattr(part, "pretrained_cfg", None)
    return stated if isinstance(stated, dict) else {}


def check_images(images: Any) -> Tensor:
    """The images, if they are one tensor (B, C, H, W) of floating-point numbers.

    Raises:
        InputError: they are not.
    """
    found = type(images).__name__
    if isinstance(images, Tensor):
        if images.ndim == 4 and images.is_floating_point():
            return images
        found = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
    raise InputError(
        "Images must be one tensor (batch, channels, height, width) of floating-point numbers, normalised as the model "
        f"reads them, not {found}."
    )


@contextmanager
def reading(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn whatever fails while a model reads these images into an `InputError` that says what it was built for."""
    try:
        yield
    except SieveError:
        raise
    except Exception as error:
        channels, size = channels_of(model), size_of(model)
        built = f" It was built for ({channels}, {size[0]}, {size[1]})." if channels and size else ""
        raise InputError(
            f"{type(model).__name__} does not run on images of shape {tuple(images.shape)}: {cause(error)}.{built}"
        ) from error
