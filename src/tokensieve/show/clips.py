"""Shows the effect of a recipe on clips of a video, frame by frame: pictures, figures and plain records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..data import VideoPreprocessing
from ..stream import Sieved
from .explain import BothOutputs, Verdict, run_both
from .page import Fact, Panel
from .pictures import Merged, groups, heat, kept, photo

HEIGHT = 224
"""Height of a panel in pixels: a multiple of 14 and of 16, so that patches of common grids have whole pixels."""
MOMENTS = 8
"""Maximum number of columns of a strip; of more moments some are shown, evenly spread."""


@dataclass(frozen=True)
class Layer:
    """One view of a clip, such as its kept patches: a picture for each frame, and a note for each frame's moment."""

    caption: str
    pictures: tuple[Image.Image, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ExplainedClip:
    """One clip under a recipe.

    Attributes:
        times: time of each frame in seconds from the start of the video.
        moments: temporal positions of the grid of patches; each covers one or more frames.
        layers: the frames; their significance map, kept and merged patches, if the recipe has them.
        both: both models' outputs on a batch, in which this clip has the index `index`.
        kept: number of patches (pixels for hosts with stages) kept at each moment; None if all were kept.
        patches: number of patches of a moment.
    """

    times: tuple[float, ...]
    moments: int
    layers: tuple[Layer, ...]
    both: BothOutputs
    index: int
    kept: tuple[int, ...] | None
    patches: int

    @property
    def verdict(self) -> Verdict | None:
        """Both predictions; None for a host without a classifier."""
        return self.both.verdicts[self.index]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The predictions as text."""
        return self.both.facts(self.index)

    def moment(self, frame: int) -> int:
        """The moment of a frame."""
        return frame * self.moments // len(self.times)

    def panels(self) -> tuple[tuple[Panel, ...], ...]:
        """A strip for each layer: the first frame of each of up to `MOMENTS` moments."""
        moments = (
            [i * self.moments // MOMENTS for i in range(MOMENTS)] if self.moments > MOMENTS else range(self.moments)
        )
        frames = [-(-moment * len(self.times) // self.moments) for moment in moments]
        return tuple(
            tuple(
                Panel(layer.pictures[f], layer.caption, layer.notes[f], f"{layer.caption} at {self.times[f]:.2f} s")
                for f in frames
            )
            for layer in self.layers
        )

    def record(self) -> dict[str, Any]:
        """The figures as plain JSON, without the pictures."""
        answers = {"dense": None, "sieved": None} if self.verdict is None else self.verdict.record()
        return {
            "start": self.times[0],
            "end": self.times[-1],
            **answers,
            "cosine": self.both.cosines[self.index],
            "kept": None if self.kept is None else sum(self.kept),
            "kept_per_moment": None if self.kept is None else list(self.kept),
            "tokens_per_block": self.both.trace.tokens_per_block,
        }


def explain_clips(
    fast: Sieved,
    dense: nn.Module,
    clips: Tensor,
    times: Tensor,
    preprocessing: VideoPreprocessing,
    classes: Sequence[str] | None = None,
    *,
    height: int = HEIGHT,
) -> list[ExplainedClip]:
    """Run both models on clips and draw the effect of the recipe on each.

    Args:
        fast: the sieved model.
        dense: the host, or any model with the same kind of output.
        clips: (B, *clip_shape), as `preprocessing` makes them.
        times: (B, frames), time of each frame in seconds.
        preprocessing: preprocessing of both models.
        classes: the names of the classes in index order; see `explain.class_names`.
        height: height of the pictures in pixels.

    Returns:
        One `ExplainedClip` for each clip.
    """
    result = run_both(fast, dense, clips, classes)
    frames = clips if preprocessing.layout == "TCHW" else clips.transpose(1, 2)
    return [
        _explained(result, index, tuple(frame_times.tolist()), [_photo(frame, preprocessing, height) for frame in clip])
        for index, (clip, frame_times) in enumerate(zip(frames, times, strict=True))
    ]


def _photo(frame: Tensor, preprocessing: VideoPreprocessing, height: int) -> Image.Image:
    return photo(frame, preprocessing.mean, preprocessing.std, height)


def _explained(result: BothOutputs, index: int, times: tuple[float, ...], photos: list[Image.Image]) -> ExplainedClip:
    trace, tokens = result.trace, result.trace.tokens
    assert tokens is not None
    grid = tokens.grid
    count, moments = len(photos), grid[0]

    def layer(caption: str, moments: int, draw: Callable[[int, int], Image.Image], note: Callable[[int], str]) -> Layer:
        """A layer from `draw(frame, moment)`, which makes a picture, and `note(moment)`."""
        moment_of_frame = [frame * moments // count for frame in range(count)]
        pictures = [draw(frame, moment) for frame, moment in enumerate(moment_of_frame)]
        return Layer(caption, tuple(pictures), tuple(map(note, moment_of_frame)))

    layers = [Layer("Input", tuple(photos), tuple(f"{time:.2f} s" for time in times))]
    if trace.significance is not None:
        maps = trace.significance[index]
        value_range = float(maps.min()), float(maps.max())
        heat_maps = [heat(picture, maps[f * len(maps) // count], value_range) for f, picture in enumerate(photos)]
        layers.append(Layer("Significance map", tuple(heat_maps), ("blue low, yellow high",) * count))
    per_moment, patches = None, prod(grid[1:])
    if trace.masks:
        mask = trace.masks[0]
        kept_patches, patches = mask.kept[index], prod(mask.grid[1:])
        kept_patches = kept_patches[kept_patches >= 0]
        per_moment = torch.bincount(kept_patches // patches, minlength=mask.grid[0]).tolist()

        def draw_kept(frame: int, moment: int) -> Image.Image:
            patches_here = kept_patches[kept_patches // patches == moment] - moment * patches
            return kept(photos[frame], patches_here, mask.grid[1:])

        layers.append(layer(mask.title, mask.grid[0], draw_kept, lambda m: f"{per_moment[m]} of {patches}"))
    if tokens.size is not None:
        source = trace.source[index]
        merged = Merged.of(photos, source, (grid[0], grid[1], grid[2]))

        def draw_merged(frame: int, moment: int) -> Image.Image:
            return groups(photos[frame], source.unflatten(0, grid)[moment].flatten(), (grid[1], grid[2]), merged)

        left = f"{tokens.x.shape[1] - tokens.prefix} left of all"
        layers.append(layer("Merged patches", moments, draw_merged, lambda _: left))
    kept_at = None if per_moment is None else tuple(per_moment)
    return ExplainedClip(times, moments, tuple(layers), result, index, kept_at, patches)
