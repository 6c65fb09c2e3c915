"""Loads checkpoints of mmsegmentation's SETR and of the SegViT and DToP releases, by mapping names of weights.

The layouts are documented in docs/segmentation.md.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..errors import InputError, UnsupportedHost
from ..zoo.models import read_weights
from .atm_segmenters import CascadedSegViT, SegViT
from .map_segmenters import Setr, SetrMla
from .segmenter import Segmenter

Kind = TypeVar("Kind", bound=Segmenter)
Rules = list[tuple[str, str]]
"""Pairs of a pattern for tokensieve's name of a weight, and its replacement: the published name."""

BACKBONE: Rules = [
    (r"backbone\.(cls_token|pos_embed)", r"backbone.\1"),
    (r"backbone\.patch_embed\.proj\.", r"backbone.patch_embed.projection."),
    (r"backbone\.blocks\.(\d+)\.norm([12])\.", r"backbone.layers.\1.ln\2."),
    (r"backbone\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"backbone.layers.\1.attn.attn.in_proj_\2"),
    (r"backbone\.blocks\.(\d+)\.attn\.proj\.", r"backbone.layers.\1.attn.attn.out_proj."),
    (r"backbone\.blocks\.(\d+)\.mlp\.fc1\.", r"backbone.layers.\1.ffn.layers.0.0."),
    (r"backbone\.blocks\.(\d+)\.mlp\.fc2\.", r"backbone.layers.\1.ffn.layers.1."),
]
FINAL_NORM: Rules = [(r"backbone\.norm\.", "backbone.ln1.")]

HEAD = r"(decode_head|auxiliary_head\.\d+)"
DECODER: Rules = [
    (r"project\.", "input_proj_{stage}."),
    (r"norm\.", "proj_norm_{stage}."),
    (r"layers\.(\d+)\.self_attention\.", r"decoder_{stage}.layers.\2.self_attn."),
    (r"layers\.(\d+)\.cross_attention\.", r"decoder_{stage}.layers.\2.multihead_attn."),
    (r"layers\.(\d+)\.(norm[123]|linear[12])\.", r"decoder_{stage}.layers.\2.\3."),
]
ATM: Rules = [(HEAD + r"\.queries\.", r"\1.q."), (HEAD + r"\.classifier\.", r"\1.class_embed.")]
SINGLE: Rules = [(rf"{HEAD}\.decoder\.{ours}", rf"\1.{theirs.format(stage=1)}") for ours, theirs in DECODER]
SETR: Rules = [
    (HEAD + r"\.norm\.", r"\1.norm."),
    (HEAD + r"\.convs\.(\d+)\.", r"\1.up_convs.\2.0."),
    (HEAD + r"\.classifier\.", r"\1.conv_seg."),
]
MLA: Rules = [
    (r"neck\.norms\.", "neck.norm."),
    (r"neck\.narrow\.", "neck.mla.channel_proj."),
    (r"neck\.convs\.", "neck.mla.feat_extract."),
    (r"decode_head\.convs\.", "decode_head.up_convs."),
    (r"decode_head\.classifier\.", "decode_head.conv_seg."),
    (r"auxiliary_head\.(\d+)\.", r"auxiliary_head.\1.conv_seg."),
]

UNUSED = r"num_batches_tracked$|\.loss_decode\."
"""Entries that published models do not use at inference: counters of BatchNorm, weights of losses."""
UNUSED_BY_ATM = UNUSED + r"|\.conv_seg\."
UNUSED_BY_V2 = UNUSED_BY_ATM + r"|\.decoder_\d+\.layers\.\d+\.(self_attn|norm1)\."


def load_mmseg(segmenter: Kind, state_dict: Mapping[str, Any] | str | PathLike[str]) -> Kind:
    """Load a checkpoint of mmsegmentation's SETR, or of the SegViT or DToP release, into a segmenter of the same form.

    Either all weights are loaded, or none. The position embedding is resized bicubically if the backbone's grid differs
    from the checkpoint's, which is assumed to be square. Weights that the published heads contain but never use
    (`conv_seg` of ATM heads, `num_batches_tracked`, weights of losses) are skipped, and a warning names them.

    Args:
        segmenter: made by `segvit`, `segvit_v1`, `segvit_v2` or `setr`, on timm's `VisionTransformer`.
        state_dict: a state dict, a checkpoint that contains a `state_dict`, or the file of either, which is read with
            `weights_only`.

    Returns:
        The segmenter.

    Raises:
        InputError: the file cannot be read; a weight is missing, unknown, or has another shape.
        UnsupportedHost: no checkpoints are published for this kind of backbone or head.
    """
    names, unused = _published(segmenter)
    published = _weights(state_dict)
    ignored = sorted(name for name in published if re.search(unused, name))
    published = {_numbered(name): value for name, value in published.items() if name not in set(ignored)}
    state_dict_here = segmenter.state_dict()
    expected = {names[name]: state_dict_here[name] for name in names}
    target = f"this {type(segmenter).__name__}"
    if missing := [name for name in expected if name not in published]:
        raise InputError(f"The checkpoint does not fit {target}: it lacks {_listed(missing)}.")
    if unknown := [name for name in published if name not in expected]:
        raise InputError(f"The checkpoint does not fit {target}, which does not have {_listed(unknown)}.")
    table = "backbone.pos_embed"
    published[table] = _resized(published[table], expected[table], segmenter)
    for name, value in published.items():
        if value.shape != expected[name].shape:
            raise InputError(
                f"{name} has shape {tuple(value.shape)} in the checkpoint and {tuple(expected[name].shape)} in "
                f"{target}: build the segmenter with the checkpoint's classes, widths and backbone."
            )
    segmenter.load_state_dict({name_here: published[name] for name_here, name in names.items()}, strict=False)
    if ignored:
        warnings.warn(f"Not loaded, since the published heads do not use them: {', '.join(ignored)}.", stacklevel=2)
    return segmenter


def _published(segmenter: Segmenter) -> tuple[dict[str, str], str]:
    """The segmenter's names of the weights to load -> published names; and a pattern for published names to skip."""
    if type(segmenter.backbone) is not VisionTransformer:
        raise UnsupportedHost(
            f"Published checkpoints are for plain vision transformers: build the segmenter on timm's "
            f"VisionTransformer, not on {type(segmenter.backbone).__name__}."
        )
    rules, unused = BACKBONE + (FINAL_NORM if segmenter.final_norm else []), UNUSED
    if isinstance(segmenter, SegViT):
        rules, unused = rules + ATM + SINGLE, UNUSED_BY_ATM
    elif isinstance(segmenter, CascadedSegViT):
        stages = range(1, len(segmenter.levels) + 1)
        cascade = [
            (rf"{HEAD}\.decoders\.{stage - 1}\.{own_name}", rf"\1.{published_name.format(stage=stage)}")
            for stage in stages
            for own_name, published_name in DECODER
        ]
        rules, unused = rules + ATM + cascade, UNUSED_BY_ATM if segmenter.any_class else UNUSED_BY_V2
    elif isinstance(segmenter, Setr):
        rules += SETR
    elif isinstance(segmenter, SetrMla):
        rules += MLA
    else:
        raise UnsupportedHost(
            f"There are no published checkpoints in mmsegmentation's layout for {type(segmenter).__name__}: only "
            "segvit, segvit_v1, segvit_v2 and setr can be loaded."
        )
    names = {}
    for name in segmenter.state_dict():
        if _outside(name, segmenter) or re.search(UNUSED, name):
            continue
        renamed = (re.sub(rule, published_name, name) for rule, published_name in rules if re.match(rule, name))
        names[name] = next(renamed, name)  # without a rule the name stays, and is reported as missing
    return names, unused


def _outside(name: str, segmenter: Segmenter) -> bool:
    """Whether a weight belongs to layers after the backbone's blocks, which the segmenter does not run."""
    module_name = name.removeprefix("backbone.").split(".")[0]
    not_run = {"head", "fc_norm", "attn_pool"} | (set() if segmenter.final_norm else {"norm"})
    return name.startswith("backbone.") and module_name in not_run


def _numbered(name: str) -> str:
    """The name with the number of the stage, which heads with a single stage leave out."""
    return re.sub(rf"^{HEAD}\.(input_proj|proj_norm|decoder)\.", r"\1.\2_1.", name)


def _weights(source: Mapping[str, Any] | str | PathLike[str]) -> dict[str, Tensor]:
    if not isinstance(source, Mapping):
        try:
            return read_weights(source)
        except InputError as error:
            raise InputError(
                f"{error} Checkpoints are read with weights_only, which allows only tensors and plain Python types: if "
                "you trust the file, save its state_dict to a new file."
            ) from error
    inner = source.get("state_dict", source)
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise InputError("state_dict must map names to tensors, or contain such a mapping as its 'state_dict'.")
    return dict(inner)


def _resized(table: Tensor, ours: Tensor, segmenter: Segmenter) -> Tensor:
    """Resize a position embedding (1, 1 + P, D) to the backbone's grid."""
    if table.shape == ours.shape or table.ndim != 3 or table.shape[2] != ours.shape[2]:
        return table
    side = round((table.shape[1] - 1) ** 0.5)
    backbone: Any = segmenter.backbone
    grid = backbone.patch_embed.grid_size
    if side * side != table.shape[1] - 1:
        raise InputError(
            f"backbone.pos_embed has {table.shape[1] - 1} patches, which are not a square grid: build the backbone for "
            "images of the checkpoint's size."
        )
    patches = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    patches = F.interpolate(patches, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
