"""Small pictures of every kind that turns up in real folders."""

import numpy as np
import pytest
from PIL import Image

from tokensieve.data import Preprocessing


@pytest.fixture
def small():
    return Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def save(tmp_path):
    """save(name, value=0, size=(20, 18)): a plain picture of one grey, folders included; gives its path."""

    def write(name, value=0, size=(20, 18)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (value,) * 3).save(path, format="PNG" if path.suffix == ".png" else "JPEG")
        return path

    return write


@pytest.fixture
def noise():
    """noise(mode): a picture 20 x 18 of that mode."""
    rng = np.random.default_rng(0)

    def make(mode):
        return Image.fromarray(rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)).convert(mode)

    return make
