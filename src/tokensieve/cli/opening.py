"""Turns options into the model, the pictures or videos, and the record that commands work with."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..model_spec import ModelSpec, OpenedModel
from .options import ClipOptions, NetworkOptions, PlaceOptions

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from ..data import Preprocessing, VideoPreprocessing

CLIPS = ("frames", "stride", "sampling", "views")
"""Names of the clip options, which are also the names of `ModelSpec` settings."""
OPTIONS = {"precision": "--dtype"}
"""`ModelSpec` setting -> the option that sets it, where the names differ."""


def option_for(setting: str) -> str:
    """The option that sets a setting of a `ModelSpec`."""
    return OPTIONS.get(setting, "--" + setting.removeprefix("clips.").replace("_", "-"))


def read_spec(
    network: NetworkOptions,
    place: PlaceOptions,
    clips: ClipOptions | None = None,
    *,
    cascades: bool = False,
    **others: Any,
) -> ModelSpec:
    """The checked `ModelSpec` of the options. Also sets torch's number of CPU threads.

    Args:
        network, place, clips: groups of options.
        cascades: whether the command accepts a cascade of several recipes.
        others: further `ModelSpec` settings.
    """
    settings = {**vars(network), **vars(place), **others}
    if clips is not None:
        settings["clips"] = {name: value for name in CLIPS if (value := getattr(clips, name, None)) is not None}
    threads = settings.pop("threads")
    settings["precision"] = settings.pop("dtype", "fp32")
    if ":" in settings["model"] and (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)  # as `python` does, so that a module in the working directory can be imported
    spec = ModelSpec(**settings)
    if not cascades and spec.recipe is not None:
        from ..cascade_recipe import is_cascade

        if is_cascade(spec.recipe):
            raise InputError(
                "This command takes one recipe, not a cascade: give one of the cascade's recipes. eval, bench, run and "
                "export take cascades."
            )
    spec.check()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return spec


def is_cascade_recipe(network: NetworkOptions) -> bool:
    """Whether `--recipe` is a cascade of several recipes."""
    from ..cascade_recipe import CascadeRecipe, read_recipe

    recipe = getattr(network, "recipe", None)
    return recipe is not None and isinstance(read_recipe(recipe), CascadeRecipe)


class Media:
    """The pictures or videos at `data`. They are opened at once, so that errors are reported early; `prepared` then
    applies the model's preprocessing. Settings are those of `media_set`."""

    def __init__(self, data: str, **settings: Any) -> None:
        from ..data import media_set

        self.data, self.settings = data, settings
        self.media: Any = media_set(data, **settings)

    def prepared(self, preprocessing: Preprocessing | VideoPreprocessing) -> Any:
        """The dataset with the model's preprocessing. Prints the number and kind of its files."""
        from ..data import VideoPreprocessing, VideoSet, media_set
        from ..show.files import tell_files

        videos = isinstance(preprocessing, VideoPreprocessing)
        if isinstance(self.media, VideoSet) is not videos:
            self.media = media_set(self.data, preprocessing, **self.settings)
        tell_files(self.media)
        return self.media.prepared(preprocessing)


def record_of(spec: ModelSpec, opened: OpenedModel) -> dict[str, Any]:
    """The model, its recipe and the machine, as plain JSON."""
    from ..show.record import describe

    return {
        "command": shlex.join(["tokensieve", *sys.argv[1:]]),
        "model": spec.model,
        "weights": spec.weights,
        "proposal_weights": spec.proposal_weights,
        "pretrained": spec.pretrained,
        "dtype": spec.precision,
        "recipe_is_default": spec.recipe_is_default,
        "recipe_json": json.loads(opened.fast.recipe.to_json()),
        **describe(opened.fast, opened.dense, opened.input_spec),
    }
