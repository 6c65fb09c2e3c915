"""Opens the sources of a job (folders, tars, lists, tables and files, local or in object storage) as one dataset, with
an id for each item."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..data import ImageSet, Preprocessing, Scenes, Skipped, VideoPreprocessing, VideoSet, moving_scene_set
from ..data.images import SCENES, Listed
from ..data.listing import Listing, list_folder, list_tar, natural
from ..data.remote import Opener, RemoteFile, find, is_url, open_file
from ..data.scanning import PICTURES, Kind, Tree, printable, scan_tar
from ..data.scenes import ScenePictures
from ..data.video import GENERATED, MOVING_SCENES
from ..data.video_lists import LISTS, found_file, read_list
from ..data.video_reading import VIDEOS
from ..errors import InputError, first_line
from .rows import dataset_rows, parquet_rows

HUB = "hfds/"
STREAMED = ("hfids/", "tfds/", "wds/")
"""Prefixes of timm datasets that can only be read in order from the beginning."""
PARQUET = ".parquet"


@dataclass(frozen=True)
class SourceSettings:
    """How sources are read.

    Attributes:
        limit: the largest number of items, spread evenly over all of them.
        root: the folder to which paths in a list are relative; by default the folder of the list.
        split: the split of a dataset.
        image_column, id_column: columns of a table; see `rows.parquet_rows`.
    """

    limit: int | None = None
    root: str | None = None
    split: str = "train"
    image_column: str | None = None
    id_column: str | None = None


class _Items(NamedTuple):
    """The items of one source."""

    anchor: str
    """The folder, file or name to which `names` are relative; ids have it as a prefix if there are several sources."""
    names: list[str]
    openers: list[Any]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


def open_items(
    sources: Sequence[str], preprocessing: Preprocessing | VideoPreprocessing, settings: SourceSettings
) -> ImageSet:
    """A dataset of the pictures of all sources, or of the videos for a `VideoPreprocessing`; `path(i)` is the id of
    item i.

    An id is the path relative to its source: in a folder or a tar, as written in a list, or NAME.parquet#ROW in a
    table. With several sources it starts with the path of the source, relative to their common folder.

    Raises:
        InputError: a source does not exist, or has nothing that the model reads; or two items have the same id.
    """
    kind = PICTURES
    if isinstance(preprocessing, VideoPreprocessing):
        kind = VIDEOS
        if list(sources) == [MOVING_SCENES] and not Path(MOVING_SCENES).exists():
            return moving_scene_set(preprocessing, settings.limit or GENERATED)
    items_by_source = [_find(source, kind, settings) for source in sources]
    prefixes = _prefixes([items.anchor for items in items_by_source])
    ids = [prefix + name for prefix, items in zip(prefixes, items_by_source, strict=True) for name in items.names]
    _check_unique(ids)
    listing = Listing(
        sources=[opener for items in items_by_source for opener in items.openers],
        names=ids,
        labels=[-1] * len(ids),
        classes={},
        skipped=tuple(skipped for items in items_by_source for skipped in items.skipped),
        notes=tuple(note for items in items_by_source for note in items.notes),
    )
    if isinstance(preprocessing, VideoPreprocessing):
        return VideoSet(listing, preprocessing, settings.limit)
    set_arguments: dict[str, Any] = {"skipped": listing.skipped, "notes": listing.notes, "limit": settings.limit}
    return ImageSet(Listed(listing), preprocessing.transform(), names=ids, **set_arguments)


def fingerprint(items: ImageSet) -> str:
    """SHA-256 of the ids of all items, in order."""
    digest = hashlib.sha256()
    for index in range(len(items)):
        digest.update(items.path(index).encode() + b"\n")
    return digest.hexdigest()


def _check_unique(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for item_id in ids:
        if item_id in seen:
            raise InputError(f"Two items have the id {item_id}, which must be unique: leave one of them out.")
        seen.add(item_id)


def _prefixes(anchors: Sequence[str]) -> list[str]:
    """The prefix of ids for each source: its path relative to the sources' common folder; empty for one source."""
    if len(anchors) < 2:
        return [""] * len(anchors)
    local = [anchor for anchor in anchors if anchor.startswith(os.sep)]
    common = os.path.commonpath(local) if local else ""
    paths = [os.path.relpath(anchor, common) if anchor in local else anchor for anchor in anchors]
    return ["" if name == "." else f"{name}/".replace(os.sep, "/") for name in paths]


def _find(source: str, kind: Kind, settings: SourceSettings) -> _Items:
    if is_url(source):
        return _find_remote(source, kind, settings)
    path = Path(source)
    anchor = os.path.abspath(source)
    if path.is_dir():
        return _folder(path, anchor, kind, settings)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".tar":
            return _listed(list_tar(path, kind=kind), f"{path}:", anchor)
        if suffix == PARQUET:
            _only_pictures(source, kind)
            return _Items(os.path.dirname(anchor), *parquet_rows(source, path.name, *_columns(settings)))
        if suffix in LISTS:
            return _list(path, kind, settings)
        return _Items(os.path.dirname(anchor), [printable(path.name)], [path])
    if source == "scenes" and kind is PICTURES:
        pictures = ScenePictures(Scenes("validation", settings.limit or SCENES))
        return _Items(
            source, [f"{i}" for i in range(len(pictures))], [_Scene(pictures, i) for i in range(len(pictures))]
        )
    if source.startswith(HUB):
        _only_pictures(source, kind)
        name = source.removeprefix(HUB)
        return _Items(source, *dataset_rows(name, settings.split, *_columns(settings), saved=False))
    if source.startswith(STREAMED):
        raise InputError(
            f"{source} can only be read from its beginning, so an interrupted job could not be resumed: give its tars "
            f"or Parquet files, or {HUB}NAME."
        )
    raise InputError(
        f"{source} does not exist: give a folder, a tar, a list, a Parquet file, {kind.one} files, {HUB}NAME or a URL."
    )


def _columns(settings: SourceSettings) -> tuple[str | None, str | None]:
    return settings.image_column, settings.id_column


def _only_pictures(source: str, kind: Kind) -> None:
    if kind is not PICTURES:
        raise InputError(f"{source} is a table, from which only pictures are read, but the model reads {kind.many}.")


def _folder(path: Path, anchor: str, kind: Kind, settings: SourceSettings) -> _Items:
    """The items of a folder: a dataset saved by `datasets`, pictures or videos, or Parquet files."""
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        _only_pictures(str(path), kind)
        return _Items(anchor, *dataset_rows(str(path), settings.split, *_columns(settings), saved=True))
    try:
        return _listed(list_folder(path, kind=kind), os.path.join(path, ""), anchor)
    except InputError:
        tables = sorted(path.rglob(f"*{PARQUET}"), key=lambda file: natural(str(file)))
        if not tables or kind is not PICTURES:
            raise
    rows = [parquet_rows(str(file), file.relative_to(path).as_posix(), *_columns(settings)) for file in tables]
    return _Items(anchor, [name for names, _ in rows for name in names], [cell for _, cells in rows for cell in cells])


def _listed(listing: Listing, prefix: str, anchor: str) -> _Items:
    """The items of a listing, with the prefix removed from their names."""
    names = [name.removeprefix(prefix).replace(os.sep, "/") for name in listing.names]
    empty = (note.partition(";")[0].rstrip(".") + "." for note in listing.notes if re.search(r" holds? no ", note))
    notes = (*empty, *(note for note in listing.notes if ".gif" in note))  # other notes are about labels
    return _Items(anchor, names, listing.sources, listing.skipped, notes)


def _list(path: Path, kind: Kind, settings: SourceSettings) -> _Items:
    names = [name for name, _ in read_list(path, settings.root)]
    folder = Path(settings.root) if settings.root is not None else path.parent
    openers: list[Any] = [RemoteFile(name) if is_url(name) else folder / name for name in names]
    if kind is VIDEOS:
        openers = [found_file(opener) if isinstance(opener, Path) else opener for opener in openers]
    return _Items(os.path.abspath(folder), names, openers)


class _Scene(Opener):
    """A generated picture."""

    def __init__(self, pictures: ScenePictures, index: int) -> None:
        self.pictures, self.index = pictures, index

    def open(self) -> Any:
        return self.pictures[self.index][0]


def _find_remote(url: str, kind: Kind, settings: SourceSettings) -> _Items:
    """The items at a URL of a store. In a folder they are found by file extension; hidden files are left out."""
    folder, _, last = url.rstrip("/").rpartition("/")
    suffix = os.path.splitext(last)[1].lower()
    if suffix == ".tar":
        return _remote_tar(url, kind)
    if suffix == PARQUET:
        _only_pictures(url, kind)
        return _Items(folder, *parquet_rows(url, last, *_columns(settings)))
    if suffix in LISTS:
        with open_file(url) as file:
            names = [line.strip() for line in file.read().decode("utf-8-sig").splitlines() if line.strip()]
        root = (settings.root or folder).rstrip("/")
        return _Items(root, names, [RemoteFile(name if is_url(name) else f"{root}/{name}") for name in names])
    if suffix in kind.suffixes():
        return _Items(folder, [last], [RemoteFile(url)])
    files = {
        name: file_url for name, file_url in find(url).items() if not any(part[:1] == "." for part in name.split("/"))
    }
    names = [name for name in files if os.path.splitext(name)[1].lower() in kind.suffixes()]
    if not names and kind is PICTURES and (tables := [name for name in files if name.endswith(PARQUET)]):
        rows = [parquet_rows(files[name], name, *_columns(settings)) for name in sorted(tables, key=natural)]
        return _Items(
            url, [name for row_ids, _ in rows for name in row_ids], [cell for _, cells in rows for cell in cells]
        )
    if not names:
        raise InputError(f"{url} holds no {kind.many}. Extensions that are read: {' '.join(sorted(kind.suffixes()))}.")
    names.sort(key=lambda name: [natural(part) for part in name.split("/")])
    ignored = [name for name in files if name not in set(names)]
    skipped = [Skipped(files[name], os.path.splitext(name)[1].lower() or "no extension") for name in ignored]
    return _Items(url, names, [RemoteFile(files[name]) for name in names], tuple(skipped))


def _remote_tar(url: str, kind: Kind) -> _Items:
    tree = Tree(kind, lambda parts: f"{url}:{'/'.join(parts)}")
    try:
        with open_file(url) as file:
            scan_tar(tree, url, file)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{url} holds no {kind.many} that can be listed: {first_line(error)}.") from error
    if not tree.files:
        raise InputError(f"{url} holds no {kind.many}. Extensions that are read: {' '.join(sorted(kind.suffixes()))}.")
    order = sorted(tree.files, key=lambda parts: [natural(part) for part in parts])
    skipped = tuple(Skipped(tree.path(parts), reason) for parts, reason in tree.skipped)
    return _Items(url, ["/".join(parts) for parts in order], [tree.files[parts] for parts in order], skipped)
