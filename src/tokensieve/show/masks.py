"""Whole pictures segmented: class maps written as palette pictures, and scored where there are labels."""

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
"""Windows of a picture that are read at once."""
COUNTED = 16
"""Pictures whose middle crops MACs are counted on."""


@dataclass(frozen=True)
class Segmented:
    """The result of segmenting a set of pictures.

    Attributes:
        count: pictures that were read.
        score: mean IoU and more, of a set with labels.
        written: the files, in the order of the pictures.
        failures: pictures that could not be read.
        agreement: percent of pixels with the same class as by `dense`, mean over pictures; None without it.
        dense: the score of the dense model beside it.
        macs, dense_macs: of the middle crops of the first pictures, the mean.
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
    """Read pictures of any size window by window; what cannot be read is recorded, and the rest goes on.

    Args:
        model: from images (1, 3, h, w) to scores (1, K, h, w): a segmenter, or one that was sieved.
        pictures: a `SegmentationSet`, which is scored; or an `ImageSet` whose transform keeps the pictures' size.
        crop, stride: of the windows; see `segmentation.slide`.
        folder: where a palette picture of each is written, NAME.png, in the size of the picture.
        dense: a model to compare with.
        colours: of the classes; by default `data.palette()`.
        on_progress: called with how many are done, of how many.

    Raises:
        InputError: pictures of one name where they are to be written; none that can be read.
    """
    paths = None if folder is None else _places(pictures, Path(folder))
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
            answers = [
                slide(segmenter, image, crop, stride, windows=WINDOWS).cpu()
                for segmenter in (model, dense)
                if segmenter is not None
            ]
            count += 1
            if len(crops) < COUNTED:
                crops.append(center_crop(image, list(crop)))
            if labelled:
                for counter, scores in zip(counters, answers, strict=True):
                    counter.update(scores, labels[None])
            resized = [_classes_at(scores, labels.shape if labelled else image.shape[2:]) for scores in answers]
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
    """(1, K, h, w) -> the class of each pixel (H, W)."""
    if tuple(scores.shape[2:]) != tuple(size):
        scores = torch.nn.functional.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)
    return scores[0].argmax(0)


def _places(pictures: Any, folder: Path) -> list[Path]:
    """A file for each picture, named as it is."""
    if isinstance(pictures, SegmentationSet):
        names = ["/".join(pictures.parts(index)) for index in range(len(pictures))]
    else:
        paths = [pictures.path(index).partition(".tar:")[2] or pictures.path(index) for index in range(len(pictures))]
        above = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        names = [os.path.splitext(os.path.relpath(path, above or "."))[0] for path in paths]
    index_of: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in index_of:
            raise InputError(
                f"{pictures.path(index_of[name])} and {pictures.path(index)} would both be written to {name}.png: "
                "rename one of them."
            )
        index_of[name] = index
    return [folder / f"{name}.png" for name in names]
