"""The input of a model: its channels, height and width, and for video its frames."""

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
    """The shape of one input, an image or a video, and the order of its axes.

    It is a sequence of the sizes, so that `torch.zeros(batch, *spec)` works.

    Args:
        shape: the sizes without the batch.
        layout: "CHW" for an image; "TCHW" or "CTHW" for a video, where T are the frames.

    Raises:
        InputError: an unknown layout, or a shape that is not one positive integer per axis.
    """

    shape: tuple[int, ...]
    layout: str = "CHW"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, not {self.layout!r}.")
        if not _are_counts(self.shape) or len(self.shape) != len(self.layout):
            raise InputError(f"The shape of {self.layout} must be ({LAYOUTS[self.layout]}), not {self.shape!r}.")
        object.__setattr__(self, "shape", tuple(self.shape))

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The input defined by the model's host; for models without a host see `image`."""
        host_spec = _spec_of_host(model)
        return cls.image(model) if host_spec is None else cls(host_spec.shape, host_spec.layout)

    @classmethod
    def image(cls, model: nn.Module) -> Self:
        """The image that a model most likely reads, found without its host.

        The default is 3 channels and 224 x 224 pixels, for models that do not store these; torchvision's ConvNets, for
        example, store no size.
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
        """Number of frames; 1 for an image."""
        return self.shape[self.layout.index("T")] if "T" in self.layout else 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.shape[-2], self.shape[-1]

    def resized(self, height: int, width: int) -> Self:
        """The same spec with another height and width in pixels."""
        return replace(self, shape=(*self.shape[:-2], height, width))


InputSize = int | Sequence[int]
"""A side in pixels, (height, width), the whole shape, or an `InputSpec`."""

SPEC_PROVIDERS: list[Callable[[nn.Module], InputSpec | None]] = []
"""Functions from a module to the input that its host defines, or None. `hosts` adds a function here, since this module
cannot import `hosts`."""


def _spec_of_host(model: nn.Module) -> InputSpec | None:
    """The input defined by the host of the model or of one of its submodules, or None."""
    for module in model.modules():
        for provider in SPEC_PROVIDERS:
            with suppress(UnsupportedHost):
                if (spec := provider(module)) is not None:
                    return spec
    # Video networks of `zoo` have no host; their `clip_size` has the frames, height and width of clips.
    clips = (clip for module in model.modules() if isinstance(clip := getattr(module, "clip_size", None), tuple))
    return next((InputSpec((3, *clip), "CTHW") for clip in clips), None)


def own_input(model: nn.Module, size: InputSize | None = None) -> InputSpec:
    """The input of a model, in the size for which it was built or in a given size.

    Args:
        model: a model of timm, torchvision, transformers or open_clip, one whose registered host defines `input_spec`,
            or one of these sieved, compiled or wrapped; any other module if `size` is the whole shape.
        size: a side in pixels, (height, width), or the whole shape: (C, H, W), or for video in the layout of the host;
            or an `InputSpec`. None: the size for which the model was built.

    Raises:
        InputError: `size` is not valid, or leaves out something that the model does not store.
    """
    if isinstance(size, InputSpec):
        return size
    host_spec = _spec_of_host(model)
    layout = "CHW" if host_spec is None else host_spec.layout
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (not _are_counts(sides) or len(sides) not in (2, len(layout)) or isinstance(size, bool)):
        raise InputError(f"input_size is a side in pixels, (height, width) or ({LAYOUTS[layout]}), not {size!r}.")
    if sides is not None and len(sides) > 2:
        return InputSpec(tuple(sides), layout)
    if host_spec is not None:
        return host_spec if sides is None else host_spec.resized(*sides)
    sides, channels = size_of(model) if sides is None else sides, channels_of(model)
    if sides is None or channels is None:
        missing = "size of its images" if sides is None else "number of channels"
        raise InputError(f"{type(model).__name__} states no {missing}: give input_size=(channels, height, width).")
    return InputSpec((channels, *sides))


def is_count(number: Any) -> bool:
    """Whether `number` is an integer of at least 1."""
    return type(number) is int and number > 0


def _are_counts(sides: Any) -> bool:
    return isinstance(sides, Sequence) and all(map(is_count, sides))


def own_input_size(model: nn.Module, size: InputSize | None = None) -> tuple[int, ...]:
    """The shape of `own_input`: (C, H, W) for an image."""
    return own_input(model, size).shape


def size_of(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) in pixels for which a model was built, or None if it does not store them."""
    host_spec = _spec_of_host(model)
    return _size(model) if host_spec is None else host_spec.size


def _size(model: nn.Module) -> tuple[int, int] | None:
    """As `size_of`, without the host."""
    for size in _possible_sizes(model):
        if isinstance(size, int):
            return size, size
        if isinstance(size, tuple | list) and len(size) == 2:
            return size[0], size[1]
    return None


def channels_of(model: nn.Module) -> int | None:
    """Number of input channels, by the host or the first convolution (the config may be that of other weights).

    None if it cannot be found.
    """
    host_spec = _spec_of_host(model)
    return _channels(model) if host_spec is None else host_spec.channels


def _channels(model: nn.Module) -> int | None:
    """As `channels_of`, without the host."""
    config = _timm_config(model)
    folded = 1
    for module in model.modules() if config.get("first_conv", True) else ():
        if isinstance(module, SpaceToDepth):
            folded = module.bs**2
        if isinstance(module, nn.Conv2d):
            return module.in_channels // folded
    configured = getattr(getattr(model, "config", None), "num_channels", None)
    return configured or next(iter(config.get("input_size", ())), None)


def _possible_sizes(model: nn.Module) -> Iterator[Any]:
    """Input sizes found in a model, the most reliable first."""
    for name, module in model.named_modules():  # the size the model was built with; its weights may be for another one
        if name.rpartition(".")[2] == "patch_embed":
            yield getattr(module, "img_size", None)
    for module in model.modules():
        yield getattr(getattr(module, "config", None), "image_size", None)
        yield getattr(module, "image_size", None)
        yield _pretrained_cfg(module).get("input_size", ())[1:]


def _timm_config(model: nn.Module) -> dict[str, Any]:
    """timm's configuration of the model, or of the model that it wraps; empty if there is none."""
    return next((config for module in model.modules() if (config := _pretrained_cfg(module))), {})


def _pretrained_cfg(module: nn.Module) -> dict[str, Any]:
    config = getattr(module, "pretrained_cfg", None)
    return config if isinstance(config, dict) else {}


def check_images(images: Any, layout: str = "CHW") -> Tensor:
    """Return the images, if they are one floating-point tensor (B, C, H, W), or a batch of another layout.

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
    """A context that turns any exception of a model's forward into an `InputError` with the expected input shape."""
    try:
        yield
    except SieveError:
        raise
    except Exception as error:
        expected = ""
        with suppress(InputError):  # raised if the model does not store its input size
            expected = f" It was built for {own_input_size(model)}."
        raise InputError(
            f"{type(model).__name__} does not run on images of shape {tuple(images.shape)}: {cause(error)}.{expected}"
        ) from error
