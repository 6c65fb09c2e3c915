"""What lies in a folder or a tar: pictures or videos by their ending, visible folders, what is skipped and why."""

from __future__ import annotations

import io
import os
import tarfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, features

from ..errors import InputError
from .remote import Opener, open_file

FORMATS = frozenset(
    ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "QOI", "TIFF", "WEBP")
)
"""Of Pillow's formats, and of those that plugins add, the ones in which people keep photographs."""
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "__pycache__", "$recycle.bin", "system volume information"))
"""Folders that systems and tools make beside pictures; hidden too, like those that begin with a dot."""
HIDDEN_FOLDER, HIDDEN_FILE = "hidden folder", "hidden file"
FOLDER_ABOVE, FOLDER_AGAIN = "link to a folder above it", "folder that is read already"
OLDER, BROKEN_TAR = "older version in the tar", "tar that cannot be read"
LINK_TO_NOTHING, NO_FILE = "link to nothing", "not a regular file"
NOT_OPENED, NO_SUFFIX = "folder that cannot be opened", "no extension"

Parts = tuple[str, ...]
"""A path below its source, part by part."""


class TarMember(Opener):
    """A file in an uncompressed tar, here or in a store; opened anew each time, so that processes share no position."""

    def __init__(self, path: str, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size

    def open(self) -> BinaryIO:
        with open_file(self.path) as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))


def picture_suffixes() -> frozenset[str]:
    """Endings, in lower case, of the files that are read: what this Pillow, with its plugins, can open of `FORMATS`."""
    # Formats whose library is missing still register their endings.
    missing = {name for name, library in (("JPEG2000", "jpg_2000"), ("WEBP", "webp")) if not features.check(library)}
    extensions = Image.registered_extensions()  # loads the plugins that Image.OPEN lists
    return frozenset(end for end, name in extensions.items() if name in FORMATS - missing and name in Image.OPEN)


class Kind(NamedTuple):
    """A kind of files: its name in singular and plural, and the endings of its files in lower case."""

    one: str
    many: str
    suffixes: Callable[[], frozenset[str]]


PICTURES = Kind("picture", "pictures", picture_suffixes)


class Tree:
    """Everything below a source, by path: visible folders, files of a kind and what opens them, what was skipped."""

    def __init__(self, kind: Kind, path: Callable[[Parts], str]) -> None:
        """`path` is the full name of what lies at some parts below the source."""
        self.kind, self.path = kind, path
        self.files: dict[Parts, Any] = {}
        self.folders: set[Parts] = set()
        self.skipped: list[tuple[Parts, str]] = []
        self.rooted = False
        """Whether a tar lists "." itself: then it holds what is in a folder, and not that folder."""
        self._suffixes = kind.suffixes()

    def skip(self, parts: Parts, reason: str) -> None:
        self.skipped.append((parts, reason))

    def reads(self, parts: Parts) -> bool:
        """Whether a file's ending is one of the kind's; if not, it is skipped."""
        suffix = os.path.splitext(parts[-1])[1].lower()
        if suffix not in self._suffixes:
            self.skip(parts, suffix or NO_SUFFIX)
        return suffix in self._suffixes


def scan(path: Path, kind: Kind = PICTURES) -> Tree:
    """Everything below a folder, or in an uncompressed tar and in tars inside it.

    Raises:
        InputError: neither is at `path`, or it cannot be opened.
    """
    if path.is_dir():
        tree = Tree(kind, lambda parts: os.path.join(path, *parts))
        scan_folder(tree, str(path))
        return tree
    if not path.exists():
        raise InputError(f"{path} does not exist: give a folder or a tar.")
    tree = Tree(kind, lambda parts: f"{path}:{'/'.join(parts)}")
    try:
        with open(path, "rb") as file:
            scan_tar(tree, str(path), file)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{path} holds no {kind.many} that can be listed: {reason}.") from error
    return tree


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def printable(name: str) -> str:
    """A file name whose bytes are no UTF-8, as text that can be printed and written."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def scan_folder(tree: Tree, root: str) -> None:
    """Add what lies below a folder; raises InputError where it cannot be opened."""
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
                    sorted_entries = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not parts:
                    raise InputError(f"{root} cannot be opened: {error.strerror}.") from error
                tree.skip(parts, NOT_OPENED)
                continue
            for entry in sorted_entries:
                below, kind = (*parts, printable(entry.name)), _kind(entry)
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
                        tree.files[below] = entry.path

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
        if folder in entered and (*entered[folder], printable(name)) in tree.files:
            tree.skip(parts, _again(tree))
        else:
            tree.files[parts] = path


def _again(tree: Tree) -> str:
    return f"link to a {tree.kind.one} that is read already"


def _kind(entry: os.DirEntry[str]) -> str:
    """ "folder", "file", "nothing" (a link that leads nowhere) or "other" (a pipe, a device), links followed."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other" if os.path.exists(entry.path) else "nothing"
    except OSError:  # a link in a circle, or into a folder that may not be entered
        return "nothing"


def scan_tar(tree: Tree, path: str, file: Any) -> None:
    """Add what a tar, opened as `file`, holds; raises tarfile.TarError where it is none."""
    files: dict[Parts, TarMember] = {}
    links: dict[Parts, Parts | None] = {}  # symbolic link -> where it leads; None out of the tar
    hidden: set[Parts] = set()

    def look(tar: tarfile.TarFile, offset: int, above: Parts) -> None:
        for member in tar:
            parts = (*above, *_split(member.name))
            if not parts:
                tree.rooted = True
                continue
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
        parts: Parts, content: TarMember | None, visible: bool, tar: tarfile.TarFile, member: tarfile.TarInfo
    ) -> None:
        if content is not None:
            files[parts] = content
        if not visible:
            return
        if content is not None and parts[-1].lower().endswith(".tar") and member.isreg():
            inner, above = tar.extractfile(member), (*parts[:-1], parts[-1][:-4])
            assert inner is not None
            try:
                with tarfile.open(fileobj=inner, mode="r:") as child:
                    look(child, content.start, above)
                tree.folders.add(above)
            except (tarfile.TarError, EOFError):
                tree.skip(parts, BROKEN_TAR)
        elif tree.reads(parts):
            if parts in tree.files:
                tree.skip(parts, OLDER)
            tree.files[parts] = content

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
            if target in tree.files and target not in links:
                tree.skip(parts, _again(tree))
            else:
                tree.files[parts] = None if target is None else files.get(target)


def _split(name: str) -> Parts:
    return tuple(printable(part) for part in name.split("/") if part not in ("", ".", ".."))
