"""Calls of transformers models: their arguments, checks of these, and replacements for parts of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from packaging.version import Version
from torch import Tensor

from ..errors import InputError, UnsupportedHost

OLDEST = "5.9"
"""The oldest supported version of transformers: the first whose ViT layers have the parts named in `hf_block.py`."""


COUNT = "num_items_in_batch"
"""The argument that transformers' Trainer adds to `labels=`; only the loss uses it."""


def is_transformers(module: Any) -> bool:
    """Whether the class of a module is defined in transformers."""
    return type(module).__module__.startswith("transformers.models.")


def check_model(model: Any) -> None:
    """Raise UnsupportedHost if the installed transformers is older than `OLDEST`."""
    import transformers

    name = type(model).__name__
    if Version(transformers.__version__) < Version(OLDEST):
        raise UnsupportedHost(
            f"{name} is from transformers {transformers.__version__}, whose layers are built differently; "
            f"version {OLDEST} or newer is needed: pip install 'transformers>={OLDEST}'."
        )


def called_with(model: Any, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """A call's arguments -> the images, given as the first argument or by name, and the other keyword arguments.

    Raises:
        InputError: no images, or images twice.
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    named_input = kwargs.pop(model.main_input_name, None)
    if (images is None) == (named_input is None):
        raise InputError(
            f"{type(model).__name__} is called with images once, as the first argument or as {model.main_input_name}=."
        )
    images = named_input if images is None else images
    assert images is not None
    return images, kwargs


def refuse(model: Any, kwargs: dict[str, Any], name: str, why: str) -> None:
    """Remove an argument that requests an output which a sieved model lacks.

    Raises:
        InputError: the argument, or the config's default of it, is True.
    """
    if kwargs.pop(name, getattr(model.config, name, False)):
        raise InputError(
            f"A sieved model cannot return {name}, {why}: leave it out, and use the dense model or fast.trace(images) "
            "instead."
        )


def check_size(model: Any, images: Tensor, size: tuple[int, int]) -> None:
    """Raise InputError if images are not of the model's size (height, width); for calls without interpolation."""
    if tuple(images.shape[2:]) != size:
        raise InputError(
            f"Images have {images.shape[2]} x {images.shape[3]} pixels, {type(model).__name__} reads "
            f"{size[0]} x {size[1]}: resize them, or call with interpolate_pos_encoding=True."
        )


def check_kwargs(model: Any, kwargs: dict[str, Any], takes: list[str]) -> None:
    """Raise InputError for keyword arguments that are not in `takes`, the names that the sieved model accepts."""
    for name in kwargs:
        if name not in takes and not (name == COUNT and "labels" in takes):
            raise InputError(
                f"{type(model).__name__} takes no {name}= once it is sieved; it takes "
                f"{', '.join([model.main_input_name, *takes[:-1]])} and {takes[-1]}."
            )


class WithParts:
    """Runs a model's own forward with some of its submodules replaced, by name; the model itself is not changed.

    It is created for one call and keeps nothing.
    """

    def __init__(self, model: Any, /, **parts: Any) -> None:
        self._model = model
        for name, module in parts.items():
            setattr(self, name, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        return type(self._model).forward(self, *inputs, **kwargs)


class StandIn:
    """Replaces a submodule in a call: it has the submodule's attributes, but returns a precomputed output."""

    def __init__(self, module: Any, answer: Callable[..., Any]) -> None:
        """`answer` is called with the keyword arguments of the call, without its positional inputs."""
        self._part, self._answer = module, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *_inputs: Any, **kwargs: Any) -> Any:
        return self._answer(**kwargs)

    forward_with_filtered_kwargs = __call__


def pass_through(pixel_values: Any = None, *, pixel_values_videos: Any = None, **_kwargs: Any) -> Any:
    """Stands in for a module in a call, and returns its input unchanged."""
    return pixel_values_videos if pixel_values is None else pixel_values


def pair(side: Any) -> tuple[int, int]:
    """(height, width) of a config entry, which may be one number for both."""
    height, width = side if isinstance(side, Iterable) else (side, side)
    return height, width
