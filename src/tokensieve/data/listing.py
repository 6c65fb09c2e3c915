"""What a folder or a tar holds: pictures, class folders, and what is skipped; the same rules for both."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, features

from ..errors import InputError

FORMATS = frozenset(
    ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "QOI", "TIFF", "WEBP")
)
"""Of Pillow's formats, and of those that plugins add, the ones in which people keep photographs."""
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "__pycache__", "$recycle.bin", "system volume information"))
"""Folders that systems and tools make beside pictures; as hidden as those that begin with a dot."""
HIDDEN_FOLDER, HIDDEN_FILE = "hidden folder", "hidden file"
FOLDER_ABOVE, FOLDER_AGAIN = "link to a folder above it", "folder that is read already"
PICTURE_AGAIN, OLDER = "link to a picture that is read already", "older version in the tar"
LINK_TO_NOTHING, NO_FILE = "link to nothing", "not a regular file"
NOT_OPENED, NO_PICTURES, NO_SUFFIX = "folder that cannot be opened", "folder without pictures", "no extension"
BROKEN_TAR = "tar that cannot be read"
NAMED = 3
"""Names in a note, before it counts the others."""

Parts = tuple[str, ...]
"""A path below its source, part by part."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was not read; `reason` is a kind that can be counted, such as ".txt"."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The pictures of a source in their order, and what else it holds.

    Attributes:
        sources: what opens each picture; see `ImageSet.items`.
        names: under which each is reported.
        labels: class index of each, -1 outside of class folders.
        classes: name of the class folder -> class index.
        skipped: what was not read, in order of path.
        notes: sentences, the source before them, about what changes labels, or is read in part.
    """

    sources: list[Any]
    names: list[str]
    labels: list[int]
    classes: dict[str, int]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


class TarMember:
    """A picture in an uncompressed tar; opened anew each time, so that worker processes share no file position."""

    def __init__(self, path: str, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size

    def open(self) -> BinaryIO:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))


def picture_suffixes() -> frozenset[str]:
    """Endings, in lower case, of the files that are read: what this Pillow, with its plugins, can open of `FORMATS`."""
    # Formats whose library is missing still register their endings.
    missing = {name for name, library in (("JPEG2000", "jpg_2000"), ("WEBP", "webp")) if not features.check(library)}
    known = Image.registered_extensions()  # loads the plugins that Image.OPEN lists
    return frozenset(end for end, name in known.items() if name in FORMATS - missing and name in Image.OPEN)


def list_folder(root: Path, index: Mapping[str, int] | None = None) -> Listing:
    """List the pictures below a folder; links are followed, and nothing is listed twice.

    Args:
        root: the folder.
        index: class index by name of the class folder; by default they are numbered in natural order.

    Raises:
        InputError: the folder cannot be opened, holds no pictures, or a class folder is not in `index`.
    """
    tree = _Tree()
    _scan_folder(tree, str(root))
    return _arrange(tree, 0, index, str(root), lambda parts: os.path.join(root, *parts))


def list_tar(path: Path, index: Mapping[str, int] | None = None) -> Listing:
    """List the pictures in an uncompressed tar, and in tars inside it, whose names then are those of folders.

    A tar of one folder, as `tar cf set.tar set` makes it, holds what that folder holds.

    Arguments and errors as in `list_folder`.
    """
    tree = _Tree()
    try:
        with open(path, "rb") as file:
            _scan_tar(tree, str(path), file)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{path} holds no pictures that can be listed: {reason}.") from error
    return _arrange(tree, _wrapping(tree, index), index, str(path), lambda parts: f"{path}:{'/'.join(parts)}")


class _Tree:
    """Everything below a source, by path: visible folders, pictures and what opens them, and what was skipped."""

    def __init__(self) -> None:
        self.pictures: dict[Parts, Any] = {}
        self.folders: set[Parts] = set()
        self.skipped: list[tuple[Parts, str]] = []
        self.rooted = False
        """Whether a tar lists "." itself: then it holds what is in a folder, and not that folder."""
        self._suffixes = picture_suffixes()

    def skip(self, parts: Parts, reason: str) -> None:
        self.skipped.append((parts, reason))

    def reads(self, parts: Parts) -> bool:
        """Whether a file's ending is that of a picture; if not, it is skipped."""
        suffix = os.path.splitext(parts[-1])[1].lower()
        if suffix not in self._suffixes:
            self.skip(parts, suffix or NO_SUFFIX)
        return suffix in self._suffixes


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _printable(name: str) -> str:
    """A file name whose bytes are no UTF-8, as text that can be printed and written."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _scan_folder(tree: _Tree, root: str) -> None:
    entered: dict[str, Parts] = {}  # real path of a folder -> where in the tree
    folder_links: deque[tuple[str, Parts, str]] = deque()
    file_links: list[tuple[str, Parts]] = []

    def enter(start: str, start_parts: Parts, start_real: str) -> None:
        waiting = [(start, start_parts, start_real)]
        while waiting:
            path, parts, real = waiting.pop()
            if real in entered:
                tree.skip(parts, FOLDER_AGAIN)
                continue
            entered[real] = parts
            if parts:
                tree.folders.add(parts)
            try:
                with os.scandir(path) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not parts:
                    raise InputError(f"{root} cannot be opened: {error.strerror}.") from error
                tree.skip(parts, NOT_OPENED)
                continue
            for entry in found:
                below, kind = (*parts, _printable(entry.name)), _kind(entry)
                if _hidden(entry.name):
                    tree.skip(below, HIDDEN_FOLDER if kind == "folder" else HIDDEN_FILE)
                elif kind == "folder" and entry.is_symlink():
                    folder_links.append((entry.path, below, real))
                elif kind == "folder":
                    waiting.append((entry.path, below, os.path.join(real, entry.name)))
                elif kind == "other":
                    tree.skip(below, NO_FILE)
                elif kind == "nothing" and not os.path.splitext(entry.name)[1]:
                    tree.skip(below, LINK_TO_NOTHING)
                elif tree.reads(below):
                    if entry.is_symlink():
                        file_links.append((entry.path, below))
                    else:
                        tree.pictures[below] = entry.path

    # What really lies here comes before links to it, and what links to folders lead to before links to files.
    enter(root, (), os.path.realpath(root))
    while folder_links:
        path, parts, parent = folder_links.popleft()
        target = os.path.realpath(path)
        if target == parent or Path(target) in Path(parent).parents:
            tree.skip(parts, FOLDER_ABOVE)
        else:
            enter(path, parts, target)
    for path, parts in file_links:
        folder, name = os.path.split(os.path.realpath(path))
        if folder in entered and (*entered[folder], _printable(name)) in tree.pictures:
            tree.skip(parts, PICTURE_AGAIN)
        else:
            tree.pictures[parts] = path


def _kind(entry: os.DirEntry[str]) -> str:
    """ "folder", "file", "nothing" (a link that leads nowhere) or "other" (a pipe, a device), links followed."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other" if os.path.exists(entry.path) else "nothing"
    except OSError:  # a link in a circle, or into a folder that may not be entered
        return "nothing"


def _scan_tar(tree: _Tree, path: str, file: Any) -> None:
    files: dict[Parts, TarMember] = {}
    links: dict[Parts, Parts | None] = {}  # symbolic link -> where it leads; None out of the tar
    hidden: set[Parts] = set()

    def look(tar: tarfile.TarFile, offset: int, above: Parts) -> None:
        for member in tar:
            parts = (*above, *_split(member.name))
            tree.rooted = tree.rooted or not parts
            depth = next((i for i, name in enumerate(parts) if _hidden(name)), None)
            if depth is not None:
                folder = depth < len(parts) - 1 or member.isdir()
                tree.folders.update(parts[:i] for i in range(1, depth + 1))
                if parts[: depth + 1] not in hidden:
                    tree.skip(parts[: depth + 1], HIDDEN_FOLDER if folder else HIDDEN_FILE)
                hidden.add(parts[: depth + 1])
            else:
                tree.folders.update(parts[:i] for i in range(1, len(parts) + member.isdir()))
            if member.isreg() and not member.issparse():
                keep(parts, TarMember(path, offset + member.offset_data, member.size), depth is None, tar, member)
            elif member.islnk():  # a second name of a file: a file like any other once it is unpacked
                target = files.get((*above, *_split(member.linkname)))
                keep(parts, target, depth is None, tar, member)
            elif depth is None and member.issym():
                leads = os.path.normpath(os.path.join(*parts[:-1], member.linkname))
                links[parts] = None if leads.startswith(("/", "..")) else _split(leads)
            elif depth is None and not member.isdir():
                tree.skip(parts, NO_FILE)

    def keep(
        parts: Parts, found: TarMember | None, visible: bool, tar: tarfile.TarFile, member: tarfile.TarInfo
    ) -> None:
        if found is not None:
            files[parts] = found
        if not visible:
            return
        if found is not None and parts[-1].lower().endswith(".tar") and member.isreg():
            inner, above = tar.extractfile(member), (*parts[:-1], parts[-1][:-4])
            assert inner is not None
            try:
                with tarfile.open(fileobj=inner, mode="r:") as child:
                    look(child, found.start, above)
                tree.folders.add(above)
            except (tarfile.TarError, EOFError):
                tree.skip(parts, BROKEN_TAR)
        elif tree.reads(parts):
            if parts in tree.pictures:
                tree.skip(parts, OLDER)
            tree.pictures[parts] = found

    with tarfile.open(fileobj=file, mode="r:") as outer:
        look(outer, 0, ())
    for parts, start in links.items():
        target, steps = start, 0
        while target in links and steps <= len(links):  # from link to link, and not for ever
            target, steps = links[target], steps + 1
        if target is not None and target == parts[: len(target)] != parts:
            tree.skip(parts, FOLDER_ABOVE)
        elif target in tree.folders or (target in hidden and target not in files):
            tree.skip(parts, FOLDER_AGAIN)
        elif target not in files and not os.path.splitext(parts[-1])[1]:
            tree.skip(parts, LINK_TO_NOTHING)
        elif tree.reads(parts):
            if target in tree.pictures and target not in links:
                tree.skip(parts, PICTURE_AGAIN)
            else:
                tree.pictures[parts] = None if target is None else files.get(target)


def _split(name: str) -> Parts:
    return tuple(_printable(part) for part in name.split("/") if part not in ("", ".", ".."))


def _wrapping(tree: _Tree, index: Mapping[str, int] | None) -> int:
    """1 where everything in a tar lies in one folder that is no class by itself; else 0."""
    tops = {parts[0] for parts in (*tree.folders, *tree.pictures)}
    if tree.rooted or len(tops) != 1 or any(len(parts) == 1 for parts in tree.pictures):
        return 0
    (top,) = tops
    return 0 if index is not None and top in index else 1


def _arrange(
    tree: _Tree, base: int, index: Mapping[str, int] | None, source: str, path: Callable[[Parts], str]
) -> Listing:
    """Number the class folders and sort the pictures; the first `base` parts of every path belong to the source."""
    holding = {parts[:-1] for parts in tree.pictures}
    full = {parts[:i] for parts in holding for i in range(len(parts) + 1)}
    folders = {parts for parts in holding if len(parts) > base}
    beside = {parts[:-1] for parts in folders} - folders
    # A folder without pictures counts where its neighbours are classes, and not inside a class folder.
    empty = [parts for parts in tree.folders if parts not in full and parts[:-1] in beside]
    unopened = {parts for parts, reason in tree.skipped if reason == NOT_OPENED}
    for parts in tree.folders - full - unopened - set(empty):
        if parts[:-1] in full:
            tree.skip(parts, NO_PICTURES)
    skipped = tuple(Skipped(path(parts), reason) for parts, reason in sorted(tree.skipped, key=_place))
    if not tree.pictures:
        passed = f" ({count(skipped)})" if skipped else ""
        raise InputError(f"{source} holds no pictures{passed}. What is read: {' '.join(sorted(picture_suffixes()))}.")
    names = sorted({parts[-1] for parts in (*folders, *empty)}, key=_natural)
    classes = {name: i for i, name in enumerate(names)} if index is None else dict(index)
    for name in sorted({parts[-1] for parts in folders}, key=_natural):
        if name not in classes:
            raise InputError(
                f"The class folder '{name}' of {source} is not in the class index: name it there or move it."
            )
    order = sorted(tree.pictures, key=lambda parts: [_natural(part) for part in parts])
    return Listing(
        sources=[tree.pictures[parts] for parts in order],
        names=[path(parts) for parts in order],
        labels=[classes[parts[-2]] if len(parts) > base + 1 else -1 for parts in order],
        classes=classes if folders or index is not None else {},
        skipped=skipped,
        notes=tuple(f"{source}: {note}" for note in _notes(tree, folders, empty, base, classes)),
    )


def _notes(
    tree: _Tree, folders: set[Parts], empty: Sequence[Parts], base: int, classes: Mapping[str, int]
) -> Iterable[str]:
    """What a user should know before believing labels or pictures."""
    missing = sorted({parts[-1] for parts in empty} - {parts[-1] for parts in folders}, key=_natural)
    if len(missing) == 1:
        number = f"; it stays class {classes[missing[0]]}" if missing[0] in classes else ""
        yield f"the class folder {missing[0]} holds no picture{number}."
    elif missing:
        yield f"{len(missing)} class folders hold no picture and keep their numbers: {_few(missing)}."
    places = Counter(parts[-1] for parts in folders)
    for name in sorted((name for name, times in places.items() if times > 1), key=_natural):
        where = sorted("/".join(parts[base:]) for parts in folders if parts[-1] == name)
        yield f"{len(where)} folders are one class, '{name}': {_few(where)}."
    inside = sorted("/".join(parts[base:]) for parts in folders if parts[:-1] in folders)
    if inside:
        yield f"a folder inside a class folder is a class of its own, by its own name: {_few(inside)}."
    loose = sum(len(parts) == base + 1 for parts in tree.pictures)
    if loose and folders:
        yield f"{loose} of {len(tree.pictures)} pictures lie in no class folder and have no label."
    gifs = sum(parts[-1].lower().endswith(".gif") for parts in tree.pictures)
    if gifs:
        yield f"the first frame is read of {gifs} .gif."


def count(skipped: Iterable[Skipped]) -> str:
    """How many of which kind, the most frequent first: "hidden folder 2, .txt 1"."""
    return ", ".join(f"{reason} {times}" for reason, times in Counter(each.reason for each in skipped).most_common())


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _natural(name: str) -> tuple[list[int | str], str]:
    """Sorts "2" before "10", whatever the case."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _place(skipped: tuple[Parts, str]) -> list[Any]:
    return [_natural(part) for part in skipped[0]]
