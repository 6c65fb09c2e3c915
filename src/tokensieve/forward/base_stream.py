"""The base class of both streams: a host with a recipe applied, its plan, significance map and learned layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from .._devices import check_device


class BaseStream:
    """A host with a recipe applied. Stateless: nothing is stored between calls."""

    units: ClassVar[str]
    """Unit that the recipe reduces: `tokens` or `pixels`."""

    def __init__(self, host: Any, plan: Any, significance: Any, parts: nn.ModuleDict) -> None:
        self.host, self.plan, self.significance, self.parts = host, plan, significance, parts

    def learned(self, index: int, x: Tensor) -> nn.Module | None:
        """The learned layers of the method with this index in the recipe, to be called with activations x.

        Raises:
            InputError: the layers are on another device than x.
        """
        module = self.parts[str(index)] if str(index) in self.parts else None  # noqa: SIM401
        if module is not None:
            check_device(module, x, f"Learned layers of the recipe (fast.parts, {index}) are")
        return module

    def sizes(self, images: Tensor) -> Sequence[tuple[int, ...]]:
        """The sizes of the host's grid of patches, or of its feature maps, for these images."""
        raise NotImplementedError

    def covered(self, images: Tensor) -> Tensor:
        """The part of the images that the first grid or map covers, from which significance maps are computed:
        (B, C, H, W), or (B, C, T, H, W) for clips of any layout."""
        return self.host.covered(images, self.sizes(images)[0])
