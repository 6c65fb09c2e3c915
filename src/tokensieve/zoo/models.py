"""Creates a model in eval mode from a name of this package, timm, torchvision or transformers, and a weights file."""

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
"""Preprocessing of the clips that torchvision's Swin3D was trained on."""
TORCHVISION = "torchvision/"
"""Prefix that selects torchvision's model where timm has a model of the same name."""


@contextmanager
def without_memory() -> Iterator[None]:
    """A context in which models are created on the meta device, with shapes but no data, so that they need no memory.

    `torch.linspace` still computes on the CPU, since constructors read its values, as timm's do for stochastic depth.
    """
    with torch.device("meta"), _NumbersOnCPU():
        yield


class _NumbersOnCPU(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            kwargs = {"device": "cpu", **(kwargs or {})}
        return func(*args, **(kwargs or {}))


class Loaded(NamedTuple):
    """A model in eval mode, with the mean and standard deviation per channel of its input, for values in [0, 1]."""

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
    """Create a model in eval mode.

    Args:
        name: a bundled model, else a name of timm, else of torchvision. "torchvision/convnext_tiny" is torchvision's
            model where timm has the same name. For video also the names in `VIDEO_MODELS`, and "transformers/NAME" for
            a checkpoint on the Hub or a folder that holds one.
        weights: a local file (safetensors, or a state dict that `torch.load(weights_only=True)` reads), loaded strictly
            in float32. Nothing is downloaded then. None: the bundled weights, or the library's pretrained ones.
        sha256: the expected SHA-256 of `weights`; None is not checked.
        pretrained: False, without `weights`: random weights.
        args: keyword arguments of the constructor, for example
            `{"pad_type": "same", "pretrained_cfg_overlay": {"mean": (0.5, 0.5, 0.5)}}`.

    Raises:
        RecipeError: an unknown name, or unusable `args`.
        InputError: weights cannot be loaded.
    """
    _refuse_sources(name, args or {})
    if weights is None and pretrained and name in BUNDLED:
        weights = bundled_weights(name)
    if weights is None and pretrained and name in BUILDERS:
        arguments = "proposal --model HOST --data FOLDER" if name == "nano_proposal" else name
        raise InputError(
            f"{name} has no weights in this version: tokensieve train {arguments} makes them. Give them as "
            "weights=FILE, or pass pretrained=False for random weights."
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
        # The libraries pass on any exception of their downloaders, so there is no single type to catch.
        if download:
            raise InputError(
                f"The pretrained weights of {name} could not be loaded ({first_line(error)}): give weights=FILE."
            ) from error
        raise RecipeError(f"{name} cannot be created: {first_line(error)}.") from error
    if state is not None and not is_video_model(name):
        load_strictly(model, state, f"{Path(fspath(weights)).name} into {name}" if weights else name)
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    return Loaded(model.eval(), tuple(map(float, mean)), tuple(map(float, std)))


def _refuse_sources(name: str, args: Mapping[str, Any]) -> None:
    """Raise RecipeError for arguments by which a library would load weights itself, unchecked and from any source."""
    sources = ("file", "url", "hf_hub_id", "hf_hub_filename", "state_dict", "custom_load", "source")
    remote = ["checkpoint_path"] if args.get("checkpoint_path") else []
    for setting in ("pretrained_cfg", "pretrained_cfg_overlay"):
        if isinstance(config := args.get(setting), Mapping):
            remote += [f"{setting}[{key!r}]" for key in sources if config.get(key)]
    if remote:
        raise RecipeError(
            f"{name} cannot be created with {remote[0]}, which would load weights unchecked: give their file as "
            "`weights`."
        )


def read_weights(path: str | PathLike[str], sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict from a local file; floating-point tensors are converted to float32, except float64.

    Raises:
        InputError: the file is missing, has another SHA-256, cannot be read, or holds no state dict.
    """
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
    except Exception as error:  # for a file of another kind torch's unpickler can raise any exception
        raise InputError(f"{path} cannot be read as weights: {first_line(error)}.") from error
    if isinstance(state, Mapping):
        # Training scripts store the weights together with the optimiser's state.
        state = next(
            (state[key] for key in ("state_dict", "model", "model_state") if isinstance(state.get(key), Mapping)), state
        )
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict: expected a mapping of names to tensors.")
    converted = {key: value.is_floating_point() and value.dtype != torch.float64 for key, value in state.items()}
    return {key: value.float() if converted[key] else value for key, value in state.items()}


def load_strictly(
    model: nn.Module, state: Mapping[str, torch.Tensor], description: str, file_keys: Mapping[str, str] | None = None
) -> None:
    """Load a state dict into a model.

    Args:
        model: the model.
        state: weights under the model's keys.
        description: for errors, such as "FILE into NAME".
        file_keys: model key -> key in the file, for errors, where the two differ.

    Raises:
        InputError: a key is missing, unexpected, or of another shape; it names the first one.
    """
    expected, file_keys = model.state_dict(), file_keys or {}
    # Old checkpoints lack BatchNorm's step counter, which is not used in evaluation.
    # Older transformers has a bias for keys, which does not affect attention and starts at zero.
    optional = ("num_batches_tracked", "attention.attention.key.bias")
    missing = [key for key in expected if key not in state and not key.endswith(optional)]
    unexpected = [key for key in state if key not in expected]
    wrong = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing:
        name = file_keys.get(missing[0], missing[0])
        raise InputError(f"Cannot load {description}: the file has no {name!r} ({len(missing)} such keys).")
    if unexpected:
        raise InputError(
            f"Cannot load {description}: the model has no {unexpected[0]!r} ({len(unexpected)} such keys)."
        )
    if wrong:
        key = wrong[0]
        raise InputError(
            f"Cannot load {description}: {file_keys.get(key, key)!r} has shape {tuple(state[key].shape)} in the file "
            f"and {tuple(expected[key].shape)} in the model."
        )
    model.load_state_dict(state, strict=False)


def file_sha256(path: str | PathLike[str]) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits. Raises `InputError` if the file is missing or cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"There is no weights file {path}.") from None
    except OSError as error:
        raise InputError(f"The weights file {path} cannot be read: {error.strerror}.") from error


def check_sha256(path: str | PathLike[str], sha256: str) -> None:
    """Raise `InputError` if a file is missing or has another SHA-256."""
    if (digest := file_sha256(path)) != sha256.lower():
        raise InputError(f"{path} is not the file that was expected: its SHA-256 is {digest}, expected {sha256}.")


def _torchvision_weights(name: str, download: bool) -> dict[str, Any]:
    """Arguments for the weights. Without download, segmentation models need `weights_backbone=None` too."""
    if download:
        return {"weights": "DEFAULT"}
    builder = torchvision.models.get_model_builder(name)
    return dict.fromkeys({"weights", "weights_backbone"} & set(inspect.signature(builder).parameters))


def _names() -> list[str]:
    return [*BUILDERS, *VIDEO_MODELS, *timm.list_models(), *torchvision.models.list_models()]
