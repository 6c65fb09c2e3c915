"""Preprocessing of videos for inference: choice of frames, resize, crop and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torchvision.transforms.v2.functional as transforms
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError, RecipeError
from .images import UnusableError
from .inputs import InputSpec, is_count
from .preprocessing import check_input_size
from .video_frames import Timeline
from .video_sampling import Views, dense_clips, uniform_clips

SAMPLINGS = ("dense", "uniform")
LAYOUTS = ("TCHW", "CTHW")
CONFIG_KEYS = ("frames", "stride", "sampling", "short_side")
"""Keys of a model's `pretrained_cfg` about the clips on which it was trained."""


@dataclass(frozen=True)
class VideoPreprocessing:
    """Which frames of a video a model reads at inference, and how they are resized, cropped and normalised.

    All attributes can be stored as JSON: `VideoPreprocessing(**json.loads(json.dumps(dataclasses.asdict(p)))) == p`.

    Attributes:
        input_size: height and width of the clips, in pixels.
        mean: mean per channel (R, G, B), for values in [0, 1].
        std: standard deviation per channel, for values in [0, 1].
        frames: number of frames in a clip.
        stride: for "dense" sampling, the step from one frame of a clip to the next, in frames of the video.
        sampling: "dense" takes clips of neighbouring frames (Kinetics); "uniform" divides the whole video into equal
            parts and takes a frame from each (Something-Something V2).
        views: clips x crops of a video: "1x1", "1x3", "5x3", "1x10" (see `Views.parse`). Three crops are placed along
            the longer side, at its start, middle and end; a single crop is in the middle.
        short_side: the shorter side is resized to this many pixels before cropping; by default to the smallest size
            that holds the crop.
        layout: "TCHW" (frames, channels, height, width) for transformers' models, or "CTHW" for those of torchvision
            and mmaction2.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: int = 16
    stride: int = 4
    sampling: str = "dense"
    views: str = "1x1"
    short_side: int | None = None
    layout: str = "TCHW"

    def __post_init__(self) -> None:
        check_input_size(self)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise RecipeError(
                f"mean and std must be three numbers each, std positive: videos have three channels, not {self.mean} "
                f"and {self.std}."
            )
        if not is_count(self.frames) or not is_count(self.stride):
            raise RecipeError(f"frames and stride must be integers from 1 up, not {self.frames}, {self.stride}.")
        if self.sampling not in SAMPLINGS:
            raise RecipeError(f"sampling must be one of {', '.join(SAMPLINGS)}, not '{self.sampling}'.")
        if self.layout not in LAYOUTS:
            raise RecipeError(f"layout must be one of {', '.join(LAYOUTS)}, not '{self.layout}'.")
        if self.short_side is not None and (not is_count(self.short_side) or self.short_side < min(self.input_size)):
            raise RecipeError(
                f"short_side must be at least {min(self.input_size)}, the shorter side of the crop, not "
                f"{self.short_side}."
            )
        Views.parse(self.views)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **settings: Any,
    ) -> Self:
        """The preprocessing for a model: frames, size and layout from its host, the rest from its `pretrained_cfg`.

        Args:
            model: a video model, or a sieved one. Its `pretrained_cfg`, a dictionary, may have `mean`, `std`,
                `frames`, `stride`, `sampling` and `short_side`.
            mean: mean per channel; by default the model's attribute `mean`, or that of its `pretrained_cfg`.
            std: standard deviation per channel, found like `mean`.
            settings: further attributes, such as `views="5x3"`; for a model without a host also `input_size`, `frames`
                and `layout`.

        Raises:
            InputError: the model reads images; or it has no mean and standard deviation, and none is given.
        """
        spec = InputSpec.of(model)
        if "T" not in settings.get("layout", spec.layout):
            raise InputError(f"{type(model).__name__} reads images, not videos: use Preprocessing for it.")
        host = getattr(model, "model", model)
        config = getattr(host, "pretrained_cfg", None) or {}
        mean = mean or getattr(host, "mean", None) or config.get("mean")
        std = std or getattr(host, "std", None) or config.get("std")
        if mean is None or std is None:
            raise InputError(f"{type(host).__name__} states no normalisation: give mean= and std=.")
        attributes: dict[str, Any] = {}
        if "T" in spec.layout:
            attributes = {"input_size": spec.size, "frames": spec.frames, "layout": spec.layout}
        attributes |= {name: config[name] for name in CONFIG_KEYS if name in config}
        return cls(mean=tuple(mean), std=tuple(std), **{**attributes, **settings})

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """The shape of one clip, in this `layout`."""
        return self.reads.shape

    @property
    def reads(self) -> InputSpec:
        """The shape and layout of the model's input: one clip."""
        sides = {"T": self.frames, "C": 3, "H": self.input_size[0], "W": self.input_size[1]}
        return InputSpec(tuple(sides[side] for side in self.layout), self.layout)

    def indices(self, timeline: Timeline) -> np.ndarray:
        """Indices of the frames of a video to read: (clips, frames) int64."""
        clips = Views.parse(self.views).clips
        if self.sampling == "uniform":
            return uniform_clips(timeline, self.frames, clips)
        return dense_clips(timeline, self.frames, self.stride, clips)

    def resize(self, frame: np.ndarray) -> Tensor:
        """Resize a frame (H, W, 3) uint8 -> (3, h, w) uint8, at least as large as the crop; bilinear, antialiased.

        Raises:
            UnusableError: a frame so narrow that the result would need too much memory.
        """
        height, width = frame.shape[:2]
        scale = max(self.input_size[0] / height, self.input_size[1] / width)
        if self.short_side is not None:
            scale = max(scale, self.short_side / min(height, width))
        if Image.MAX_IMAGE_PIXELS is not None and scale**2 * height * width > Image.MAX_IMAGE_PIXELS:
            raise UnusableError(f"is too narrow to be resized and cropped: {width} x {height} pixels")
        size = [max(round(scale * side), crop) for side, crop in zip((height, width), self.input_size, strict=True)]
        planes = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))
        return transforms.resize(planes, size, transforms.InterpolationMode.BILINEAR, antialias=True)

    def crops(self, clip: Tensor) -> Tensor:
        """A resized clip (T, 3, h, w) uint8 -> its crops (crops, *clip_shape) float32, normalised."""
        count = Views.parse(self.views).crops
        height, width = self.input_size
        down, right = clip.shape[-2] - height, clip.shape[-1] - width
        positions = [0.5] if count == 1 else [0.0, 0.5, 1.0]
        windows = []
        for position in positions:
            top = round(down * (position if down > right else 0.5))
            left = round(right * (position if right >= down else 0.5))
            windows.append(clip[..., top : top + height, left : left + width])
        crops = torch.stack(windows).float() / 255
        crops = (crops - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
        return crops if self.layout == "TCHW" else crops.transpose(1, 2).contiguous()
