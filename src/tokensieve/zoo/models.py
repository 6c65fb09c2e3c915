"""A name that this package, timm or torchvision knows, and perhaps a file of weights, to a model in eval mode."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError, RecipeError, SieveError, first_line, nearest
from .hf_video import VIDEO_MODELS, build, is_video_model
from .hub import one_sentence_of_retries
from .nano import BUILDERS, BUNDLED, bundled_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SWIN3D = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "frames": 32, "stride": 2}
"""Clips that torchvision's Swin3D was trained on."""
TORCHVISION = "torchvision/"
"""Prefix of a name that timm knows too, where torchvision's model is meant."""


@contextmanager
def without_memory() -> Iterator[None]:
    """Models made in here are on the meta device: they have shapes, no numbers, so that giants cost nothing.

    Their constructors may still read what they computed with `torch.linspace`, as timm does for stochastic depth.
    """
    with torch.device("meta"), _NumbersOnCPU():
        yield


class _NumbersOnCPU(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            kwargs = {"device": "cpu", **(kwargs or {})}
        return func(*args, **(kwargs or {}))


class Loaded(NamedTuple):
    """A model in eval mode, and the mean and standard deviation per channel that its input is normalised with."""

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def create(
    name: str,
    *,
    weights: str | PathLike[str] | None = None,
    sha256: str | None = None,
    pretrained: bool = True,
    args: Mapping[str, Any] | None = None,
) -> Loaded:
    """Create the model called `name`: a bundled one, else from timm if timm knows the name, else from torchvision.

    "torchvision/convnext_tiny" is torchvision's model, of a name that timm knows too. Of transformers the models that
    read videos: names of `VIDEO_MODELS`, and "transformers/NAME" of any checkpoint or folder of one.
    `weights` is a local file (safetensors, or a state dict that `torch.load(weights_only=True)` reads), loaded strictly
    in float32; its SHA-256 is checked where `sha256` gives it. With `weights` nothing is ever downloaded; without, the
    bundled weights, or the library's own pretrained ones, are loaded unless `pretrained` is False. `args` goes to
    the constructor as it is, for example
    `{"pad_type": "same", "pretrained_cfg_overlay": {"mean": (0.5, 0.5, 0.5)}}`.

    Raises `RecipeError` for an unknown name or unusable `args`, `InputError` for weights that cannot be had or used.
    """
    _refuse_sources(name, args or {})
    if weights is None and pretrained and name in BUNDLED:
        weights = bundled_weights(name)
    if weights is None and pretrained and name in BUILDERS:
        how = "proposal --model HOST --data FOLDER" if name == "nano_proposal" else name
        raise InputError(
            f"{name} has no weights in this version: tokensieve train {how} makes them. Give them as weights=FILE, or "
            "pass pretrained=False for random ones."
        )
    state = None if weights is None else read_weights(weights, sha256)
    download = pretrained and state is None
    from_timm, torchvision_name = timm.is_model(name), name.removeprefix(TORCHVISION)
    is_bundled = name in BUILDERS or is_video_model(name)
    if not is_bundled and bundled_weights(name).is_file():
        raise RecipeError(f"{name} is a segmenter: tokensieve.segmentation.open_trained({name!r}) opens it.")
    if not from_timm and not is_bundled and torchvision_name not in torchvision.models.list_models():
        raise RecipeError(f"Neither timm nor torchvision knows a model {name!r}{nearest(name, _names())}.")
    try:
        with one_sentence_of_retries():
            if name in BUILDERS:
                model = BUILDERS[name](**(args or {}))
            elif is_video_model(name):
                model = build(name, args or {}, download=download, state=state)
            elif from_timm:
                model = timm.create_model(name, pretrained=download, **(args or {}))
            else:
                model = torchvision.models.get_model(
                    torchvision_name, **_torchvision_weights(torchvision_name, download), **(args or {})
                )
                if torchvision_name.startswith("swin3d"):
                    model.pretrained_cfg = SWIN3D
    except TypeError as error:
        raise RecipeError(f"{name} cannot be created with the arguments {dict(args or {})}: {error}.") from error
    except SieveError:
        raise
    except Exception as error:
        # The libraries raise whatever their downloader raises: there is no one type to catch.
        if download:
            raise InputError(
                f"The pretrained weights of {name} could not be had ({first_line(error)}): give weights=FILE."
            ) from error
        raise RecipeError(f"{name} cannot be created: {first_line(error)}.") from error
    if state is not None and not is_video_model(name):
        load_strictly(model, state, f"{Path(fspath(weights)).name} into {name}" if weights else name)
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    return Loaded(model.eval(), tuple(map(float, mean)), tuple(map(float, std)))


def _refuse_sources(name: str, args: Mapping[str, Any]) -> None:
    """Refuse arguments that have a library read weights by itself: unchecked, by whatever loader, from anywhere."""
    sources = ("file", "url", "hf_hub_id", "hf_hub_filename", "state_dict", "custom_load", "source")
    remote = ["checkpoint_path"] if args.get("checkpoint_path") else []
    for setting in ("pretrained_cfg", "pretrained_cfg_overlay"):
        if isinstance(config := args.get(setting), Mapping):
            remote += [f"{setting}[{key!r}]" for key in sources if config.get(key)]
    if remote:
        raise RecipeError(
            f"{name} cannot be created with {remote[0]}, which says where weights come from: name their file as its "
            "weights, which is checked."
        )


def read_weights(path: str | PathLike[str], sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict from a local file; floating tensors come as float32 or float64. Raises `InputError`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no weights file {path}.")
    if sha256 is not None:
        check_sha256(path, sha256)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler stumbles over a file of another kind in any way
        raise InputError(f"{path} cannot be read as weights: {first_line(error)}.") from error
    if isinstance(state, Mapping):
        # Training scripts store the weights beside the optimiser's state.
        state = next(
            (state[key] for key in ("state_dict", "model", "model_state") if isinstance(state.get(key), Mapping)), state
        )
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict: expected a mapping of names to tensors.")
    wide = {key: value.is_floating_point() and value.dtype != torch.float64 for key, value in state.items()}
    return {key: value.float() if wide[key] else value for key, value in state.items()}


def load_strictly(
    model: nn.Module, state: Mapping[str, torch.Tensor], description: str, called: Mapping[str, str] | None = None
) -> None:
    """Load `state` into `model`; raises `InputError` that names the first key that does not fit.

    `called` says what the file calls a key, where its layout is another.
    """
    expected, named = model.state_dict(), called or {}
    # Old checkpoints lack BatchNorm's step counter, which evaluation never reads.
    # Older versions of transformers have biases of keys, which change nothing and begin at zero.
    optional = ("num_batches_tracked", "attention.attention.key.bias")
    missing = [key for key in expected if key not in state and not key.endswith(optional)]
    unexpected = [key for key in state if key not in expected]
    wrong = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing:
        name = named.get(missing[0], missing[0])
        raise InputError(f"Cannot load {description}: the file has no {name!r} ({len(missing)} such keys).")
    if unexpected:
        raise InputError(
            f"Cannot load {description}: the model has no {unexpected[0]!r} ({len(unexpected)} such keys)."
        )
    if wrong:
        key, have, want = wrong[0], tuple(state[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise InputError(
            f"Cannot load {description}: {named.get(key, key)!r} has shape {have} in the file and {want} in the model."
        )
    model.load_state_dict(state, strict=False)


def file_sha256(path: str | PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises `InputError` for a file that is not there."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"There is no weights file {path}.") from None
    except OSError as error:
        raise InputError(f"The weights file {path} cannot be read: {error.strerror}.") from error


def check_sha256(path: str | PathLike[str], sha256: str) -> None:
    """Raises `InputError` for a file that is not there or has another SHA-256."""
    if (digest := file_sha256(path)) != sha256.lower():
        raise InputError(f"{path} is not the file that was asked for: its SHA-256 is {digest}, expected {sha256}.")


def _torchvision_weights(name: str, download: bool) -> dict[str, Any]:
    """Segmentation models fetch their backbone's weights unless told otherwise."""
    if download:
        return {"weights": "DEFAULT"}
    builder = torchvision.models.get_model_builder(name)
    return dict.fromkeys({"weights", "weights_backbone"} & set(inspect.signature(builder).parameters))


def _names() -> list[str]:
    return [*BUILDERS, *VIDEO_MODELS, *timm.list_models(), *torchvision.models.list_models()]
