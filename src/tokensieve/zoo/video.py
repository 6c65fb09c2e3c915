"""Video networks by name, used as proposals: X3D, SlowOnly and the bundled one. Weights may use the names of
PyTorchVideo or mmaction2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import InputError, RecipeError, nearest
from .models import IMAGENET_MEAN, IMAGENET_STD, load_strictly, read_weights
from .nano import BUNDLED, bundled_weights
from .nano_video import CLASSES, FRAMES, MEAN, SIZE, STD, NanoVideoFeatures, NanoVideoHead, VideoClassifier
from .slowonly import SlowOnlyFeatures, SlowOnlyHead
from .video_keys import MMACTION2, OWN, has_first_shortcut_norm, is_head, layout_of, name_in, unwrapped
from .x3d import X3DFeatures, X3DHead

KINETICS_MEAN, KINETICS_STD = (0.45,) * 3, (0.225,) * 3
"""Mean and standard deviation of clips for X3D and PyTorchVideo's networks: 114.75 and 57.38 of 255."""
Weights = Mapping[str, Tensor] | str | PathLike[str]


class _Network(NamedTuple):
    family: str
    features: Callable[[bool], nn.Module]
    """Creates the feature extractor; the argument says whether X3D's first shortcut has a BatchNorm."""
    head: Callable[[int], nn.Module]
    clip_size: tuple[int, int, int]
    mean: tuple[float, ...] = KINETICS_MEAN
    std: tuple[float, ...] = KINETICS_STD
    classes: int = 400


def _x3d(depth_factor: float, clip_size: tuple[int, int, int]) -> _Network:
    return _Network("x3d", lambda norm: X3DFeatures(depth_factor, first_shortcut_norm=norm), X3DHead, clip_size)


def _slowonly(*depths: int) -> _Network:
    return _Network("slowonly", lambda _: SlowOnlyFeatures(depths), SlowOnlyHead, (8, 224, 224))


VIDEO_PROPOSALS: dict[str, _Network] = {
    "x3d_s": _x3d(2.2, (8, 160, 160)),
    "x3d_m": _x3d(2.2, (8, 224, 224)),
    "x3d_l": _x3d(5.0, (16, 312, 312)),
    "slowonly_r50": _slowonly(3, 4, 6, 3),
    "slowonly_r101": _slowonly(3, 4, 23, 3),
    "nano_video_proposal": _Network(
        "nano", lambda _: NanoVideoFeatures(), NanoVideoHead, (FRAMES, SIZE, SIZE), MEAN, STD, CLASSES
    ),
}
"""Name -> network. X3D-S and X3D-M are the same network for clips of two sizes. Only the last one is bundled with
weights."""


def video_proposal(name: str, state_dict: Weights | None = None, *, pretrained: bool = True) -> nn.Module:
    """A video network in eval mode that maps clips (B, 3, T, H, W) to features (B, K, t, h, w).

    K is 432 for X3D, 2048 for SlowOnly and 48 for the bundled network. Time is not strided (t = T), except in the
    bundled network (t = T / 2). The module has the attributes `mean` and `std`, per channel for values in [0, 1], with
    which the weights were trained, and `clip_size`: frames, height and width of the clips that PaPr (section 4.3) feeds
    to it.

    Args:
        name: "x3d_s", "x3d_m", "x3d_l", "slowonly_r50", "slowonly_r101" or the bundled "nano_video_proposal".
        state_dict: a state dict with the names of PyTorchVideo, mmaction2 (see `video_keys.py`) or this package, or the
            path of a file with one. Weights of the classifier are ignored. None: the bundled network has its own
            weights; the others get random weights, enough to measure cost, and nothing is downloaded. X3D is then
            mmaction2's, with a BatchNorm in its first shortcut, as counted in PaPr's tables.
        pretrained: False: the bundled network gets random weights too.

    Raises:
        RecipeError: an unknown name.
        InputError: weights that are missing, unexpected or of another shape; the message has the name in the file.
    """
    network = _network(name)
    state_dict = _bundled_file(name, pretrained) if state_dict is None else state_dict
    if state_dict is None:
        features = network.features(True)
        _describe(features, network, OWN)
        return features
    state, layout = _unwrapped(state_dict, name, network)
    state = {key: value for key, value in state.items() if not is_head(key)}
    features = network.features(has_first_shortcut_norm(state))
    _load(features, state, layout, network, _description(state_dict, name))
    _describe(features, network, layout)
    return features


def video_classifier(
    name: str, state_dict: Weights | None = None, num_classes: int | None = None, *, pretrained: bool = True
) -> VideoClassifier:
    """The whole network in eval mode, `features` and `head`: clips (B, 3, T, H, W) -> logits (B, classes).

    Arguments and errors are those of `video_proposal`, except that the state dict must have the classifier's weights,
    and that X3D without weights is PyTorchVideo's, of 3,794,274 parameters. `num_classes` must be that of the weights;
    None takes it from them. Without weights the default is 400, or that of the bundled network.
    """
    network = _network(name)
    state_dict = _bundled_file(name, pretrained) if state_dict is None else state_dict
    if state_dict is None:
        model = VideoClassifier(network.features(False), network.head(num_classes or network.classes))
        _describe(model, network, OWN)
        return model
    state, layout = _unwrapped(state_dict, name, network)
    bias_key = name_in(
        layout, "head.fc2.bias" if network.family == "x3d" else "head.fc.bias", x3d=network.family == "x3d"
    )
    stored_classes = len(state[bias_key]) if bias_key in state else network.classes
    if num_classes not in (None, stored_classes):
        raise InputError(f"The weights of {name} are for {stored_classes} classes, not {num_classes}.")
    model = VideoClassifier(network.features(has_first_shortcut_norm(state)), network.head(stored_classes))
    _load(model, state, layout, network, _description(state_dict, name))
    _describe(model, network, layout)
    return model


def _network(name: str) -> _Network:
    if name not in VIDEO_PROPOSALS:
        raise RecipeError(
            f"There is no video network {name!r}{nearest(name, VIDEO_PROPOSALS)}: choose "
            f"{', '.join(VIDEO_PROPOSALS)}, or pass a module."
        )
    return VIDEO_PROPOSALS[name]


def _bundled_file(name: str, pretrained: bool) -> Path | None:
    """The weights file of a bundled network, or None."""
    return bundled_weights(name) if pretrained and name in BUNDLED else None


def _description(weights: Weights, name: str) -> str:
    return f"weights into {name}" if isinstance(weights, Mapping) else f"{Path(fspath(weights)).name} into {name}"


def _unwrapped(weights: Weights, name: str, network: _Network) -> tuple[dict[str, Tensor], str]:
    """The state dict without wrapper prefixes, and its layout: PyTorchVideo, mmaction2 or this package."""
    state = unwrapped(weights if isinstance(weights, Mapping) else read_weights(weights))
    layout, first_keys = layout_of(state), ", ".join(list(state)[:3]) or "nothing"
    if network.family == "nano" and layout != OWN:
        raise InputError(
            f"Cannot load {_description(weights, name)}: the names do not begin with features, but {first_keys}."
        )
    if layout is None:
        raise InputError(
            f"Cannot load {_description(weights, name)}: the names are neither PyTorchVideo's (blocks.0...) nor "
            f"mmaction2's (backbone.conv1..., backbone.layer1...), but {first_keys}."
        )
    return state, layout


def _load(model: nn.Module, state: Mapping[str, Tensor], layout: str, network: _Network, description: str) -> None:
    """Load a state dict of this layout, strictly."""
    file_keys = {
        key: name_in(layout, key.removeprefix("features."), x3d=network.family == "x3d") for key in model.state_dict()
    }
    if layout == OWN:  # the keys of a classifier begin with "features.", those of its features alone do not
        file_keys = {key: key if key in state else f"features.{key}" for key in file_keys}
        file_keys = {key: file_key if file_key in state else key for key, file_key in file_keys.items()}
    model_keys = {file_key: key for key, file_key in file_keys.items()}
    renamed = {model_keys.get(file_key, file_key): value for file_key, value in state.items()}
    # In PyTorchVideo's X3D the layer after global pooling is a 1 x 1 x 1 convolution; here it is linear.
    hidden = renamed.get("head.fc1.weight")
    if hidden is not None and hidden.shape[2:] == (1, 1, 1):
        renamed["head.fc1.weight"] = hidden.flatten(1)
    load_strictly(model, renamed, description, file_keys)


def _describe(model: nn.Module, network: _Network, layout: str) -> None:
    """Set `mean`, `std` and `clip_size` on the model, and switch it to eval mode."""
    imagenet = network.family == "slowonly" and layout == MMACTION2
    attributes = {
        "mean": IMAGENET_MEAN if imagenet else network.mean,
        "std": IMAGENET_STD if imagenet else network.std,
        "clip_size": network.clip_size,
    }
    for key, value in attributes.items():
        setattr(model, key, value)
    model.eval()
