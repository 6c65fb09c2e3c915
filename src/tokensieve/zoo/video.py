"""The proposals that read video: X3D and SlowOnly by name, with weights of either public layout."""

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
    """Given whether the first shortcut of X3D has a BatchNorm."""
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
"""By name; X3D-S and X3D-M are one network, which reads clips of two sizes. The last is bundled with its weights."""


def video_proposal(name: str, state_dict: Weights | None = None, *, pretrained: bool = True) -> nn.Module:
    """A video network in eval mode that maps clips (B, 3, T, H, W) to features (B, K, t, h, w).

    Beside the weights it carries `mean` and `std`, per channel of values in [0, 1], which the weights were trained
    with, and `clip_size`, the frames, height and width of the clips that PaPr (section 4.3) gives it. Time is not
    strided, t = T, but in the bundled network, where t is T / 2. K is 432 of X3D, 2048 of SlowOnly and 48 of that.

    Args:
        name: "x3d_s", "x3d_m", "x3d_l", "slowonly_r50", "slowonly_r101" or the bundled "nano_video_proposal".
        state_dict: weights by name as PyTorchVideo or mmaction2 publishes them (`video_keys.py` has both layouts), or
            of such a module of ours; or a file of them. The classifier's may be there and are left out. Without it the
            weights are random, which does for counting what it costs: nothing is downloaded. X3D then is mmaction2's,
            with the BatchNorm in its first shortcut that PaPr's tables count. The bundled network has its own.
        pretrained: False leaves the bundled network's weights random too.

    Raises:
        RecipeError: an unknown name.
        InputError: weights that are missing, superfluous or of another shape, by the name that the file gives them.
    """
    network = _network(name)
    state_dict = _own_weights(name, pretrained) if state_dict is None else state_dict
    if state_dict is None:
        features = network.features(True)
        _describe(features, network, OWN)
        return features
    state, layout = _unwrapped(state_dict, name, network)
    state = {key: value for key, value in state.items() if not is_head(key)}
    features = network.features(has_first_shortcut_norm(state))
    _load(features, state, layout, network, _what(state_dict, name))
    _describe(features, network, layout)
    return features


def video_classifier(
    name: str, state_dict: Weights | None = None, num_classes: int | None = None, *, pretrained: bool = True
) -> VideoClassifier:
    """The whole network in eval mode, clips (B, 3, T, H, W) -> logits (B, classes): `features` and `head`.

    Arguments and errors as in `video_proposal`, but that the classifier's weights must be there, and that X3D without
    any weights is PyTorchVideo's, of 3,794,274 parameters. `num_classes` is as many as the weights have, or 400.
    """
    network = _network(name)
    state_dict = _own_weights(name, pretrained) if state_dict is None else state_dict
    if state_dict is None:
        model = VideoClassifier(network.features(False), network.head(num_classes or network.classes))
        _describe(model, network, OWN)
        return model
    state, layout = _unwrapped(state_dict, name, network)
    last = name_in(layout, "head.fc2.bias" if network.family == "x3d" else "head.fc.bias", x3d=network.family == "x3d")
    stored = len(state[last]) if last in state else network.classes
    if num_classes not in (None, stored):
        raise InputError(f"The weights of {name} are for {stored} classes, not {num_classes}.")
    model = VideoClassifier(network.features(has_first_shortcut_norm(state)), network.head(stored))
    _load(model, state, layout, network, _what(state_dict, name))
    _describe(model, network, layout)
    return model


def _network(name: str) -> _Network:
    if name not in VIDEO_PROPOSALS:
        raise RecipeError(
            f"No video network {name!r} is known{nearest(name, VIDEO_PROPOSALS)}: choose "
            f"{', '.join(VIDEO_PROPOSALS)}, or pass a module."
        )
    return VIDEO_PROPOSALS[name]


def _own_weights(name: str, pretrained: bool) -> Path | None:
    """The file of a bundled network's weights."""
    return bundled_weights(name) if pretrained and name in BUNDLED else None


def _what(weights: Weights, name: str) -> str:
    return f"weights into {name}" if isinstance(weights, Mapping) else f"{Path(fspath(weights)).name} into {name}"


def _unwrapped(weights: Weights, name: str, network: _Network) -> tuple[dict[str, Tensor], str]:
    """The weights without what wraps their names, and of which layout they are."""
    state = unwrapped(weights if isinstance(weights, Mapping) else read_weights(weights))
    layout, first_keys = layout_of(state), ", ".join(list(state)[:3]) or "nothing"
    if network.family == "nano" and layout != OWN:
        raise InputError(f"Cannot load {_what(weights, name)}: the names do not begin with features, but {first_keys}.")
    if layout is None:
        raise InputError(
            f"Cannot load {_what(weights, name)}: the names are neither PyTorchVideo's (blocks.0...) nor mmaction2's "
            f"(backbone.conv1..., backbone.layer1...), but {first_keys}."
        )
    return state, layout


def _load(model: nn.Module, state: Mapping[str, Tensor], layout: str, network: _Network, description: str) -> None:
    """Load weights of that layout, strictly."""
    called = {
        key: name_in(layout, key.removeprefix("features."), x3d=network.family == "x3d") for key in model.state_dict()
    }
    if layout == OWN:  # of a classifier, into one or into its features alone; or of features alone
        called = {key: key if key in state else f"features.{key}" for key in called}
        called = {key: published if published in state else key for key, published in called.items()}
    own_names = {published: key for key, published in called.items()}
    renamed = {own_names.get(published, published): value for published, value in state.items()}
    # A layer behind global pooling is a convolution of one cell in PyTorchVideo's X3D.
    hidden = renamed.get("head.fc1.weight")
    if hidden is not None and hidden.shape[2:] == (1, 1, 1):
        renamed["head.fc1.weight"] = hidden.flatten(1)
    load_strictly(model, renamed, description, called)


def _describe(model: nn.Module, network: _Network, layout: str) -> None:
    """Give it the statistics and the size of its clips as attributes."""
    imagenet = network.family == "slowonly" and layout == MMACTION2
    stated = {
        "mean": IMAGENET_MEAN if imagenet else network.mean,
        "std": IMAGENET_STD if imagenet else network.std,
        "clip_size": network.clip_size,
    }
    for key, value in stated.items():
        setattr(model, key, value)
    model.eval()
