"""Small folders of pictures for the tests of commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def two_classes(root: Path, each: int = 3) -> Path:
    """Two class folders of `each` pictures, and a file that is none."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(each):
            Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    (root / "dog" / "broken.jpg").write_text("not a picture")
    return root
