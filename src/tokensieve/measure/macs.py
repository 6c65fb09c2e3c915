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
    """Count multiply-accumulates (MACs) per image; papers call this number divided by 1e9 "GFLOPs".

    Counts every convolution and matrix product, including the two of attention, while the model runs one image. One
    multiply-accumulate counts as one. The count depends on shapes alone: it is the same on every device, with every
    version of torch, in every precision, and for a compiled model.

    Args:
        module: a dense model, a sieved one, or any module that takes images.
        input_size: a side in pixels, (H, W) or (C, H, W) of the image, or an `InputSpec`, for example for video; None
            is the model's default.
        proposal: False leaves out the computation of the significance map.
        selection: True adds the arithmetic of choosing tokens (ToMe's similarity scores, 0.03 to 0.5 %), which the
            papers' tables leave out.
        fvcore_compat: add what the papers' counter (fvcore) adds: 5 per element of a LayerNorm's output, 2 per element
            of a BatchNorm's, 4 per element of a bilinear resize. This includes a proposal's BatchNorms that tokensieve
            folds, and resizes of a segmenter's maps that change nothing and that tokensieve skips. Like fvcore, it
            leaves out channels-first LayerNorm.
        images: (B, C, H, W), or videos in the layout of `input_size` or of the host, to count on instead; the result is
            the mean over them. If the count depends on the data (`ats`), it is an upper bound without them. A cascade
            needs them: its count is the mean over the members that each image goes through, with computation shared
            between members counted once.

    Returns:
        MACs per image.

    Raises:
        InputError: the model has no default size and none is given; it does not run on images of this size; it runs
            operators that multiply matrices without a known formula; a cascade without `images`.
    """
    module = eager(module)
    has_images = images is not None
    if images is None and isinstance(module, Cascade):
        raise InputError("The cost of a cascade depends on its images: give some, macs(cascade, images=batch).")
    if images is None:
        example = next((weight for weight in module.parameters() if weight.is_floating_point()), torch.empty(0))
        spec = own_input(module, input_size)
        images = torch.zeros(1, *spec, device=example.device, dtype=example.dtype)
    else:
        spec = input_size if isinstance(input_size, InputSpec) else InputSpec.of(module)
    if not len(check_images(images, spec.layout)):
        raise InputError("MACs are counted on at least one image, and the batch is empty.")
    with reading(module, images):
        if isinstance(module, Cascade):
            return _of_cascade(module, images, proposal, selection, fvcore_compat) / len(images)
        if not isinstance(module, Sieved):
            return count(module, partial(module, images), fvcore_compat=fvcore_compat) / len(images)
        # If each image keeps its own number of tokens, blank images would not have typical numbers.
        batches = images.split(1) if module.plan.varies else [images]
        limits = (
            [(SlicingLimit.on(module, image), image) for image in batches]
            if has_images
            else [(SlicingLimit(module), images)]
        )
        total = _parts(module, limits, images, proposal, fvcore_compat=fvcore_compat)
        if selection:
            for image in batches:
                counted = _parts(module, [(SlicingLimit.on(module, image), image)], image, True)
                with unpacked():  # with a fixed number of tokens padding is counted, as above
                    total += count(module, partial(module, image)) - counted
        return total / len(images)


def reading_macs(cascade: Cascade, input_size: InputSize | None = None) -> tuple[float, ...]:
    """MACs that each member of a cascade adds for an image that reaches it. Computation shared with the member before
    counts for the member before; a member that is never run adds 0. Arguments as for `macs`."""
    spec = own_input(cascade, input_size)
    example = next(cascade.dense.parameters())
    image = torch.zeros(1, *spec, device=example.device, dtype=example.dtype)
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
    """MACs of all images: each member on the images that reach it, minus what the member before had computed."""
    total = 0.0
    with torch.no_grad():
        readings = cascade.trace(images).readings
    for member_reading in readings:
        member, member_images = cascade.members[member_reading.member], images[member_reading.images]
        counted = member_images if member.plan.varies else member_images[:1]  # else every image costs the same
        cost = macs(member, proposal=proposal, selection=selection, fvcore_compat=fvcore_compat, images=counted)
        if member_reading.shared:
            shared_part = partial(member.stream.begin, member_images[:1], member_reading.begun)
            cost -= count(member.model, shared_part, fvcore_compat=fvcore_compat)
        total += cost * len(member_images)
    return total


def _parts(
    fast: Sieved, limits: list[tuple[SlicingLimit, Tensor]], images: Tensor, proposal: bool, **settings: Any
) -> float:
    """MACs as papers count them: the host on the reduced tokens, the significance map, and methods' learned layers."""
    total = count(fast.model, lambda: [limit(image) for limit, image in limits], **settings)
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
"""Formulas of the operators that the papers' counter adds."""


@torch.no_grad()
def count(
    owner: nn.Module,
    call: Callable[[], Any],
    *,
    fvcore_compat: bool = False,
    only: Iterable[nn.Module] | None = None,
) -> float:
    """MACs of one call. `owner` holds the modules that it runs; if `only` is given, just these modules count."""
    counted_modules = None if only is None else list(only)
    counter = MacCounter(EXTRA if fvcore_compat else None, counted_modules)
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
            for part in owner.modules() if counted_modules is None else counted_modules:
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
            f"The MACs of {type(owner).__name__} cannot be counted: it runs {unknown}, for which no formula is known. "
            "Register one with torch.utils.flop_counter.register_flop_formula."
        )
    return counter.total + correction
