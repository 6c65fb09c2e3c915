"""Multiply-accumulates of one image through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from math import prod
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..cascades.cascade import Cascade
from ..data.inputs import InputSize, InputSpec, check_images, own_input, reading
from ..errors import InputError
from ..padding import unpacked
from ..segmentation.resize import Resize
from ..significance.fold import norms_folded
from ..stream import Sieved
from .counter import Formula, MacCounter
from .limit import SlicingLimit
from .pair import eager


def macs(
    module: nn.Module,
    input_size: InputSize | None = None,
    *,
    proposal: bool = True,
    selection: bool = False,
    fvcore_compat: bool = False,
    images: Tensor | None = None,
) -> float:
    """Count multiply-accumulates for each image: what papers print as "GFLOPs" is this over 1e9.

    Counted by running an image: every convolution and matrix product, attention's two included. One
    multiply-accumulate counts as one. The count follows from shapes alone: it is the same on every device, with every
    version of torch, in every precision, and of a compiled model what it is of the model itself.

    Args:
        module: a dense model, a sieved one, or any module that takes images.
        input_size: a side in pixels, (H, W) or (C, H, W) of the image, or an `InputSpec`, of a video for one; None is
            what the model was built for.
        proposal: False leaves out what computes the significance map.
        selection: True adds the arithmetic of choosing tokens (ToMe's similarity scores, 0.03 to 0.5 %), which the
            papers' tables leave out.
        fvcore_compat: add what the papers' counter adds: 5 for each element of a LayerNorm's output, 2 for each of a
            BatchNorm's, 4 for each of a bilinear resize; also for a proposal's BatchNorms that are folded here, and
            where a resize of a segmenter's maps changes nothing and is not run here. Channels-first LayerNorm is left
            out, as there.
        images: (B, C, H, W), or videos as `input_size` or the model's host lays them out, to count on instead, and the
            mean over them. Where the count depends on the data (`ats`), it is the most that can be without them. A
            cascade needs them: it is the mean over what each of them is read by, what two readings share counted once.

    Returns:
        MACs for each image.

    Raises:
        InputError: the model states no size, and none is given; it does not run on images of this size; it runs
            operators that multiply matrices and for which no formula is known; a cascade without `images`.
    """
    module = eager(module)
    has_images = images is not None
    if images is None and isinstance(module, Cascade):
        raise InputError("What a cascade costs depends on its images: give some, macs(cascade, images=batch).")
    if images is None:
        like = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), torch.empty(0))
        spec = own_input(module, input_size)
        images = torch.zeros(1, *spec, device=like.device, dtype=like.dtype)
    else:
        spec = input_size if isinstance(input_size, InputSpec) else InputSpec.of(module)
    if not len(check_images(images, spec.layout)):
        raise InputError("MACs are counted on at least one image, and the batch is empty.")
    with reading(module, images):
        if isinstance(module, Cascade):
            return _of_cascade(module, images, proposal, selection, fvcore_compat) / len(images)
        if not isinstance(module, Sieved):
            return count(module, partial(module, images), fvcore_compat=fvcore_compat) / len(images)
        # Where each image keeps its own number of tokens, zeros stand for none of them.
        alone = images.split(1) if module.plan.varies else [images]
        lengths = (
            [(SlicingLimit.on(module, image), image) for image in alone]
            if has_images
            else [(SlicingLimit(module), images)]
        )
        total = _parts(module, lengths, images, proposal, fvcore_compat=fvcore_compat)
        if selection:
            for image in alone:
                counted = _parts(module, [(SlicingLimit.on(module, image), image)], image, True)
                with unpacked():  # a fixed number of tokens is counted whole, as above
                    total += count(module, partial(module, image)) - counted
        return total / len(images)


def reading_macs(cascade: Cascade, input_size: InputSize | None = None) -> tuple[float, ...]:
    """What each reading of a cascade adds to an image that comes to it, in MACs: what it shares with the one before is
    the one's before, and a member that is left out adds none. Arguments as of `macs`."""
    spec = own_input(cascade, input_size)
    like = next(cascade.dense.parameters())
    image = torch.zeros(1, *spec, device=like.device, dtype=like.dtype)
    added = [0.0] * len(cascade.members)
    before: int | None = None
    patches = prod(cascade.sizes(image)[0]) if cascade.sharing else None
    for index, depth in zip(cascade.active, cascade.depths(patches), strict=True):
        member = cascade.members[index]
        cost = macs(member, spec)
        if before is not None:
            cost -= count(member.model, partial(member.stream.begin, image, before))
        added[index], before = cost, depth
    return tuple(added)


def _of_cascade(cascade: Cascade, images: Tensor, proposal: bool, selection: bool, fvcore_compat: bool) -> float:
    """Of all images together: each reading on the images that it reads, less what the one before had computed."""
    total = 0.0
    with torch.no_grad():
        readings = cascade.trace(images).readings
    for each in readings:
        member, read_images = cascade.members[each.member], images[each.images]
        counted = read_images if member.plan.varies else read_images[:1]  # else every image costs the same
        cost = macs(member, proposal=proposal, selection=selection, fvcore_compat=fvcore_compat, images=counted)
        if each.shared:
            begins = partial(member.stream.begin, read_images[:1], each.begun)
            cost -= count(member.model, begins, fvcore_compat=fvcore_compat)
        total += cost * len(read_images)
    return total


def _parts(
    fast: Sieved, lengths: list[tuple[SlicingLimit, Tensor]], images: Tensor, proposal: bool, **settings: Any
) -> float:
    """What the papers count, the host on as many tokens; what comes on top, the map and layers of a method's own."""
    total = count(fast.model, lambda: [limit(image) for limit, image in lengths], **settings)
    if fast.significance is not None and proposal:
        total += count(fast.significance, fast.map_call(images), **settings)
    if fast.parts:
        total += count(fast, partial(fast, images), only=fast.parts.modules(), **settings)
    return total


BATCH_NORMS = (
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
)
EXTRA: dict[str, Formula] = {
    "aten::native_layer_norm": lambda x, *_, **__: 5 * x.numel(),
    **{f"aten::{norm}": lambda x, *_, **__: 2 * x.numel() for norm in BATCH_NORMS},
    "aten::upsample_bilinear2d": lambda *_, out, **__: 4 * out.numel(),
}
"""The modules that the papers' counter adds."""


@torch.no_grad()
def count(
    owner: nn.Module,
    call: Callable[[], Any],
    *,
    fvcore_compat: bool = False,
    only: Iterable[nn.Module] | None = None,
) -> float:
    """MACs of one call; `owner` holds the modules that it runs, of which `only` those count."""
    kept = None if only is None else list(only)
    counter = MacCounter(EXTRA if fvcore_compat else None, kept)
    correction = 0

    def leave_out(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal correction
        correction -= 5 * output.numel()

    def add_not_run(module: Resize, inputs: Any, output: Tensor) -> None:
        nonlocal correction
        correction += 4 * output.numel() * module.not_run(inputs[0], output)

    def add_folded(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal correction
        correction += 2 * output.numel() * norms_folded(module)

    with ExitStack() as hooks:
        if fvcore_compat:
            for part in owner.modules() if kept is None else kept:
                if isinstance(part, LayerNorm2d):
                    hooks.callback(part.register_forward_hook(leave_out).remove)
                elif isinstance(part, Resize):
                    hooks.callback(part.register_forward_hook(add_not_run).remove)
                elif norms_folded(part):
                    hooks.callback(part.register_forward_hook(add_folded).remove)
        with counter:
            call()
    if counter.unknown:
        unknown = ", ".join(sorted(name.replace("::", ".") for name in counter.unknown))
        raise InputError(
            f"The MACs of {type(owner).__name__} cannot be counted: it runs {unknown}, for which no formula is known "
            "here. torch.utils.flop_counter.register_flop_formula tells torch one, and then it counts."
        )
    return counter.total + correction
