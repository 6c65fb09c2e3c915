"""Scans a folder or a tar for pictures or videos, by file extension, and records what is skipped and why."""

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
"""The formats of Pillow and its plugins that are used for photographs."""
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "__pycache__", "$recycle.bin", "system volume information"))
"""Folders created by operating systems and tools; treated as hidden, like names that begin with a dot."""
HIDDEN_FOLDER, HIDDEN_FILE = "hidden folder", "hidden file"
FOLDER_ABOVE, FOLDER_AGAIN = "link to a folder above it", "folder that is read already"
OLDER, BROKEN_TAR = "older version in the tar", "tar that cannot be read"
LINK_TO_NOTHING, NO_FILE = "link to nothing", "not a regular file"
NOT_OPENED, NO_SUFFIX = "folder that cannot be opened", "no extension"

Parts = tuple[str, ...]
"""The parts of a path relative to its source."""


class TarMember(Opener):
    """A file in an uncompressed tar, local or in a store; opened anew each time, so processes share no position."""

    def __init__(self, path: str, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size

    def open(self) -> BinaryIO:
        with open_file(self.path) as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))


def picture_suffixes() -> frozenset[str]:
    """File extensions, in lower case, of the `FORMATS` that the installed Pillow and its plugins can open."""
    # Formats whose library is missing still register their extensions.
    missing = {name for name, library in (("JPEG2000", "jpg_2000"), ("WEBP", "webp")) if not features.check(library)}
    extensions = Image.registered_extensions()  # loads the plugins that Image.OPEN lists
    return frozenset(
        extension for extension, name in extensions.items() if name in FORMATS - missing and name in Image.OPEN
    )


class Kind(NamedTuple):
    """A kind of files, pictures or videos: its name in singular and plural, and its extensions in lower case."""

    one: str
    many: str
    suffixes: Callable[[], frozenset[str]]


PICTURES = Kind("picture", "pictures", picture_suffixes)


class Tree:
    """The content of a source, by relative path: visible folders, files of a kind, and what was skipped.

    `files` maps the path to something that can be opened: a path, or a `TarMember`.
    """

    def __init__(self, kind: Kind, path: Callable[[Parts], str]) -> None:
        """`path` is a function from the parts of a relative path to the full path."""
        self.kind, self.path = kind, path
        self.files: dict[Parts, Any] = {}
        self.folders: set[Parts] = set()
        self.skipped: list[tuple[Parts, str]] = []
        self.rooted = False
        """Whether a tar lists ".": it then has the content of a folder, not the folder itself."""
        self._suffixes = kind.suffixes()

    def skip(self, parts: Parts, reason: str) -> None:
        self.skipped.append((parts, reason))

    def reads(self, parts: Parts) -> bool:
        """Whether a file has an extension of the kind; if not, it is recorded as skipped."""
        suffix = os.path.splitext(parts[-1])[1].lower()
        if suffix not in self._suffixes:
            self.skip(parts, suffix or NO_SUFFIX)
        return suffix in self._suffixes


def scan(path: Path, kind: Kind = PICTURES) -> Tree:
    """Scan a folder recursively, or an uncompressed tar and the tars inside it.

    Raises:
        InputError: `path` is neither, or cannot be opened.
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
    """A file name with bytes that are not UTF-8 replaced by escapes, so that it can be printed and written."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def scan_folder(tree: Tree, root: str) -> None:
    """Add the content of a folder to the tree, recursively; raises InputError if the folder cannot be opened."""
    entered: dict[str, Parts] = {}  # real path of a folder -> its path in the tree
    folder_links: deque[tuple[str, Parts, str]] = deque()
    file_links: list[tuple[str, Parts]] = []

    def enter(start: str, start_parts: Parts, start_real: str) -> None:
        pending = [(start, start_parts, start_real)]
        while pending:
            path, parts, real = pending.pop()
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
                entry_parts, kind = (*parts, printable(entry.name)), _kind(entry)
                if _hidden(entry.name):
                    tree.skip(entry_parts, HIDDEN_FOLDER if kind == "folder" else HIDDEN_FILE)
                elif kind == "folder" and entry.is_symlink():
                    folder_links.append((entry.path, entry_parts, real))
                elif kind == "folder":
                    pending.append((entry.path, entry_parts, os.path.join(real, entry.name)))
                elif kind == "other":
                    tree.skip(entry_parts, NO_FILE)
                elif kind == "nothing" and not os.path.splitext(entry.name)[1]:
                    tree.skip(entry_parts, LINK_TO_NOTHING)
                elif tree.reads(entry_parts):
                    if entry.is_symlink():
                        file_links.append((entry.path, entry_parts))
                    else:
                        tree.files[entry_parts] = entry.path

    # Real folders and files come first, then links to folders, then links to files, so that links are the duplicates.
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
            tree.skip(parts, _already_read(tree))
        else:
            tree.files[parts] = path


def _already_read(tree: Tree) -> str:
    return f"link to a {tree.kind.one} that is read already"


def _kind(entry: os.DirEntry[str]) -> str:
    """ "folder", "file", "nothing" (a broken link) or "other" (a pipe, a device), with links followed."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other" if os.path.exists(entry.path) else "nothing"
    except OSError:  # a circular link, or a link into a folder without permission
        return "nothing"


def scan_tar(tree: Tree, path: str, file: Any) -> None:
    """Add the content of a tar, opened as `file`, to the tree; raises tarfile.TarError if it is not a tar."""
    files: dict[Parts, TarMember] = {}
    links: dict[Parts, Parts | None] = {}  # symbolic link -> its target; None if that is outside the tar
    hidden: set[Parts] = set()

    def scan_members(tar: tarfile.TarFile, offset: int, parent: Parts) -> None:
        for member in tar:
            parts = (*parent, *_split(member.name))
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
                add(parts, TarMember(path, offset + member.offset_data, member.size), depth is None, tar, member)
            elif member.islnk():  # a hard link: an ordinary file once it is unpacked
                target = files.get((*parent, *_split(member.linkname)))
                add(parts, target, depth is None, tar, member)
            elif depth is None and member.issym():
                target_path = os.path.normpath(os.path.join(*parts[:-1], member.linkname))
                links[parts] = None if target_path.startswith(("/", "..")) else _split(target_path)
            elif depth is None and not member.isdir():
                tree.skip(parts, NO_FILE)

    def add(
        parts: Parts, content: TarMember | None, visible: bool, tar: tarfile.TarFile, member: tarfile.TarInfo
    ) -> None:
        if content is not None:
            files[parts] = content
        if not visible:
            return
        if content is not None and parts[-1].lower().endswith(".tar") and member.isreg():
            inner, folder = tar.extractfile(member), (*parts[:-1], parts[-1][:-4])
            assert inner is not None
            try:
                with tarfile.open(fileobj=inner, mode="r:") as inner_tar:
                    scan_members(inner_tar, content.start, folder)
                tree.folders.add(folder)
            except (tarfile.TarError, EOFError):
                tree.skip(parts, BROKEN_TAR)
        elif tree.reads(parts):
            if parts in tree.files:
                tree.skip(parts, OLDER)
            tree.files[parts] = content

    with tarfile.open(fileobj=file, mode="r:") as outer_tar:
        scan_members(outer_tar, 0, ())
    for parts, start in links.items():
        target, steps = start, 0
        while target in links and steps <= len(links):  # follow links to links; the bound ends circles
            target, steps = links[target], steps + 1
        if target is not None and target == parts[: len(target)] != parts:
            tree.skip(parts, FOLDER_ABOVE)
        elif target in tree.folders or (target in hidden and target not in files):
            tree.skip(parts, FOLDER_AGAIN)
        elif target not in files and not os.path.splitext(parts[-1])[1]:
            tree.skip(parts, LINK_TO_NOTHING)
        elif tree.reads(parts):
            if target in tree.files and target not in links:
                tree.skip(parts, _already_read(tree))
            else:
                tree.files[parts] = None if target is None else files.get(target)


def _split(name: str) -> Parts:
    return tuple(printable(part) for part in name.split("/") if part not in ("", ".", ".."))
