"""What both streams are: a host under a recipe, with the plan, the map and the learned layers that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from .._devices import check_device


class BaseStream:
    """A host under a recipe, for as many calls as one likes: it keeps nothing between them."""

    units: ClassVar[str]
    """`tokens` or `pixels`: what the recipe reduces."""

    def __init__(self, host: Any, plan: Any, significance: Any, parts: nn.ModuleDict) -> None:
        self.host, self.plan, self.significance, self.parts = host, plan, significance, parts

    def learned(self, index: int, x: Tensor) -> nn.Module | None:
        """The learned layers of the recipe's method of this number, which will be given activations x.

        Raises:
            InputError: they are on another device.
        """
        module = self.parts[str(index)] if str(index) in self.parts else None  # noqa: SIM401
        if module is not None:
            check_device(module, x, f"Learned layers of the recipe (fast.parts, {index}) are")
        return module

    def sizes(self, images: Tensor) -> Sequence[tuple[int, ...]]:
        """The size of each grid or map that the host makes of these images."""
        raise NotImplementedError

    def covered(self, images: Tensor) -> Tensor:
        """What of the images the first grid or map covers, which is what significance maps are made of: (B, C, H, W),
        or (B, C, T, H, W) of clips in any layout."""
        return self.host.covered(images, self.sizes(images)[0])
