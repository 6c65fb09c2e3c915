"""The segmenters by name: what is built, of which parts, with which defaults."""

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
    """SegViT with one ATM head an exit, as DToP trains it (arXiv 2308.01045, section 3.2).

    Called with images (B, C, H, W) it returns (B, K, H, W): the probability that the class is in the image times that
    of the pixel belonging to its mask, from the head of the last exit. The heads have random weights.

    Args:
        backbone: a plain vision transformer that `sieve` opens; shared, not copied.
        num_classes: K.
        exits: the blocks with a head behind them, counted from 0. Blocks behind the last are not run.
        width, heads, layers: of each head's decoder. DToP's: 384, 6, 3 of ViT-B; 512 and 8 or 16 heads of ViT-L.
        class_token: whether the backbone's class token stays in the blocks and is read by the heads.
        final_norm: whether the backbone's final norm acts behind its last block.

    Raises:
        UnsupportedHost: the backbone has no tokens, or cannot do without its class token.
        InputError: exits that are not there; a width that the heads do not share evenly.
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
    """SegViT v1 (arXiv 2210.05844): a cascade of ATM heads, whose queries name one of K classes, or none.

    Called with images (B, C, H, W) it returns (B, K, H, W): over all queries the sum of the probability of the class
    times the mask. At K classes this alone is K x K x H x W MACs.

    Args, errors: those of `segvit`; `levels` are read from the deepest to the shallowest, `width` None is half of the
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
        contracts=True,
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
    """The cascade with one query a class, each present or absent, and no self-attention between queries (ATMHeadV2).

    Called with images (B, C, H, W) it returns (B, K, H, W): the probability that the class is in the image times that
    of the pixel belonging to its mask, whose logits are resized before the sigmoid.

    Args, errors: those of `segvit_v1`.
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
        contracts=False,
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
    """SETR (arXiv 2012.15840, section 3.2), as mmsegmentation has it.

    Called with images (B, C, H, W) it returns class logits (B, K, H, W). Heads for training alone (`stages`) read all
    levels but the last; of "mla" all.

    Args:
        backbone: a plain vision transformer that `sieve` opens; shared, not copied.
        num_classes: K.
        form: "naive", 1x1 convolutions with an upsampling by 4 each; "pup", 3x3 convolutions with an upsampling by 2
            each; "mla", levels added up from the deepest on.
        levels: the blocks that heads read, counted from 0; None are four, evenly spaced up to the last.
        channels: of the convolutions; in the head of "mla" half of them.
        convs: how many in the head; None is 1 of "naive" and 4 of "pup". "mla" has two a level.
        class_token: whether the backbone's class token stays in the blocks. The heads never read it.
        final_norm: whether the backbone's final norm acts behind its last block.
        auxiliary_convs: how many in each auxiliary head; None is as many as in the head of "naive", 1 of "pup".

    Raises:
        UnsupportedHost: the backbone has no tokens, or cannot do without its class token.
        InputError: another form; levels that are not there; settings that the form does not have.
    """
    if form not in ("naive", "mla", "pup"):
        raise InputError(f'form is "naive", "mla" or "pup", not {form!r}.')
    if form == "mla" and (convs is not None or auxiliary_convs is not None):
        raise InputError('form="mla" has two convolutions a level and one in each auxiliary head: leave convs out.')
    if any(count is not None and count < 1 for count in (convs, auxiliary_convs, channels)):
        raise InputError(f"channels={channels}, convs={convs}, auxiliary_convs={auxiliary_convs}: from 1 up.")
    if levels is None:
        levels = quarters(backbone)
    if form == "mla":
        return SetrMla(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm, channels=channels)
    kernel, scale, usual = (1, 4, 1) if form == "naive" else (3, 2, 4)
    convs = usual if convs is None else convs
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
    """A linear head on patches: BatchNorm and a 1x1 convolution, as DINOv2 is evaluated (arXiv 2304.07193, 7.4).

    Called with images (B, C, H, W) it returns class logits (B, K, H, W).

    Args:
        backbone: a plain vision transformer that `sieve` opens; shared, not copied.
        num_classes: K.
        levels: the blocks whose tokens are concatenated, counted from 0, or from the last by negative numbers.
        class_token: whether the backbone's class token stays in the blocks. The head does not read it.
        final_norm: whether the backbone's final norm acts on each level, as in DINOv2's evaluation.

    Raises:
        UnsupportedHost: the backbone has no tokens, or cannot do without its class token.
        InputError: levels that are not there.
    """
    return LinearSegmenter(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm)
