"""Builds the model and the preprocessing that a `ModelSpec` describes, from a name, a file or a callable."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from . import zoo
from ._spec_settings import is_import_path, size_text
from .data import Preprocessing, VideoPreprocessing
from .data.inputs import InputSpec
from .errors import InputError, SettingError, SieveError, cause, nearest
from .segmentation.plan import open_trained, trained_files
from .zoo.models import check_sha256, load_strictly, read_weights


class Loaded(NamedTuple):
    """A model in evaluation mode, with the mean and standard deviation of its input, None if they are not known."""

    model: Any
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    """Height and width of its images; None where they follow from the model itself."""


def load(
    name: str, args: Mapping[str, Any], weights: str | None, sha256: Mapping[str, str], *, pretrained: bool
) -> Loaded:
    """Load the model with this name, this trained segmenter's file or this import path; `weights` is a file to load
    into it."""
    recorded = None if weights is None else sha256.get(weights)
    if (files := trained_files(name)) is not None:
        return _segmenter(name, files, args, weights, sha256, pretrained=pretrained)
    if not is_import_path(name):
        return Loaded(*zoo.create(name, weights=weights, sha256=recorded, pretrained=pretrained, args=args or None))
    state_dict = None if weights is None else read_weights(weights, recorded)
    model = _called(name, args)
    if state_dict is not None:
        load_strictly(model, state_dict, f"{weights} into {name}")
    return Loaded(model.eval())


def _segmenter(
    name: str,
    files: tuple[Path, Path],
    args: Mapping[str, Any],
    weights: str | None,
    sha256: Mapping[str, str],
    *,
    pretrained: bool,
) -> Loaded:
    """Open the bundled segmenter, or one trained by `tokensieve train`."""
    if args:
        raise SettingError("args", f"cannot be given: {files[1].name} holds the arguments of {name}.")
    for file in files:
        if (recorded := sha256.get(str(file))) is not None:
            check_sha256(file, recorded)
    segmenter, plan = open_trained(name, pretrained=pretrained and weights is None)
    if weights is not None:
        load_strictly(segmenter, read_weights(weights, sha256.get(weights)), f"{weights} into {name}")
    return Loaded(segmenter, plan.mean, plan.std, plan.crop)


def _called(name: str, args: Mapping[str, Any]) -> nn.Module:
    """Call the function at an import path, which must return a model."""
    function = _imported(name)
    try:
        inspect.signature(function).bind(**args)
    except TypeError as error:
        raise SettingError("args", f"do not fit the parameters of {name}: {error}.") from None
    except ValueError:  # functions written in C have no signature
        pass
    try:
        model = function(**args)
    except SieveError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{name} failed: {type(error).__name__}: {cause(error)}.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} must return a model (torch.nn.Module), not {type(model).__name__}.")
    return model


def _imported(name: str) -> Any:
    """The callable at an import path. Raises `SettingError`."""
    module, _, function = name.partition(":")
    try:
        builder = pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"{module} cannot be imported: {cause(error)}.") from error
        raise SettingError(
            "model", f"{name}: there is no module {error.name}: install it, or add its folder to PYTHONPATH."
        ) from None
    except AttributeError:
        names = [attribute for attribute in vars(pkgutil.resolve_name(module)) if not attribute.startswith("_")]
        raise SettingError("model", f"{name}: {module} has no {function}{nearest(function, names)}.") from None
    except Exception as error:  # whatever runs when the user's module is loaded
        raise InputError(f"{module} cannot be imported: {type(error).__name__}: {cause(error)}.") from error
    if not callable(builder):
        raise SettingError("model", f"{name} is no function that returns a model, but {type(builder).__name__}.")
    return builder


def set_size(model: Any, size: tuple[int, int] | None, name: str) -> None:
    """Set the size of the images that the model reads, if the model needs that."""
    if size is None:
        return
    if hasattr(model, "set_input_size"):
        patch = model.patch_embed.patch_size
        if size[0] % patch[0] or size[1] % patch[1]:
            raise SettingError("size", f"{size_text(size)} does not divide into {name}'s patches of {patch[0]} pixels.")
        model.set_input_size(img_size=size)
    maps = getattr(model, "feature_info", None)
    if maps and min(size) < (least := maps[-1]["reduction"]):
        raise SettingError("size", f"{size_text(size)} is too small for {name}: give at least {least} pixels.")


def preprocessing(
    loaded: Loaded,
    setting: str | Preprocessing | VideoPreprocessing,
    size: tuple[int, int] | None,
    clips: Mapping[str, Any],
    name: str,
) -> Preprocessing | VideoPreprocessing:
    """The preprocessing of the model's images or videos."""
    videos = "T" in InputSpec.of(loaded.model).layout
    if not isinstance(setting, str):
        if videos is not isinstance(setting, VideoPreprocessing):
            media, needed = ("videos", "a VideoPreprocessing") if videos else ("pictures", "a Preprocessing")
            raise SettingError("preprocessing", f"does not fit {name}, which reads {media}: give {needed}.")
        return setting
    if clips and not videos:
        raise SettingError(f"clips.{next(iter(clips))}", f"is for models that read videos, and {name} reads pictures.")
    no_normalisation = loaded.mean is None and not getattr(loaded.model, "pretrained_cfg", None)
    if videos:
        if setting != "timm":
            raise SettingError("preprocessing", f"{setting!r} is for pictures, and {name} reads videos: leave it out.")
        if no_normalisation:
            raise SettingError(
                "preprocessing",
                f"of {name} is not known, since {type(loaded.model).__name__} states no normalisation: give "
                "preprocessing=VideoPreprocessing(input_size, mean, std), or set it on the model, "
                'model.pretrained_cfg = {"mean": ..., "std": ...}.',
            )
        sizes = {} if size is None else {"input_size": size}
        return VideoPreprocessing.of(loaded.model, loaded.mean, loaded.std, **sizes, **clips)
    if no_normalisation:
        raise SettingError(
            "preprocessing",
            f"of {name} is not known, since {type(loaded.model).__name__} has no pretrained_cfg: give "
            "preprocessing=Preprocessing(input_size, mean, std), or set it on the model, "
            'model.pretrained_cfg = {"mean": ..., "std": ...}.',
        )
    return Preprocessing.named(setting, loaded.model, mean=loaded.mean, std=loaded.std, size=size or loaded.size)
