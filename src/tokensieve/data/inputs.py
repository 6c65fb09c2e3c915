"""What a model reads: how many channels, how high, how wide; how many frames, where it reads videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self, overload

from timm.layers import SpaceToDepth
from torch import Tensor, nn

from ..errors import InputError, SieveError, UnsupportedHost, cause

LAYOUTS = {"CHW": "channels, height, width", "TCHW": "frames, channels, height, width"}
LAYOUTS["CTHW"] = "channels, frames, height, width"


@dataclass(frozen=True)
class InputSpec(Sequence[int]):
    """The shape of one input, an image or a video, and the meaning of its axes.

    A sequence of its sizes, such as `torch.zeros(batch, *spec)` takes.

    Args:
        shape: without the batch.
        layout: "CHW", an image; "TCHW" or "CTHW", a video, frame by frame or channel by channel. T are its frames.

    Raises:
        InputError: another layout, or a shape that is not of as many whole numbers from 1 up.
    """

    shape: tuple[int, ...]
    layout: str = "CHW"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"layout is {', '.join(LAYOUTS)}: one of them, not {self.layout!r}.")
        if not _are_counts(self.shape) or len(self.shape) != len(self.layout):
            raise InputError(f"The shape of {self.layout} is ({LAYOUTS[self.layout]}), not {self.shape!r}.")
        object.__setattr__(self, "shape", tuple(self.shape))

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The input that the model's host states; of models without a host the image that they most likely read."""
        stated = _stated_by_host(model)
        return cls.image(model) if stated is None else cls(stated.shape, stated.layout)

    @classmethod
    def image(cls, model: nn.Module) -> Self:
        """The image that a model most likely reads, whatever its host states.

        A model that states no channels gets 3, one that states no size 224 x 224 pixels; torchvision's ConvNets, for
        example, state none.
        """
        return cls((_channels(model) or 3, *(_size(model) or (224, 224))))

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self.shape[index]

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[self.layout.index("C")]

    @property
    def frames(self) -> int:
        """Frames of a video; 1 of an image."""
        return self.shape[self.layout.index("T")] if "T" in self.layout else 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.shape[-2], self.shape[-1]

    def resized(self, height: int, width: int) -> Self:
        """The same of another size in pixels."""
        return replace(self, shape=(*self.shape[:-2], height, width))


InputSize = int | Sequence[int]
"""A side in pixels, (H, W), the whole shape, or an `InputSpec`."""

SPEC_PROVIDERS: list[Callable[[nn.Module], InputSpec | None]] = []
"""Functions from a module to the input that its host states, or None. `hosts` registers its own here, since this module
cannot import it."""


def _stated_by_host(model: nn.Module) -> InputSpec | None:
    """The input that the host of the model, or of a part of it, states."""
    for module in model.modules():
        for provider in SPEC_PROVIDERS:
            with suppress(UnsupportedHost):
                if (spec := provider(module)) is not None:
                    return spec
    # What no host opens: the zoo's networks of video state the frames, height and width of their clips.
    clips = (clip for module in model.modules() if isinstance(clip := getattr(module, "clip_size", None), tuple))
    return next((InputSpec((3, *clip), "CTHW") for clip in clips), None)


def own_input(model: nn.Module, size: InputSize | None = None) -> InputSpec:
    """What a model reads: as it was built, or of the size that is given.

    Args:
        model: of timm, torchvision, transformers or open_clip; one whose registered host states its `input_spec`; what
            `sieve`, `torch.compile` or a wrapper made of one; any other module where the whole of `size` is given.
        size: a side in pixels, (H, W), or the whole shape: (C, H, W), of a model that reads videos as its host lays
            them out; or an `InputSpec`. None is what the model was built for.

    Raises:
        InputError: the model does not state what is not given; a size that is none.
    """
    if isinstance(size, InputSpec):
        return size
    stated = _stated_by_host(model)
    layout = "CHW" if stated is None else stated.layout
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (not _are_counts(sides) or len(sides) not in (2, len(layout)) or isinstance(size, bool)):
        raise InputError(f"input_size is a side in pixels, (height, width) or ({LAYOUTS[layout]}), not {size!r}.")
    if sides is not None and len(sides) > 2:
        return InputSpec(tuple(sides), layout)
    if stated is not None:
        return stated if sides is None else stated.resized(*sides)
    sides, channels = size_of(model) if sides is None else sides, channels_of(model)
    if sides is None or channels is None:
        missing = "size of its images" if sides is None else "number of channels"
        raise InputError(f"{type(model).__name__} states no {missing}: give input_size=(channels, height, width).")
    return InputSpec((channels, *sides))


def is_count(number: Any) -> bool:
    """Whether it is a whole number from 1 up."""
    return type(number) is int and number > 0


def _are_counts(sides: Any) -> bool:
    return isinstance(sides, Sequence) and all(map(is_count, sides))


def own_input_size(model: nn.Module, size: InputSize | None = None) -> tuple[int, ...]:
    """The shape of `own_input`: (C, H, W) of an image."""
    return own_input(model, size).shape


def size_of(model: nn.Module) -> tuple[int, int] | None:
    """Height and width that a model was built for, in pixels; None where it states none."""
    stated = _stated_by_host(model)
    return _size(model) if stated is None else stated.size


def _size(model: nn.Module) -> tuple[int, int] | None:
    """The same by the model alone."""
    for size in _stated_sizes(model):
        if isinstance(size, int):
            return size, size
        if isinstance(size, tuple | list) and len(size) == 2:
            return size[0], size[1]
    return None


def channels_of(model: nn.Module) -> int | None:
    """Channels of what a model reads: as its host states, or of its first convolution, whatever its weights were for.

    None where that cannot be told.
    """
    stated = _stated_by_host(model)
    return _channels(model) if stated is None else stated.channels


def _channels(model: nn.Module) -> int | None:
    """The same by the model alone."""
    stated = _stated(model)
    folded = 1
    for module in model.modules() if stated.get("first_conv", True) else ():
        if isinstance(module, SpaceToDepth):
            folded = module.bs**2
        if isinstance(module, nn.Conv2d):
            return module.in_channels // folded
    configured = getattr(getattr(model, "config", None), "num_channels", None)
    return configured or next(iter(stated.get("input_size", ())), None)


def _stated_sizes(model: nn.Module) -> Iterator[Any]:
    """Input sizes that a model states, the most certain first."""
    for name, module in model.named_modules():  # as it was built, where its weights may be for another size
        if name.rpartition(".")[2] == "patch_embed":
            yield getattr(module, "img_size", None)
    for module in model.modules():
        yield getattr(getattr(module, "config", None), "image_size", None)
        yield getattr(module, "image_size", None)
        yield _own(module).get("input_size", ())[1:]


def _stated(model: nn.Module) -> dict[str, Any]:
    """timm's configuration of the model, or of the model that it wraps."""
    return next((stated for module in model.modules() if (stated := _own(module))), {})


def _own(module: nn.Module) -> dict[str, Any]:
    stated = getattr(module, "pretrained_cfg", None)
    return stated if isinstance(stated, dict) else {}


def check_images(images: Any, layout: str = "CHW") -> Tensor:
    """The images, if they are one tensor (B, C, H, W), or a batch of another layout, of floating-point numbers.

    Raises:
        InputError: they are not.
    """
    description = type(images).__name__
    if isinstance(images, Tensor):
        if images.ndim == 1 + len(layout) and images.is_floating_point():
            return images
        description = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
    raise InputError(
        f"Images must be one tensor (batch, {LAYOUTS[layout]}) of floating-point numbers, normalised as the model "
        f"reads them, not {description}."
    )


@contextmanager
def reading(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn whatever fails while a model reads these images into an `InputError` that says what it was built for."""
    try:
        yield
    except SieveError:
        raise
    except Exception as error:
        built = ""
        with suppress(InputError):  # it does not say
            built = f" It was built for {own_input_size(model)}."
        raise InputError(
            f"{type(model).__name__} does not run on images of shape {tuple(images.shape)}: {cause(error)}.{built}"
        ) from error
