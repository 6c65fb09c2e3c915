"""From options to what commands work with: the model that they describe, the pictures, and the record of a run."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from ..model_spec import ModelSpec, OpenedModel
from .options import NetworkOptions, PlaceOptions

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from ..data import ImageSet, StreamSet

OPTIONS = {"precision": "--dtype"}
"""Settings of a `ModelSpec` -> the options that set them, where they are not called alike."""


def option_for(setting: str) -> str:
    """The option that sets a setting of a `ModelSpec`."""
    return OPTIONS.get(setting, "--" + setting.replace("_", "-"))


def read_spec(network: NetworkOptions, place: PlaceOptions, **others: Any) -> ModelSpec:
    """What the options describe, checked before anything slow begins. Sets torch's CPU threads where they are given."""
    settings = {**vars(network), **vars(place), **others}
    threads = settings.pop("threads")
    settings["precision"] = settings.pop("dtype", "fp32")
    if ":" in settings["model"] and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as python itself has it: the user's own module lies here, not beside this program
    spec = ModelSpec(**settings)
    spec.check()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return spec


def open_pictures(data: str, **settings: Any) -> ImageSet | StreamSet:
    """The pictures at `data`, before the model is there that says how they are prepared: `pictures.prepared(...)`.

    It is said how many there are. Settings are those of `image_set`.
    """
    from ..data import Preprocessing, image_set
    from ..show.files import tell_files

    pictures = image_set(data, Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3), **settings)
    tell_files(pictures)
    return pictures


def record_of(spec: ModelSpec, opened: OpenedModel) -> dict[str, Any]:
    """What ran, and where, as plain JSON."""
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
        **describe(opened.fast, opened.dense, opened.preprocessing.input_size),
    }
