"""Maps the names of weights in public checkpoints of X3D and SlowOnly to the names in this package.

PyTorchVideo                                     mmaction2                      here
X3D
blocks.0.conv.conv_t (the spatial one)           conv1_s.conv                   stem.spatial
blocks.0.conv.conv_xy (the temporal one)         conv1_t.conv                   stem.temporal
blocks.0.norm                                    conv1_t.bn                     stem.norm
blocks.5.pool.pre_conv, pre_norm                 conv5.conv, conv5.bn           conv5, norm5
blocks.5.pool.post_conv (2048, 432, 1, 1, 1)     cls_head.fc1 (2048, 432)       head.fc1
blocks.5.proj                                    cls_head.fc2                   head.fc2
SlowOnly
blocks.0.conv, blocks.0.norm                     conv1.conv, conv1.bn           stem.conv, stem.norm
blocks.5.proj                                    cls_head.fc_cls                head.fc
in both, stage S from 0 and block B:
blocks.{S+1}.res_blocks.B.branch2.conv_a         layer{S+1}.B.conv1.conv        stages.S.B.conv1
    ... norm_a                                       conv1.bn                       norm1
    ... conv_b                                       conv2.conv                     conv2
    ... norm_b (SlowOnly), norm_b.0 (X3D)            conv2.bn                       norm2
    ... norm_b.1.block.0, norm_b.1.block.2           se_module.fc1, .fc2            se.fc1, se.fc2
    ... conv_c, norm_c                               conv3.conv, conv3.bn           conv3, norm3
blocks.{S+1}.res_blocks.B.branch1_conv           layer{S+1}.B.downsample.conv   stages.S.B.shortcut
blocks.{S+1}.res_blocks.B.branch1_norm           layer{S+1}.B.downsample.bn     stages.S.B.shortcut_norm

mmaction2's names have the prefix "backbone." in checkpoints with a classifier, and no prefix in those of a backbone
alone. The prefixes "module." and "model." are ignored if all names have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

PYTORCHVIDEO, MMACTION2, OWN = "PyTorchVideo", "mmaction2", "tokensieve"
WRAPPERS = ("module.", "model.")
"""Prefixes that training scripts add to all names."""

_STEM = {
    PYTORCHVIDEO: {
        "stem.spatial": "blocks.0.conv.conv_t",
        "stem.temporal": "blocks.0.conv.conv_xy",
        "stem.conv": "blocks.0.conv",
        "stem.norm": "blocks.0.norm",
        "conv5": "blocks.5.pool.pre_conv",
        "norm5": "blocks.5.pool.pre_norm",
        "head.fc1": "blocks.5.pool.post_conv",
        "head.fc2": "blocks.5.proj",
        "head.fc": "blocks.5.proj",
    },
    MMACTION2: {
        "stem.spatial": "conv1_s.conv",
        "stem.temporal": "conv1_t.conv",
        "stem.conv": "conv1.conv",
        "conv5": "conv5.conv",
        "norm5": "conv5.bn",
        "head.fc1": "cls_head.fc1",
        "head.fc2": "cls_head.fc2",
        "head.fc": "cls_head.fc_cls",
    },
}
_BLOCK = {
    PYTORCHVIDEO: {
        "conv1": "branch2.conv_a",
        "norm1": "branch2.norm_a",
        "conv2": "branch2.conv_b",
        "se.fc1": "branch2.norm_b.1.block.0",
        "se.fc2": "branch2.norm_b.1.block.2",
        "conv3": "branch2.conv_c",
        "norm3": "branch2.norm_c",
        "shortcut": "branch1_conv",
        "shortcut_norm": "branch1_norm",
    },
    MMACTION2: {
        "conv1": "conv1.conv",
        "norm1": "conv1.bn",
        "conv2": "conv2.conv",
        "norm2": "conv2.bn",
        "se.fc1": "se_module.fc1",
        "se.fc2": "se_module.fc2",
        "conv3": "conv3.conv",
        "norm3": "conv3.bn",
        "shortcut": "downsample.conv",
        "shortcut_norm": "downsample.bn",
    },
}
_STAGE = {PYTORCHVIDEO: "blocks.{}.res_blocks.{}", MMACTION2: "layer{}.{}"}
_FIRST_SHORTCUT_NORM = "layer1.0.downsample.bn.weight"


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without "module." and "model.", if all names have them, and without mmaction2's "backbone."."""
    names = {name: name for name in state}
    for prefix in WRAPPERS:
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): key for name, key in names.items()}
    return {name.removeprefix("backbone."): state[key] for name, key in names.items()}


def layout_of(names: Iterable[str]) -> str | None:
    """The layout of unwrapped names: PYTORCHVIDEO, MMACTION2 or OWN; None if unknown."""
    tops = {name.split(".")[0] for name in names}
    if "blocks" in tops:
        return PYTORCHVIDEO
    if tops & {"conv1_s", "conv1", "layer1"}:
        return MMACTION2
    return OWN if tops & {"stem", "stages", "features"} else None


def is_head(name: str) -> bool:
    """Whether an unwrapped name, of any layout, belongs to the classifier."""
    return name.startswith(("blocks.5.pool.post_conv.", "blocks.5.proj.", "cls_head.", "head."))


def has_first_shortcut_norm(names: Iterable[str]) -> bool:
    """Whether X3D's first shortcut has a BatchNorm, as in mmaction2's checkpoints."""
    return not {_FIRST_SHORTCUT_NORM, "stages.0.0.shortcut_norm.weight"}.isdisjoint(
        name.removeprefix("features.") for name in names
    )


def name_in(layout: str, key: str, *, x3d: bool) -> str:
    """The name in `layout` of a weight of this package, such as "stages.0.1.conv2.weight" or "head.fc.bias"."""
    if layout == OWN:
        return key
    module, _, parameter = key.rpartition(".")
    if module == "stem.norm" and layout == MMACTION2:
        return f"{'conv1_t' if x3d else 'conv1'}.bn.{parameter}"
    block = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", module)
    if block is None:
        return f"{_STEM[layout][module]}.{parameter}"
    stage, index, part = block.groups()
    if part == "norm2" and layout == PYTORCHVIDEO:
        layer = "branch2.norm_b.0" if x3d else "branch2.norm_b"
    else:
        layer = _BLOCK[layout][part]
    return f"{_STAGE[layout].format(int(stage) + 1, index)}.{layer}.{parameter}"
