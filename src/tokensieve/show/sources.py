"""Datasets of the pictures or videos in several files, folders, tars and lists."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..data import Failure, ImageSet, MovingSceneSet, Preprocessing, VideoPreprocessing, Window, media_set
from ..errors import InputError


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures or videos of several files, folders, tars and lists, in order; at most `limit` of them, evenly spread.

    Raises:
        InputError: a source is empty, or is a stream without random access.
    """

    def __init__(
        self,
        sources: Sequence[str],
        preprocessing: Preprocessing | VideoPreprocessing,
        limit: int,
        root: str | None = None,
    ) -> None:
        sets = [media_set(source, preprocessing, root=root) for source in sources]
        self.kind = sets[0].kind
        self.entries: list[tuple[Any, int]] = []
        for source, picture_set in zip(sources, sets, strict=True):
            if not isinstance(picture_set, ImageSet):
                raise InputError(f"{source} is a stream: show takes image files, folders and tars.")
            self.entries += [(picture_set, index) for index in range(len(picture_set))]
        self.total = len(self.entries)
        self.skipped = [entry for picture_set in sets for entry in picture_set.skipped]
        self.notes = [note for picture_set in sets for note in picture_set.notes]
        if limit < self.total:
            self.entries = [self.entries[i * self.total // limit] for i in range(limit)]
        paths = [self.path(index) for index in range(len(self))]
        start = _common([os.path.dirname(path) for path in paths])
        self.names = {path: PurePath(os.path.relpath(path, start) if start else path).as_posix() for path in paths}

    def __len__(self) -> int:
        return len(self.entries)

    def path(self, index: int) -> str:
        """The path of picture `index`."""
        owner, position = self.entries[index]
        return owner.path(position)

    def attempt(self, index: int) -> tuple[Tensor, int] | Failure:
        """Picture `index` as a tensor (3, H, W) without a label, or the failure to read it."""
        owner, position = self.entries[index]
        result = owner.attempt(position)
        return (
            result if isinstance(result, Failure) else (result[0], -1)
        )  # the index of a folder is not a class of the model


class Videos(Pictures):
    """Videos of several sources, with the times of their frames; see `VideoSet`."""

    @property
    def class_names(self) -> list[str] | None:
        """Class names of generated moving scenes, on which the bundled model was trained; None for other videos."""
        generated = [owner for owner, _ in self.entries if isinstance(owner, MovingSceneSet)]
        return list(generated[0].classes) if generated else None

    def attempt_timed(self, index: int) -> tuple[Tensor, int, Tensor] | Failure:
        owner, position = self.entries[index]
        result: tuple[Tensor, int, Tensor] | Failure = owner.attempt_timed(position)
        return result

    def windows(self, index: int) -> Iterator[Window | Failure]:
        owner, position = self.entries[index]
        yield from owner.windows(position)


def _common(parents: Sequence[str]) -> str:
    """The common parent folder; empty if there is none."""
    try:
        return os.path.commonpath(parents)
    except ValueError:  # absolute and relative ones, or several drives
        return ""
