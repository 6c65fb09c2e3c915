"""The forward of a host with stages: maps keep their size, and point-wise operators run only on selected pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._recording import dummy_batch, is_empty, recording
from ..errors import InputError
from ..hosts import StagedHost
from ..hosts.checks import refuse_hooks
from ..hosts.staged import PixelBlock
from ..methods import Evidence, MapEvidence, PixelMethod
from ..pixels import Pixels, by_slices, put, take
from ..recipe import Recipe
from ..tokens import Tokens
from .base_stream import BaseStream
from .intermediates import FeatureRequest
from .stage_plan import StagePlan
from .trace import Mask, Trace
from .walk import Reads

Step = Callable[[int, int, PixelBlock, Tensor], Tensor]
"""Function from stage index, index of the block in its stage, the block and its input map to its output map."""


def walk_stages(host: StagedHost, x: Tensor, step: Step, stages: int | None = None) -> list[Tensor]:
    """Run a map through the first `stages` stages, or all: returns the input of the first and the output of each."""
    maps = [x]
    for number, stage in enumerate(host.stages[:stages]):
        x = stage.enter(x)
        for index, block in enumerate(stage.blocks):
            x = step(number, index, block, x)
        maps.append(x)
    return maps


class StageStream(BaseStream):
    """Runs the forward of a host with stages with a recipe applied (PaPr, section 3; methods that select pixels).
    Stateless.

    In evaluation mode the background `zero` sets pixels that are not selected to zero; in training they keep their
    residual, as in the published code.
    """

    units = "pixels"

    host: StagedHost
    plan: StagePlan

    @staticmethod
    def planned(host: StagedHost, recipe: Recipe) -> StagePlan:
        """The recipe's plan on this host; raises if the host cannot run it."""
        plan = StagePlan(recipe, host)
        plan.check(host)
        return plan

    def build(self, method: PixelMethod, pretrained: bool) -> nn.Module | None:
        """A method's own learned layers, for this host."""
        return method.build_for_stages(self.host.widths, self.plan.depths, pretrained)

    def run(self, images: Tensor, trace: Trace | None = None, stages: int | None = None) -> list[Tensor]:
        """Images -> maps: the input of the first stage, and the output of each; `stages`: run only the first n."""
        if is_empty(images):
            maps = self.run(dummy_batch(images), trace, stages)
            if trace is not None:
                trace.forget()
            return [x[:0] for x in maps]
        x = self._embedded(images)
        choosing = Choosing(self, images, x)
        maps = walk_stages(self.host, x, choosing, stages)
        if trace is not None:
            choosing.tell(trace)
        return maps

    def __call__(self, images: Tensor, **kwargs: Any) -> Any:
        """Images -> the host's own output."""
        return self.answer(self.run(images), images, **kwargs)

    def answer(self, maps: Sequence[Tensor], images: Tensor, **kwargs: Any) -> Any:
        """The maps of `run` for these images -> the host's own output."""
        if self.host.sized:
            kwargs["size"] = images.shape[-2:]
        return self.host.answer(maps, **kwargs)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map, as the host's own `forward_features` returns it."""
        return self.host.features(self.run(images)[-1])

    def intermediates(self, images: Tensor, request: FeatureRequest) -> Any:
        """The output map (B, C, H, W) of each requested stage; together with the final features if requested."""
        request.check(("NCHW",))
        if request.return_prefix_tokens or request.output_dict or request.norm:
            raise InputError(
                f"{type(self.host.model).__name__} has stages: return_prefix_tokens, norm and output_dict are for "
                "hosts with tokens."
            )
        indices, last = request.take_indices(len(self.host.stages))
        maps = self.run(images, stages=last + 1 if request.stop_early else None)
        chosen = [self._channels_first(maps[1 + index]) for index in indices]
        if request.intermediates_only is not False:
            return chosen
        complete = len(maps) == 1 + len(self.host.stages)
        return self._channels_first(self.host.features(maps[-1]) if complete else maps[-1]), chosen

    def trace(self, images: Tensor, trace: Trace) -> Trace:
        """Run on images and record what happened."""
        if trace.looks:
            raise InputError(
                f"{type(self.host.model).__name__} has stages, and no class token whose attention could be recorded."
            )
        maps = self.run(images, trace)
        x = self._channels_first(self.host.features(maps[-1]))
        trace.tokens = Tokens(x.flatten(2).transpose(1, 2), 0, tuple(x.shape[2:])).tracked()
        trace.output = self.answer(maps, images)
        return trace

    def reads(self, images: Tensor) -> list[Reads]:
        """Number of pixels that each part of each block reads."""
        sizes = enumerate(self.sizes(images))
        return [reads for stage, size in sizes for reads in self.plan.reads(stage, prod(size))]

    def limit(self, images: Tensor, reads: Sequence[Reads] | None = None) -> Any:
        """Run point-wise operators on the first pixels of each map, in place: the cost with free pixel selection."""
        expected, counts = None if reads is None else iter(reads), list[Reads]()

        def step(number: int, index: int, block: PixelBlock, x: Tensor) -> Tensor:
            nonlocal counts
            if index == 0:
                counts = self.plan.reads(number, prod(self.host.size(x)))
            read = counts[index] if expected is None else next(expected)
            if read.mlp == read.keys:
                return block(x)
            out, y = block.spatial(x)
            change = block.pointwise(y.flatten(1, -2)[:, : read.mlp])
            out.flatten(1, -2)[:, : read.mlp] += change
            return self.own_layout(out)

        return self.answer(walk_stages(self.host, self._embedded(images), step), images)

    def sizes(self, images: Tensor) -> list[tuple[int, ...]]:
        """Height and width of each stage's map."""
        x, sizes = self.host.embed(images[:1]), list[tuple[int, ...]]()
        for stage in self.host.stages:
            x = stage.enter(x)
            sizes.append(self.host.size(x))
        return sizes

    def map_call(self, images: Tensor) -> Callable[[], Any]:
        """A function that only computes the significance maps of these images, to count its FLOPs or to time it."""
        compute, sizes = self.significance.for_images, self.sizes(images)
        images = self.host.covered(images, sizes[0])

        def maps() -> list[Tensor]:
            laid = compute(images)
            return [laid(size) for size in sizes]

        return maps

    def _embedded(self, images: Tensor) -> Tensor:
        x = self.host.embed(images)
        return self.host.lay_out(x) if self.plan.methods else x

    def _channels_first(self, x: Tensor) -> Tensor:
        return x if self.host.channels_first else x.movedim(-1, 1)

    def own_layout(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the host's own layout of maps."""
        return x.movedim(-1, 1) if self.host.channels_first else x


class Choosing:
    """Runs the blocks on one batch under a recipe. A block for which no pixels were selected is called as it is."""

    def __init__(self, stream: StageStream, images: Tensor, x: Tensor) -> None:
        """`x` is the input map of stage 0."""
        self.stream, self.host, self.plan = stream, stream.host, stream.plan
        covered = self.host.covered(images, self.host.size(x))
        self.significance = None if stream.significance is None else stream.significance.for_images(covered)
        self.sizes: list[tuple[int, ...]] = []
        self.chosen: list[Pixels | None] = []
        """The pixels that the last block of each stage so far ran on."""
        self._settled = False  # whether the pixels outside of the selection already have their background value

    def __call__(self, number: int, index: int, block: PixelBlock, x: Tensor) -> Tensor:
        if index == 0:
            self.sizes.append(self.host.size(x))
            self.chosen.append(None)
            self._settled = False
        size = self.sizes[-1]
        choice = self.plan.choice(number, index, prod(size))
        if choice is not None:
            position, method, site, count = choice
            module = self.stream.learned(position, x)
            x_last = x.movedim(1, -1) if self.host.channels_first else x
            evidence = Evidence(module=module)
            if self.significance is not None:
                evidence = MapEvidence(module=module, significance=self.significance(size))
            self.chosen[-1], self._settled = method.choose(x_last, count, site, evidence), False
        pixels = self.chosen[-1]
        run = block if pixels is None else partial(self._on, index, block, pixels, self._settled)
        x = checkpoint(run, x, use_reentrant=False) if block.checkpoints else run(x)
        self._settled = pixels is not None
        return x

    def tell(self, trace: Trace) -> None:
        """Record the selected pixels of each stage in a trace."""
        trace.kept = [None if pixels is None else pixels.index for pixels in self.chosen]
        for number, (size, pixels) in enumerate(zip(self.sizes, self.chosen, strict=True)):
            trace.reads += self.plan.reads(number, prod(size))
            if pixels is not None:
                trace.masks.append(Mask(f"Kept, stage {number}", pixels.index, size))
        if self.significance is not None:
            trace.significance = self.significance(self.sizes[0]).unflatten(1, self.sizes[0])

    def _on(self, index: int, block: PixelBlock, pixels: Pixels, settled: bool, x: Tensor) -> Tensor:
        """Run a block, with its index in its stage, whose point-wise operator runs only on the selected pixels."""
        if not torch.compiler.is_compiling():
            refuse_hooks(self.host.model, block.bypassed)
        residual, y = block.spatial(x)
        training = self.host.model.training
        background = pixels.background or self.host.background
        if training or pixels.cheaper is not None or (settled and block.leaves_zeros):
            background = "keep"
        operator = block.pointwise
        recorded = recording()
        if block.pixelwise and not training and x.device.type == "cpu" and not recorded:
            operator = partial(by_slices, block.pointwise)
        count = pixels.index.shape[1]
        indices, update = pixels.flat, operator(take(y, pixels.flat, count)).flatten(0, 1)
        if pixels.cheaper is not None:
            rest = pixels.cheaper[str(index)](take(y, pixels.flat_rest, pixels.count - count))
            indices, update = torch.cat([indices, pixels.flat_rest]), torch.cat([update, rest.flatten(0, 1)])
        in_place = settled and not torch.is_grad_enabled() and not recorded and not block.residual_hooked
        out = put(residual, indices, update, background, in_place=in_place)
        return self.stream.own_layout(out)
