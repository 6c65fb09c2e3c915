"""Hosts with stages under a recipe: maps keep their size, and point-wise operators run on chosen pixels alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import RecipeError, UnsupportedHost
from .hosts.checks import refuse_hooks
from .hosts.staged import PixelBlock, StagedHost
from .methods import Evidence, Method
from .methods.base import There
from .pixels import Pixels, by_slices, put, take
from .plan import Reads
from .recipe import Recipe
from .recording import none, recording, whole
from .stream import Mask, Sieved, Trace, stand_in
from .tokens import Tokens

if TYPE_CHECKING:
    from .significance.source import Significance


class StagePlan:
    """Which method chooses pixels where. Known before the first image, from integers alone."""

    def __init__(self, methods: Recipe, host: StagedHost) -> None:
        self.depths = [len(stage.blocks) for stage in host.stages]
        self.every = list(methods)
        self.methods = [(i, method) for i, method in enumerate(methods) if self._stages(method)]

    def choice(self, stage: int, block: int, pixels: int) -> tuple[int, Method, There, int] | None:
        """The method that chooses in front of this block, with its place in the recipe, and how many of `pixels`."""
        there = There(stage, len(self.depths), block, self.depths[stage], whole(pixels))
        for index, method in self.methods:
            count = method.chooses(there)
            if count is not None:
                return index, method, there, count
        return None

    def reads(self, stage: int, pixels: int) -> list[Reads]:
        """How much of a stage's map of so many pixels each of its blocks reads where."""
        count, reads = pixels, []
        for block in range(self.depths[stage]):
            choice = self.choice(stage, block, pixels)
            count = count if choice is None else choice[3]
            reads.append(Reads(pixels, pixels, pixels, count))
        return reads

    def check(self, host: StagedHost) -> None:
        """Refuse, before anything runs, what makes no sense."""
        name = type(host.model).__name__
        for method in self.every:
            if not method.on_pixels:
                raise UnsupportedHost(
                    f"{name} cannot take {method.name}: its maps keep their full size, and no token in them can be "
                    "dropped, merged or corrected. papr chooses the pixels of its point-wise operators."
                )
            if method.family not in ("", host.family):
                raise UnsupportedHost(f"{name} cannot take {method.name}: it is made for {method.family}.")
        taken: dict[int, str] = {}
        for _, method in self.methods:
            for stage in self._stages(method):
                if stage in taken:
                    raise RecipeError(
                        f"{taken[stage]} and {method.name} would both choose the pixels of stage {stage}; keep one of "
                        "them there."
                    )
                taken[stage] = method.name

    def _stages(self, method: Method) -> list[int]:
        """Where a method chooses at all, whatever the number of pixels."""
        return [
            stage
            for stage, depth in enumerate(self.depths)
            if any(
                method.chooses(There(stage, len(self.depths), block, depth, 10**6)) is not None
                for block in range(depth)
            )
        ]


class SievedStages(Sieved):
    """A host with stages under a recipe (PaPr, section 3; methods that choose the pixels of a stage).

    In evaluation mode a background of `zero` sets what is left out to zero; in training it keeps its residual, as in
    the published code.
    """

    host: StagedHost
    plan: StagePlan
    significance: Significance | None

    def __init__(self, host: StagedHost, recipe: Recipe) -> None:
        super().__init__(host, recipe)  # type: ignore[arg-type]

    def _planned(self) -> StagePlan:  # type: ignore[override]
        plan = StagePlan(self.recipe, self.host)
        plan.check(self.host)
        return plan

    def _build(self, method: Method, pretrained: bool) -> nn.Module | None:
        return method.build_for_stages(self.host.widths, self.plan.depths, pretrained)

    def _answer(self, images: Tensor, words: dict[str, Any]) -> Any:
        return self.host.answer(self._maps(images), **words)

    def _head_is_enough(self) -> bool:
        return True

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the last map, as the host's own `forward_features` gives it."""
        now = self._now()
        return now.host.features(now._maps(images)[-1])

    def forward_intermediates(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the map (B, C, H, W) behind each stage, whole: a pyramid for a detector or a segmenter."""
        return [self._channels_first(x) for x in self._now()._maps(images)[1:]]

    def asking(self, images: Tensor) -> Callable[[], Any]:
        assert self.significance is not None
        ask, sizes, images = self.significance.ask, self.sizes(images), self.covered(images)

        def maps() -> list[Tensor]:
            laid = ask(images)
            return [laid(size) for size in sizes]

        return maps

    def covered(self, images: Tensor) -> Tensor:
        return self.host.covered(images, self.sizes(images)[0])

    def sizes(self, images: Tensor) -> list[tuple[int, int]]:
        """Height and width of each stage's map."""
        x, sizes = self.host.embed(images[:1]), []
        for stage in self.host.stages:
            x = stage.enter(x)
            sizes.append(self.host.size(x))
        return sizes

    def _maps(self, images: Tensor, trace: Trace | None = None) -> list[Tensor]:
        """Image to map, map through the stages: what goes into the first, and what comes out of each.

        A block for which no pixels were chosen is called whole, as it is.
        """
        if none(images):
            maps = self._maps(stand_in(images), trace)
            if trace is not None:
                trace.forget()
            return [x[:0] for x in maps]
        host = self.host
        x = host.embed(images)
        if self.plan.methods:
            x = host.lay_out(x)
        maps = [x]
        asked = None
        if self.significance is not None:
            asked = self.significance.ask(host.covered(images, host.size(x)))
        for number, stage in enumerate(host.stages):
            x = stage.enter(x)
            size = host.size(x)
            pixels: Pixels | None = None
            settled = False  # whether these pixels' background is what it is to be
            for index, block in enumerate(stage.blocks):
                choice = self.plan.choice(number, index, prod(size))
                if choice is not None:
                    pixels = self._choose(choice, x, None if asked is None else asked(size))
                    settled = False
                step = block if pixels is None else partial(self._on, index, block, pixels, settled)
                x = checkpoint(step, x, use_reentrant=False) if block.checkpoints else step(x)
                settled = pixels is not None
            maps.append(x)
            if trace is not None:
                trace.reads += self.plan.reads(number, prod(size))
                if number == 0 and asked is not None:
                    trace.significance = asked(size).unflatten(1, size)
                trace.kept = [*(trace.kept or []), None if pixels is None else pixels.index]
                if pixels is not None:
                    trace.masks.append(Mask(f"Kept, stage {number}", pixels.index, size))
        return maps

    def _choose(self, choice: tuple[int, Method, There, int], x: Tensor, significance: Tensor | None) -> Pixels:
        index, method, there, count = choice
        x = x.permute(0, 2, 3, 1) if self.host.channels_first else x
        return method.choose(x, count, there, Evidence(significance=significance, part=self._part(index)))

    def _on(self, index: int, block: PixelBlock, pixels: Pixels, settled: bool, x: Tensor) -> Tensor:
        """A block, of this number in its stage, whose point-wise operator runs on these pixels."""
        if not torch.compiler.is_compiling():
            refuse_hooks(self.model, block.bypassed)
        residual, y = block.around(x)
        background = pixels.background or self.host.background
        if self.training or pixels.cheaper is not None or (settled and block.leaves_zeros):
            background = "keep"
        operator = block.pixel
        recorded = recording()
        if block.each and not self.training and x.device.type == "cpu" and not recorded:
            operator = partial(by_slices, block.pixel)
        kept = pixels.index.shape[1]
        places, change = pixels.flat, operator(take(y, pixels.flat, kept)).flatten(0, 1)
        if pixels.cheaper is not None:
            rest = pixels.cheaper[str(index)](take(y, pixels.flat_rest, pixels.count - kept))
            places, change = torch.cat([places, pixels.flat_rest]), torch.cat([change, rest.flatten(0, 1)])
        own = settled and not torch.is_grad_enabled() and not recorded and not block.watched
        out = put(residual, places, change, background, own=own)
        return out.permute(0, 3, 1, 2) if self.host.channels_first else out

    def _channels_first(self, x: Tensor) -> Tensor:
        return x if self.host.channels_first else x.permute(0, 3, 1, 2)

    def trace(self, images: Tensor) -> Trace:
        now, trace = self._now(), Trace()
        maps = now._maps(images, trace)
        trace.output = now.host.answer(maps)
        x = self._channels_first(now.host.features(maps[-1]))
        trace.tokens = Tokens(x.flatten(2).transpose(1, 2), 0, tuple(x.shape[2:])).tracked()
        return trace
