"""Pictures or videos: what a source holds, and what a model reads of it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("av")

from tests.odd_clips import numbered, write
from tokensieve.data import (
    Failure,
    Preprocessing,
    VideoPreprocessing,
    VideoSet,
    Window,
    load_batches,
    media_set,
    sliding_clips,
)
from tokensieve.data.media import holds_videos
from tokensieve.errors import InputError, RecipeError

HALF = (0.5,) * 3
PICTURES, VIDEOS = Preprocessing((16, 16), HALF, HALF), VideoPreprocessing((16, 16), HALF, HALF, frames=4, stride=2)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A folder of a picture and two videos, the second of them broken."""
    folder = tmp_path / "both"
    write(folder / "clip.mp4", numbered(30))
    (folder / "text.mp4").write_text("no video")
    Image.new("RGB", (20, 18)).save(folder / "picture.png")
    return folder


def test_moving_scenes_are_videos_with_times_for_any_model() -> None:
    first = media_set("moving-scenes", limit=3)
    assert holds_videos("moving-scenes")
    prepared = VideoPreprocessing((32, 48), HALF, HALF, frames=4)
    videos = first.prepared(prepared)
    (batch,) = load_batches(videos, 3)
    assert batch.images.shape == (3, 4, 3, 32, 48)
    assert batch.times is not None
    assert batch.times[0].tolist() == [[0, 0.25, 0.5, 0.75]]
    (window,) = videos.windows(1)
    assert torch.equal(window.clip, batch.images[1])
    with pytest.raises(RecipeError, match="one view"):
        first.prepared(VideoPreprocessing((32, 32), HALF, HALF, views="2x1"))


def test_what_a_source_holds(both: Path, tmp_path: Path) -> None:
    alone = write(tmp_path / "videos" / "run" / "1.mp4", numbered(8))
    (tmp_path / "list.csv").write_text("videos/run/1.mp4,run\n")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(alone, "run/1.mp4")
    (tmp_path / "empty").mkdir()
    for source in (alone, tmp_path / "videos", tmp_path / "list.csv", tmp_path / "set.tar"):
        assert holds_videos(source)
        assert isinstance(media_set(source), VideoSet)
    for source in (both, both / "picture.png", "scenes", tmp_path / "empty", "nowhere"):
        assert not holds_videos(source)
    assert media_set(both).kind.many == "pictures"
    with pytest.raises(InputError, match="holds no pictures"):
        media_set(tmp_path / "empty")


def test_the_model_says_which_is_read(both: Path) -> None:
    assert [Path(path).name for path in paths(media_set(both, PICTURES))] == ["picture.png"]
    videos = media_set(both, VIDEOS)
    assert [Path(path).name for path in paths(videos)] == ["clip.mp4", "text.mp4"]
    assert videos.kind.many == "videos"


def test_a_root_is_of_a_list(both: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("clip.mp4 0\n")
    assert isinstance(media_set(tmp_path / "list.txt", VIDEOS, root=both)[0], tuple)
    with pytest.raises(InputError, match="is not a list of videos"):
        media_set(both, VIDEOS, root=both)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_videos_tell_times_labels_and_failures(both: Path, workers: int) -> None:
    views = VideoPreprocessing((16, 16), HALF, HALF, frames=4, stride=2, views="2x3")
    batches = load_batches(media_set(both, VIDEOS).prepared(views), 2, workers)
    assert batches.kind.one == "video"
    (batch,) = batches
    assert batch.images.shape == (1, 6, 4, 3, 16, 16)
    assert batch.times is not None
    assert batch.times.dtype == torch.float64
    np.testing.assert_allclose(batch.times[0], np.array([[0, 2, 4, 6], [23, 25, 27, 29]]) / 30, atol=1e-6)
    assert batch.labels.tolist() == [-1]
    assert [Path(failure.path).name for failure in batches.failures] == ["text.mp4"]


def test_batches_of_pictures_have_no_times(both: Path) -> None:
    (batch,) = load_batches(media_set(both, PICTURES), 2)
    assert batch.times is None


def test_a_set_is_read_clip_by_clip_too(both: Path) -> None:
    videos: Any = media_set(both, VIDEOS)
    windows = list(videos.windows(0))
    alone = list(sliding_clips(both / "clip.mp4", VIDEOS))
    assert len(windows) == len(alone) == 4
    for window, other in zip(windows, alone, strict=True):
        assert isinstance(window, Window)
        assert torch.equal(window.clip, other.clip)
        assert window.times.tolist() == other.times.tolist()
    assert (windows[0].start, round(windows[0].end * 30)) == (0, 6)
    (failure,) = videos.windows(1)
    assert isinstance(failure, Failure)
    assert str(failure).startswith(f"{both / 'text.mp4'} is not a video that can be read")


def paths(media: Any) -> list[str]:
    return [media.path(index) for index in range(len(media))]
