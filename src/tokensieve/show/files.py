"""Files that were read, failed or were skipped: counted in every record and table, and named on stderr."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..data.scanning import PICTURES

if TYPE_CHECKING:
    from ..data import Failure, Skipped

NAMED = 3
"""Number of skipped files and folders that are named for each reason."""


def files_record(pictures: Any, read: int, failures: Sequence[Failure]) -> dict[str, Any]:
    """The parts `files` (counts), `skipped` and `failures` (each with path and reason) of a command's record.

    Args:
        pictures: a dataset of pictures or videos; it may have `total` and `skipped`.
        read: number of pictures that went through the model.
        failures: pictures that could not be read.
    """
    skipped: Sequence[Skipped] = getattr(pictures, "skipped", ())
    return {
        "files": {
            "of": getattr(pictures, "kind", PICTURES).many,
            "total": getattr(pictures, "total", None),
            "read": read,
            "failed": len(failures),
            "skipped": dict(Counter(entry.reason for entry in skipped).most_common()),
        },
        "skipped": [asdict(entry) for entry in skipped],
        "failures": [asdict(failure) for failure in failures],
    }


def files_line(files: dict[str, Any]) -> str:
    """The counts of a record's `files` as text: "12 of 40 pictures read, 1 failed, 3 skipped (.txt 2, ...)"."""
    many: str = files.get("of", PICTURES.many)
    read, failed, total, skipped = files["read"], files["failed"], files["total"], files["skipped"]
    of = f" of {total}" if total is not None and total > read + failed else ""
    pictures = many.removesuffix("s") if f"{read}{of}" == "1" else many
    kinds = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
    return f"{read}{of} {pictures} read, {failed} failed, {sum(skipped.values())} skipped" + (kinds and f" ({kinds})")


def tell_files(pictures: Any) -> None:
    """Print to stderr the files that a dataset skips, by reason, and its other notes."""
    paths_by_reason: dict[str, list[str]] = {}
    for entry in getattr(pictures, "skipped", ()):
        paths_by_reason.setdefault(entry.reason, []).append(entry.path)
    if paths_by_reason:
        total = sum(map(len, paths_by_reason.values()))
        print(f"tokensieve: {total} skipped, which {'is' if total == 1 else 'are'} not read:", file=sys.stderr)
    for reason, paths in sorted(paths_by_reason.items(), key=lambda item: -len(item[1])):
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        print(f"  {reason} {len(paths)}: {', '.join(paths[:NAMED])}{more}", file=sys.stderr)
    for note in getattr(pictures, "notes", ()):
        print(f"tokensieve: {note}", file=sys.stderr)
