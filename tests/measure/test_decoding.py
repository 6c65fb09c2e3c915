"""Decoding: how many pictures a second, and which of them are kept. The clock is a fake one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tokensieve import InputError
from tokensieve.data import Batch, Failure, Preprocessing, image_set, load_batches
from tokensieve.measure import decoding as module
from tokensieve.measure.decoding import decoding


class Timed:
    """Batches of two pictures; each takes its time on the clock. Picture i is filled with i."""

    def __init__(self, seconds, monkeypatch):
        self.seconds, self.now, self.failures = seconds, 100.0, [Failure("x.jpg", "does not exist")]
        monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def __iter__(self):
        for index, seconds in enumerate(self.seconds):
            self.now += seconds
            images = torch.tensor([2.0 * index, 2.0 * index + 1])[:, None, None, None].expand(2, 3, 4, 4)
            yield Batch(images, torch.zeros(2), ("a", "b"))


def test_the_rate_is_of_all_pictures_where_nothing_starts_up(monkeypatch):
    found, images = decoding(Timed([1, 1, 2], monkeypatch), keep=2, workers=0)
    assert found.per_second == pytest.approx(6 / 4)
    assert (found.pictures, found.workers) == (6, 0)
    assert [failure.path for failure in found.failures] == ["x.jpg"]
    assert images[:, 0, 0, 0].tolist() == [0, 1]


def test_the_start_of_workers_does_not_count(monkeypatch):
    found, _ = decoding(Timed([30, 0, 1, 1], monkeypatch), keep=2, workers=2, seconds=100)
    assert found.per_second == pytest.approx(4 / 2)  # the last two batches


def test_a_set_smaller_than_its_workers_still_has_a_rate(monkeypatch):
    found, _ = decoding(Timed([4], monkeypatch), keep=2, workers=3)
    assert found.per_second == pytest.approx(2 / 4)


def test_it_stops_after_the_seconds_but_not_before_it_has_what_to_keep(monkeypatch):
    found, images = decoding(Timed([1] * 10, monkeypatch), keep=5, workers=0, seconds=0)
    assert found.pictures == 6
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert decoding(Timed([1] * 10, monkeypatch), keep=1, workers=0, seconds=4)[0].pictures == 8


def test_it_stops_when_the_rate_is_known(monkeypatch):
    monkeypatch.setattr(module, "ENOUGH", 4)
    assert decoding(Timed([1] * 10, monkeypatch), keep=2, workers=0, seconds=100)[0].pictures == 4


def test_a_small_set_is_repeated(monkeypatch):
    _, images = decoding(Timed([1], monkeypatch), keep=5, workers=0)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 0]


def test_nothing_to_read_is_a_sentence(monkeypatch):
    with pytest.raises(InputError, match="None of 1 pictures could be read"):
        decoding(Timed([], monkeypatch), keep=2, workers=0)


def test_files_come_as_the_model_reads_them(tmp_path):
    for name in "abc":
        Image.fromarray(np.full((30, 40, 3), 255, np.uint8)).save(tmp_path / f"{name}.png")
    prepared = Preprocessing((16, 24), (0.5,) * 3, (0.5,) * 3)
    found, images = decoding(load_batches(image_set(tmp_path, prepared), 2), keep=4, workers=0, seconds=0)
    assert found.pictures == 3
    assert found.per_second > 0
    assert images.shape == (4, 3, 16, 24)
    assert torch.allclose(images, torch.ones(()))
