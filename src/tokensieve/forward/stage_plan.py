"""The plan on a host with stages: which method selects pixels before which block, and how many."""

from __future__ import annotations

from .._recording import as_int
from ..errors import RecipeError, UnsupportedHost
from ..hosts import StagedHost
from ..methods import PixelMethod
from ..methods.base import PixelSite
from ..recipe import Recipe
from .walk import Reads


class StagePlan:
    """The methods that select pixels, and where. Computed from integers alone, before the first image."""

    varies = False
    """Every image keeps the same number of pixels."""

    def __init__(self, methods: Recipe, host: StagedHost) -> None:
        self.depths = [len(stage.blocks) for stage in host.stages]
        self.every = list(methods)
        choosing = [(i, method) for i, method in enumerate(methods) if isinstance(method, PixelMethod)]
        self.methods = [(i, method) for i, method in choosing if self._stages(method)]

    def choice(self, stage: int, block: int, pixels: int) -> tuple[int, PixelMethod, PixelSite, int] | None:
        """The method that selects pixels before this block, or None: its index in the recipe, the method, the site, and
        the number of pixels that it selects out of `pixels`."""
        site = PixelSite(stage, len(self.depths), block, self.depths[stage], as_int(pixels))
        for index, method in self.methods:
            count = method.chooses(site)
            if count is not None:
                return index, method, site, count
        return None

    def reads(self, stage: int, pixels: int) -> list[Reads]:
        """The number of pixels that each block of a stage reads, for a map of `pixels` pixels."""
        count, reads = pixels, []
        for block in range(self.depths[stage]):
            choice = self.choice(stage, block, pixels)
            count = count if choice is None else choice[3]
            reads.append(Reads(pixels, pixels, pixels, count))
        return reads

    def check(self, host: StagedHost) -> None:
        """Raise, before anything runs, if methods conflict or the host cannot run all of them."""
        name = type(host.model).__name__
        for method in self.every:
            if not method.on_pixels:
                raise UnsupportedHost(
                    f"{name} cannot take {method.name}: its feature maps keep their full size, and tokens cannot be "
                    "dropped, merged or corrected. papr can select the pixels of its point-wise operators."
                )
            if method.family not in ("", host.family):
                raise UnsupportedHost(f"{name} cannot take {method.name}: it is made for {method.family}.")
        method_of: dict[int, str] = {}
        for _, method in self.methods:
            for stage in self._stages(method):
                if stage in method_of:
                    raise RecipeError(
                        f"{method_of[stage]} and {method.name} would both select the pixels of stage {stage}; keep "
                        "one of them there."
                    )
                method_of[stage] = method.name

    def _stages(self, method: PixelMethod) -> list[int]:
        """The stages in which a method selects pixels, for some number of pixels."""
        return [
            stage
            for stage, depth in enumerate(self.depths)
            if any(
                method.chooses(PixelSite(stage, len(self.depths), block, depth, 10**6)) is not None
                for block in range(depth)
            )
        ]
