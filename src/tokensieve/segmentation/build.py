"""Functions that build the segmenters, with their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from ..errors import InputError
from .atm_segmenters import CascadedSegViT, SegViT
from .map_segmenters import LinearSegmenter, Setr, SetrMla
from .segmenter import Segmenter, quarters


def segvit(
    backbone: nn.Module,
    num_classes: int,
    exits: Sequence[int] = (5, 7, 11),
    width: int = 384,
    heads: int = 6,
    layers: int = 3,
    class_token: bool = False,
    final_norm: bool = False,
) -> SegViT:
    """SegViT with one ATM head per exit, as DToP trains it (arXiv 2308.01045, section 3.2).

    Called with images (B, C, H, W) it returns (B, K, H, W): the probability that the class is in the image times that
    of the pixel belonging to its mask, from the head of the last exit. The heads have random weights.

    Args:
        backbone: a plain vision transformer that `sieve` supports; shared, not copied.
        num_classes: K.
        exits: the blocks that are followed by a head, counted from 0. Blocks after the last exit are not run.
        width, heads, layers: channels, attention heads and layers of each head's decoder. In DToP: 384, 6, 3 for ViT-B;
            512 and 8 or 16 heads for ViT-L.
        class_token: whether the backbone's class token stays in the blocks and is read by the heads.
        final_norm: whether the backbone's final norm is applied after its last block.

    Raises:
        UnsupportedHost: the backbone has no tokens, or needs its class token.
        InputError: an exit out of range; a width that is not a multiple of the heads.
    """
    return SegViT(
        backbone,
        num_classes,
        exits,
        width=width,
        heads=heads,
        layers=layers,
        class_token=class_token,
        final_norm=final_norm,
    )


def segvit_v1(
    backbone: nn.Module,
    num_classes: int,
    levels: Sequence[int] = (5, 7, 11),
    width: int | None = None,
    heads: int = 6,
    layers: int = 3,
    class_token: bool = False,
    final_norm: bool = False,
) -> CascadedSegViT:
    """SegViT v1 (arXiv 2210.05844): a cascade of ATM heads, whose queries predict one of K classes, or none.

    Called with images (B, C, H, W) it returns (B, K, H, W): over all queries the sum of the probability of the class
    times the mask. For K classes this sum alone needs K x K x H x W MACs.

    Args, errors: as for `segvit`; `levels` are read from the deepest to the shallowest, `width` None is half of the
        backbone's.
    """
    return CascadedSegViT(
        backbone,
        num_classes,
        levels,
        width=width,
        heads=heads,
        layers=layers,
        class_token=class_token,
        final_norm=final_norm,
        any_class=True,
    )


def segvit_v2(
    backbone: nn.Module,
    num_classes: int,
    levels: Sequence[int] = (5, 7, 11),
    width: int | None = None,
    heads: int = 6,
    layers: int = 3,
    class_token: bool = False,
    final_norm: bool = False,
) -> CascadedSegViT:
    """The cascade with one query per class, each present or absent, without self-attention of queries (ATMHeadV2).

    Called with images (B, C, H, W) it returns (B, K, H, W): the probability that the class is in the image times that
    of the pixel belonging to its mask, whose logits are resized before the sigmoid.

    Args, errors: as for `segvit_v1`.
    """
    return CascadedSegViT(
        backbone,
        num_classes,
        levels,
        width=width,
        heads=heads,
        layers=layers,
        class_token=class_token,
        final_norm=final_norm,
        any_class=False,
    )


def setr(
    backbone: nn.Module,
    num_classes: int,
    form: Literal["naive", "mla", "pup"] = "naive",
    levels: Sequence[int] | None = None,
    channels: int = 256,
    convs: int | None = None,
    class_token: bool = True,
    final_norm: bool = False,
    auxiliary_convs: int | None = None,
) -> Segmenter:
    """SETR (arXiv 2012.15840, section 3.2), as in mmsegmentation.

    Called with images (B, C, H, W) it returns class logits (B, K, H, W). Auxiliary heads, used only in training
    (`stages`), read all levels but the last; for "mla" all levels.

    Args:
        backbone: a plain vision transformer that `sieve` supports; shared, not copied.
        num_classes: K.
        form: "naive", 1x1 convolutions with an upsampling by 4 each; "pup", 3x3 convolutions with an upsampling by 2
            each; "mla", the sum of all levels from the deepest on.
        levels: the blocks that heads read, counted from 0; None: four, evenly spaced up to the last.
        channels: channels of the convolutions; in the head of "mla" half of them.
        convs: number of convolutions in the head; None is 1 for "naive" and 4 for "pup". "mla" has two per level.
        class_token: whether the backbone's class token stays in the blocks. The heads never read it.
        final_norm: whether the backbone's final norm is applied after its last block.
        auxiliary_convs: number of convolutions in each auxiliary head; None: as in the head for "naive", 1 for "pup".

    Raises:
        UnsupportedHost: the backbone has no tokens, or needs its class token.
        InputError: an unknown form; levels out of range; settings that the form does not have.
    """
    if form not in ("naive", "mla", "pup"):
        raise InputError(f'form must be "naive", "mla" or "pup", not {form!r}.')
    if form == "mla" and (convs is not None or auxiliary_convs is not None):
        raise InputError('form="mla" has two convolutions per level and one in each auxiliary head: leave convs out.')
    if any(count is not None and count < 1 for count in (convs, auxiliary_convs, channels)):
        raise InputError(f"channels={channels}, convs={convs}, auxiliary_convs={auxiliary_convs} must be at least 1.")
    if levels is None:
        levels = quarters(backbone)
    if form == "mla":
        return SetrMla(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm, channels=channels)
    kernel, scale, default_convs = (1, 4, 1) if form == "naive" else (3, 2, 4)
    convs = default_convs if convs is None else convs
    if auxiliary_convs is None:
        auxiliary_convs = convs if form == "naive" else 1
    return Setr(
        backbone,
        num_classes,
        levels,
        class_token=class_token,
        final_norm=final_norm,
        channels=channels,
        kernel=kernel,
        convs=convs,
        scale=scale,
        auxiliary_convs=auxiliary_convs,
    )


def linear(
    backbone: nn.Module,
    num_classes: int,
    levels: Sequence[int] = (-1,),
    class_token: bool = True,
    final_norm: bool = False,
) -> LinearSegmenter:
    """A linear head on patches: BatchNorm and a 1x1 convolution, as in DINOv2's evaluation (arXiv 2304.07193, 7.4).

    Called with images (B, C, H, W) it returns class logits (B, K, H, W).

    Args:
        backbone: a plain vision transformer that `sieve` supports; shared, not copied.
        num_classes: K.
        levels: the blocks whose tokens are concatenated, counted from 0; negative numbers count from the last.
        class_token: whether the backbone's class token stays in the blocks. The head does not read it.
        final_norm: whether the backbone's final norm is applied to each level, as in DINOv2's evaluation.

    Raises:
        UnsupportedHost: the backbone has no tokens, or needs its class token.
        InputError: levels out of range.
    """
    return LinearSegmenter(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm)
