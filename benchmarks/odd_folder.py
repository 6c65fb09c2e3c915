"""What becomes of each oddity in a folder of pictures, and in a tar of it -> results/odd_folder.csv.

    python benchmarks/odd_folder.py

Each oddity lies beside two class folders, "a" and "d", of two good pictures each; the last rows have all of them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import PIL

from results import ROOT, write

sys.path.insert(0, str(ROOT))  # the oddities are shared with the tests
from tests.oddities import ODDITIES, odd_folder, packed
from tokensieve.data import Preprocessing, image_set, load_batches
from tokensieve.show.files import files_record


def main() -> int:
    rows, wrong = [], 0
    prepared = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    for oddity in (*ODDITIES, ""):
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "set"
            expected = odd_folder(root, *([oddity] if oddity else []))
            for kind, source in (("folder", root), ("tar", packed(root, Path(scratch) / "set.tar"))):
                pictures = image_set(source, prepared)
                batches = load_batches(pictures, 16)
                read = sum(len(batch.images) for batch in batches)
                files = files_record(pictures, read, batches.failures)["files"]
                numbered = {name: i for i, name in enumerate(expected.classes)}
                right = files == {
                    "of": "pictures",
                    "found": expected.read + expected.failed,
                    "read": expected.read,
                    "failed": expected.failed,
                    "skipped": expected.skipped,
                }
                right = right and pictures.classes == numbered
                wrong += not right
                rows.append(
                    {
                        "oddity": oddity or "all of them",
                        "source": kind,
                        "read": read,
                        "failed": files["failed"],
                        "skipped": sum(files["skipped"].values()),
                        "kinds": ", ".join(f"{name} {count}" for name, count in files["skipped"].items()),
                        "reasons": "; ".join(sorted({failure.reason for failure in batches.failures})),
                        "classes": " ".join(f"{name}={i}" for name, i in pictures.classes.items()),
                        "said": " ".join(note.removeprefix(f"{source}: ") for note in pictures.notes),
                        "as_expected": right,
                        "pillow": PIL.__version__,
                    }
                )
    write("odd_folder.csv", rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
