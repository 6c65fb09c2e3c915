"""Makes the report, the film and the record of `tokensieve show` for videos."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..data import Failure, VideoPreprocessing, video_set
from ..errors import InputError
from .clip_frames import annotated_frames
from .clips import ExplainedClip, explain_clips
from .gallery import Gallery, answer_cell, answer_facts
from .page import Section, Table
from .video_file import film

if TYPE_CHECKING:
    from ..model_spec import OpenedModel

SHOWN = 24
"""Maximum number of clips drawn on a page or a sheet, evenly spread; a table lists all of them."""


class Clip(NamedTuple):
    """A clip to show: its video's path and name, its tensor (*clip_shape), the times of its frames in seconds."""

    path: str
    name: str
    clip: Tensor
    times: Tensor


@dataclass
class Reel:
    """The clips shown: sections for a page, records as plain JSON, and failures to read."""

    sections: list[Section] = field(default_factory=list)
    """Sections of every `step`th clip only, since those of all clips of a long video may not fit in memory."""
    step: int = 1
    clips: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, clip: Clip, explained: ExplainedClip) -> None:
        """Add the next clip."""
        if len(self.clips) % self.step == 0:
            self.sections.append(section(explained, clip.name))
        self.clips.append({"path": clip.path, "name": clip.name, **explained.record()})
        if len(self.sections) > 2 * SHOWN:
            self.sections, self.step = self.sections[::2], 2 * self.step

    @property
    def videos(self) -> int:
        """Number of videos read."""
        return len({clip["path"] for clip in self.clips})

    def gallery(self) -> Gallery:
        """The sections, figures and records for the page."""
        sections = [
            *self._sampled_sections(),
            *([Section("All clips", table=table)] if (table := self._table()) else []),
        ]
        return Gallery(tuple(sections), answer_facts(self.clips), {"clips": self.clips})

    def _table(self) -> Table | None:
        """A table of all clips with their times and predictions, if there are more than the page draws."""
        if len(self.clips) <= SHOWN or self.clips[0]["dense"] is None:
            return None
        head = ("clip", "from", "to", "dense", "sieved")
        rows = [
            (
                clip["name"],
                f"{clip['start']:.2f} s",
                f"{clip['end']:.2f} s",
                *(answer_cell(clip[side]) for side in head[3:]),
            )
            for clip in self.clips
        ]
        return Table(head, tuple(rows))

    def _sampled_sections(self) -> list[Section]:
        """At most `SHOWN` sections, evenly spread."""
        count = len(self.sections)
        return [self.sections[i * count // SHOWN] for i in range(SHOWN)] if count > SHOWN else self.sections


def show_clips(
    opened: OpenedModel,
    clips: Iterable[Clip | Failure],
    classes: Sequence[str] | None = None,
    films: Sequence[Path] = (),
    on_clip: Callable[[int], object] = lambda clips: None,
) -> Reel:
    """Explain one clip after the other and write them as films; only one clip is held in memory.

    Args:
        opened: both models and their preprocessing.
        clips: from `clips_of`, or others.
        classes: the names of the classes in index order; see `explain.class_names`.
        films: files .mp4 or .gif to write.
        on_clip: called with the number of clips done.

    Raises:
        InputError: no video could be read, or a film cannot be written.
    """
    preprocessing, reel = opened.preprocessing, Reel()
    assert isinstance(preprocessing, VideoPreprocessing)
    with ExitStack() as files:
        writers = [files.enter_context(film(path)) for path in films]
        for clip in clips:
            if isinstance(clip, Failure):
                reel.failures.append(clip)
                continue
            (explained,) = explain_clips(
                opened.fast, opened.dense, clip.clip[None], clip.times[None], preprocessing, classes
            )
            for writer in writers:
                for picture, seconds in annotated_frames(explained, clip.name):
                    writer.add(picture, seconds)
            reel.add(clip, explained)
            on_clip(len(reel.clips))
        if not reel.clips:
            first = f"; the first: {reel.failures[0]}" if reel.failures else ""
            raise InputError(f"None of {len(reel.failures)} videos could be read{first}.")
    return reel


def annotate(
    opened: OpenedModel,
    source: str | os.PathLike[str],
    films: Sequence[str | os.PathLike[str]],
    classes: Sequence[str] | None = None,
    *,
    whole: bool = False,
) -> Reel:
    """Write a film of a video, or of all videos of a folder or list, that shows the patches the recipe keeps.

    Args:
        opened: from `ModelSpec.open`, or an `OpenedModel` of both models and their `VideoPreprocessing`.
        source: as for `video_set`.
        films: files .mp4 or .gif to write.
        classes: the names of the classes in index order; see `explain.class_names`.
        whole: show all clips of a video, one after the other, instead of the clips of the preprocessing's views.

    Raises:
        InputError: no video could be read, or a film cannot be written.
    """
    preprocessing = opened.preprocessing
    assert isinstance(preprocessing, VideoPreprocessing)
    videos = video_set(Path(source), preprocessing)
    names = {path: Path(path).name for path in map(videos.path, range(len(videos)))}
    return show_clips(opened, clips_of(videos, names, whole=whole), classes, [Path(film_path) for film_path in films])


def section(clip: ExplainedClip, name: str) -> Section:
    """The section of a clip on a page: its predictions and a strip of each layer."""
    lead = f"{clip.times[0]:.2f} to {clip.times[-1]:.2f} s, {len(clip.times)} frames at {clip.moments} moments."
    return Section(name, lead, clip.facts, clip.panels())


def clips_of(videos: Any, names: dict[str, str], *, whole: bool = False) -> Iterator[Clip | Failure]:
    """The clips of a set of videos, one by one: those of its views, or with `whole` all clips one after the other."""
    for index in range(len(videos)):
        path = videos.path(index)
        if whole:
            for window in videos.windows(index):
                yield window if isinstance(window, Failure) else Clip(path, names[path], window.clip, window.times)
            continue
        result = videos.attempt_timed(index)
        if isinstance(result, Failure):
            yield result
            continue
        clips, _, times = result
        for clip, frame_times in zip(clips if clips.ndim == 5 else [clips], times, strict=True):
            yield Clip(path, names[path], clip, frame_times)
