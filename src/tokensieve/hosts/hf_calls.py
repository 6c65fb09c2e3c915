"""How models of transformers are called, and what their openers refuse alike; imported with the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from packaging.version import Version
from torch import Tensor

from ..errors import InputError, UnsupportedHost

OLDEST = "5.9"
"""The first version of transformers in which ViT's layers have these parts."""


COUNT = "num_items_in_batch"
"""The argument that transformers' Trainer adds to `labels=`, for the loss alone."""


def is_transformers(module: Any) -> bool:
    """Whether a module's class is transformers' own."""
    return type(module).__module__.startswith("transformers.models.")


def check_model(model: Any) -> None:
    """Refuse a version whose models have other parts."""
    import transformers

    name = type(model).__name__
    if Version(transformers.__version__) < Version(OLDEST):
        raise UnsupportedHost(
            f"{name} is of transformers {transformers.__version__}, whose layers have other parts; "
            f"version {OLDEST} or newer is needed: pip install 'transformers>={OLDEST}'."
        )


def called_with(model: Any, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """A call's arguments -> the images, given as the first argument or by name, and the other keyword arguments.

    Raises:
        InputError: no images, or images twice.
    """
    kwargs = {word: value for word, value in kwargs.items() if value is not None}
    named_input = kwargs.pop(model.main_input_name, None)
    if (images is None) == (named_input is None):
        raise InputError(
            f"{type(model).__name__} is called with images once, as the first argument or as {model.main_input_name}=."
        )
    images = named_input if images is None else images
    assert images is not None
    return images, kwargs


def refuse(model: Any, kwargs: dict[str, Any], word: str, why: str) -> None:
    """Remove an argument for an output that a sieved model lacks; an InputError where it or the config is True."""
    if kwargs.pop(word, getattr(model.config, word, False)):
        raise InputError(
            f"{word} cannot be had of a sieved model, {why}: "
            "leave it out, and ask the dense model or fast.trace(images) instead."
        )


def check_size(model: Any, images: Tensor, size: tuple[int, int]) -> None:
    """Refuse images of another size than (height, width), which the host reads unless it is told to interpolate."""
    if tuple(images.shape[2:]) != size:
        raise InputError(
            f"Images have {images.shape[2]} x {images.shape[3]} pixels, {type(model).__name__} reads "
            f"{size[0]} x {size[1]}: resize them, or call with interpolate_pos_encoding=True."
        )


def check_kwargs(model: Any, kwargs: dict[str, Any], takes: list[str]) -> None:
    """Refuse keyword arguments that the sieved model does not take."""
    for word in kwargs:
        if word not in takes and not (word == COUNT and "labels" in takes):
            raise InputError(
                f"{type(model).__name__} takes no {word}= once it is sieved; it takes "
                f"{', '.join([model.main_input_name, *takes[:-1]])} and {takes[-1]}."
            )


class WithParts:
    """A model as its own forward sees it, but with other parts, by name, in the place of some of its own.

    It is made for one call, so that nothing is kept, and nothing of the model is changed.
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
    """A part of a model as the forward around it sees it, which answers with what is there already."""

    def __init__(self, module: Any, answer: Callable[..., Any]) -> None:
        """`answer` is given the words that the part is called with, and none of the inputs."""
        self._part, self._answer = module, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *_inputs: Any, **kwargs: Any) -> Any:
        return self._answer(**kwargs)

    forward_with_filtered_kwargs = __call__


def pass_through(pixel_values: Any = None, *, pixel_values_videos: Any = None, **_words: Any) -> Any:
    """A module that returns its input unchanged."""
    return pixel_values_videos if pixel_values is None else pixel_values


def pair(side: Any) -> tuple[int, int]:
    """Height and width, of which a config may give one for both."""
    height, width = side if isinstance(side, Iterable) else (side, side)
    return height, width
