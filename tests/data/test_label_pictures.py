"""Label pictures written with a palette read back as the same indices."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tokensieve.data import palette, save_labels
from tokensieve.data.label_pictures import label_picture, lookup
from tokensieve.errors import InputError


def test_indices_come_back(tmp_path) -> None:
    labels = torch.arange(256).view(16, 16)
    save_labels(labels, tmp_path / "x.png")
    back = label_picture(tmp_path / "x.png", lookup({value: value for value in range(256)}), 256)
    assert torch.equal(back.long(), labels)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P"
        assert picture.convert("RGB").getpixel((1, 0)) == palette()[1] == (128, 0, 0)


def test_colours_of_ones_own(tmp_path) -> None:
    save_labels(torch.tensor([[0, 1]]), tmp_path / "x.png", [(1, 2, 3), (4, 5, 6)])
    with Image.open(tmp_path / "x.png") as picture:
        assert list(picture.convert("RGB").getdata()) == [(1, 2, 3), (4, 5, 6)]


def test_colours_differ() -> None:
    assert len(set(palette())) == 256
    assert palette()[0] == (0, 0, 0)


@pytest.mark.parametrize(
    ("labels", "name", "sentence"),
    [
        (torch.zeros(2, 2, 2, dtype=torch.int64), "x.png", "integers"),
        (torch.zeros(2, 2), "x.png", "integers"),
        (torch.tensor([[-1]]), "x.png", "from 0 to 255"),
        (torch.tensor([[256]]), "x.png", "up to 255, not 256"),
        (torch.tensor([[1]]), "x.jpg", "must end in .png"),
    ],
)
def test_what_cannot_be_written_is_refused(labels, name, sentence, tmp_path) -> None:
    with pytest.raises(InputError, match=sentence):
        save_labels(labels, tmp_path / name)
