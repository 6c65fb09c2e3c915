"""Segments whole pictures: writes class maps as palette images, and scores them if there are labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ..data import Failure, SegmentationSet, save_labels
from ..errors import InputError
from ..measure import macs
from ..measure.outputs import evaluating
from ..measure.scores import MapScore, PixelClasses
from ..segmentation import slide

WINDOWS = 8
"""Windows of a picture per batch."""
COUNTED = 16
"""Number of pictures on whose centre crops MACs are counted."""


@dataclass(frozen=True)
class Segmented:
    """The result of segmenting a set of pictures.

    Attributes:
        count: number of pictures read.
        score: mean IoU and other scores; None without labels.
        written: the files written, in the order of the pictures.
        failures: pictures that could not be read.
        agreement: percent of pixels with the same class as with `dense`, mean over pictures; None without `dense`.
        dense: the score of the dense model; None without labels or `dense`.
        macs, dense_macs: mean MACs per crop, on the centre crops of the first pictures.
    """

    count: int
    score: MapScore | None
    written: tuple[Path, ...]
    failures: tuple[Failure, ...]
    agreement: float | None = None
    dense: MapScore | None = None
    macs: float = 0.0
    dense_macs: float | None = None


@torch.no_grad()
def segment_pictures(
    model: Any,
    pictures: Any,
    crop: Sequence[int],
    stride: Sequence[int],
    *,
    folder: str | os.PathLike[str] | None = None,
    dense: Any = None,
    colours: Sequence[tuple[int, int, int]] | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Segmented:
    """Segment pictures of any size window by window; pictures that cannot be read are recorded and skipped.

    Args:
        model: a segmenter, sieved or not: maps images (1, 3, h, w) to scores (1, K, h, w).
        pictures: a `SegmentationSet`, which is scored; or an `ImageSet` whose transform keeps the pictures' size.
        crop, stride: size and step of the windows; see `segmentation.slide`.
        folder: folder for a palette image NAME.png of each picture, in the picture's size.
        dense: a model to compare with.
        colours: colours of the classes; by default `data.palette()`.
        on_progress: called with the number of pictures done and the total.

    Raises:
        InputError: two pictures would be written to one file; no picture can be read.
    """
    paths = None if folder is None else _output_paths(pictures, Path(folder))
    labelled = isinstance(pictures, SegmentationSet)
    device = next(model.parameters()).device
    counters = [PixelClasses() for _ in range(1 if dense is None else 2)]
    written, failures, same, count, crops = [], list[Failure](), list[float](), 0, list[Tensor]()
    with evaluating(*(segmenter for segmenter in (model, dense) if segmenter is not None)):
        for index in range(len(pictures)):
            result = pictures.attempt(index)
            on_progress(index + 1, len(pictures))
            if isinstance(result, Failure):
                failures.append(result)
                continue
            image, labels = result[0][None].to(device), result[1]
            all_scores = [
                slide(segmenter, image, crop, stride, windows=WINDOWS).cpu()
                for segmenter in (model, dense)
                if segmenter is not None
            ]
            count += 1
            if len(crops) < COUNTED:
                crops.append(center_crop(image, list(crop)))
            if labelled:
                for counter, scores in zip(counters, all_scores, strict=True):
                    counter.update(scores, labels[None])
            resized = [_classes_at(scores, labels.shape if labelled else image.shape[2:]) for scores in all_scores]
            if dense is not None:
                same.append(100 * float((resized[0] == resized[1]).float().mean()))
            if paths is not None:
                paths[index].parent.mkdir(parents=True, exist_ok=True)
                save_labels(resized[0], paths[index], colours)
                written.append(paths[index])
    if not count:
        first = f"; the first: {failures[0]}" if failures else ""
        raise InputError(f"None of {len(pictures)} pictures could be read{first}.")
    with evaluating(model):
        costs = [macs(segmenter, images=torch.cat(crops)) for segmenter in (model, dense) if segmenter is not None]
    scored = [counter.result(tuple(failures)) for counter in counters] if labelled else [None, None]
    return Segmented(
        count,
        scored[0],
        tuple(written),
        tuple(failures),
        sum(same) / len(same) if same else None,
        scored[1] if dense is not None else None,
        costs[0],
        costs[1] if dense is not None else None,
    )


def _classes_at(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Scores (1, K, h, w) -> the class of each pixel (H, W), after bilinear resizing to `size`."""
    if tuple(scores.shape[2:]) != tuple(size):
        scores = torch.nn.functional.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)
    return scores[0].argmax(0)


def _output_paths(pictures: Any, folder: Path) -> list[Path]:
    """The path to write for each picture, with the picture's own name. Raises `InputError` if two are equal."""
    if isinstance(pictures, SegmentationSet):
        names = ["/".join(pictures.parts(index)) for index in range(len(pictures))]
    else:
        paths = [pictures.path(index).partition(".tar:")[2] or pictures.path(index) for index in range(len(pictures))]
        common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        names = [os.path.splitext(os.path.relpath(path, common or "."))[0] for path in paths]
    index_of: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in index_of:
            raise InputError(
                f"{pictures.path(index_of[name])} and {pictures.path(index)} would both be written to {name}.png: "
                "rename one of them."
            )
        index_of[name] = index
    return [folder / f"{name}.png" for name in names]
