"""Generated scenes as a segmentation set, with the class of each pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor, arange

from ..errors import InputError
from .images import Failure
from .scenes import MAP_CLASSES, SIZE, Scenes, to_picture
from .segmentation import Pair, SegmentationSet

SPLITS = {"train": "train", "val": "validation", "validation": "validation"}
"""Name of a split of a segmentation set -> name of the split of `Scenes`."""
COUNT = 1000
"""Default number of scenes."""


class SceneMaps(SegmentationSet):
    """Scenes as a segmentation set. The classes are background, fragment and the digits; see `Scenes.label_maps`.

    Args:
        split: "train" or "val".
        count: number of scenes.
        seed, size: as in `Scenes`.
        transform: from an RGB picture to a tensor (3, h, w).

    Raises:
        InputError: another split.
        RecipeError: an invalid count, size or seed; see `Scenes`.
    """

    def __init__(
        self,
        split: str = "val",
        count: int = COUNT,
        seed: int = 0,
        transform: Callable[[Image.Image], Tensor] | None = None,
        size: int = SIZE,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"Scenes have no split {split!r}: choose train or val.")
        self.scenes = Scenes(SPLITS[split], count, size, seed)
        digits = len(str(count - 1))
        names = [f"scene-{index:0{digits}}" for index in range(count)]
        pairs = [Pair(f"scenes/{split}/{name}", None, "", "", (name,)) for name in names]
        super().__init__(pairs, MAP_CLASSES, arange(len(MAP_CLASSES)), transform)

    @property
    def identity(self) -> str:
        """Text that identifies these scenes, such as for a cache key."""
        return f"{self.scenes.count} scenes of {self.scenes.split}, seed {self.scenes.seed}, {self.scenes.size} pixels"

    def pairs(self, indices: Sequence[int]) -> list[tuple[Image.Image, Tensor]]:
        images, maps = self.scenes.label_maps(indices)  # drawing them together is faster
        return [(to_picture(image), labels) for image, labels in zip(images, maps, strict=True)]

    def _read(self, index: int) -> tuple[Image.Image, Tensor] | Failure:
        (pair,) = self.pairs([index])
        return pair
