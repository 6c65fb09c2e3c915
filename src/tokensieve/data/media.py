"""Opens a set of pictures or of videos, depending on the preprocessing or the source."""

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
    """Open a set of pictures by `image_set`, or of videos by `video_set`.

    Args:
        source: as in these functions.
        preprocessing: `Preprocessing` opens pictures, `VideoPreprocessing` videos. None: whichever the source holds,
            pictures if it holds both, with a placeholder preprocessing, to be replaced by `prepared()` of the result.
        classes: a class-index file, or its content.
        limit: the largest number of pictures or videos.
        root: the folder to which paths in a list of videos are relative.

    Raises:
        InputError: as in these functions; also a `root` for a source that is not a list.
        RecipeError: a limit below 1.
    """
    settings: dict[str, Any] = {"classes": classes, "limit": limit}
    if root is not None and Path(source).suffix.lower() not in LISTS:
        raise InputError(f"{source} is not a list of videos: leave out root={root}, the folder of a list's paths.")
    if isinstance(preprocessing, VideoPreprocessing) or (preprocessing is None and holds_videos(source)):
        return video_set(source, preprocessing or VideoPreprocessing((32, 32), _GREY, _GREY), root=root, **settings)
    return image_set(source, preprocessing or Preprocessing((1, 1), _GREY, _GREY), **settings)


def holds_videos(source: str | Path) -> bool:
    """Whether a source is a video, a list of videos, moving scenes, or a folder or tar of videos without pictures."""
    path = Path(source)
    list_files = list_folder if path.is_dir() else list_tar
    if str(source) == MOVING_SCENES and not path.exists():
        return True
    if path.is_file() and path.suffix.lower() in SUFFIXES | LISTS:
        return True
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".tar"):
        return False
    try:
        list_files(path)
        return False
    except InputError:
        try:
            list_files(path, kind=VIDEOS)
            return True
        except InputError:
            return False
