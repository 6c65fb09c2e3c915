"""Pictures or videos, whichever a model reads or a source holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .images import ImageSet, StreamSet, image_set
from .listing import list_folder, list_tar
from .preprocessing import Preprocessing
from .video import MOVING_SCENES, video_set
from .video_lists import LISTS
from .video_preprocessing import VideoPreprocessing
from .video_reading import SUFFIXES, VIDEOS

_GREY = (0.5,) * 3


def media_set(
    source: str | Path,
    preprocessing: Preprocessing | VideoPreprocessing | None = None,
    *,
    classes: str | Path | Sequence[str] | Mapping[str, object] | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
) -> ImageSet | StreamSet:
    """Open a set of pictures or of videos, as `image_set` and `video_set` do.

    Args:
        source: as of these two.
        preprocessing: says by its kind which is meant. Without one it is what the source holds, pictures where it
            holds both, made tensors in some way: `prepared()` on what is returned comes later.
        classes: a class-index file, or its content.
        limit: at most so many.
        root: folder that the paths of a list of videos are relative to.

    Raises:
        InputError: as of these two; a `root` for anything but a list.
        RecipeError: a limit below 1.
    """
    settings: dict[str, Any] = {"classes": classes, "limit": limit}
    if root is not None and Path(source).suffix.lower() not in LISTS:
        raise InputError(f"{source} is no list of videos, whose paths could begin in {root}.")
    if isinstance(preprocessing, VideoPreprocessing) or (preprocessing is None and holds_videos(source)):
        return video_set(source, preprocessing or VideoPreprocessing((32, 32), _GREY, _GREY), root=root, **settings)
    return image_set(source, preprocessing or Preprocessing((1, 1), _GREY, _GREY), **settings)


def holds_videos(source: str | Path) -> bool:
    """Whether a source is a video, a list of them, moving scenes, or a folder or tar of videos and no pictures."""
    path = Path(source)
    listed = list_folder if path.is_dir() else list_tar
    if str(source) == MOVING_SCENES and not path.exists():
        return True
    if path.is_file() and path.suffix.lower() in SUFFIXES | LISTS:
        return True
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".tar"):
        return False
    try:
        listed(path)
        return False
    except InputError:
        try:
            listed(path, kind=VIDEOS)
            return True
        except InputError:
            return False
