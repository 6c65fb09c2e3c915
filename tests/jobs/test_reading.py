"""Batches of a shard are full, in order, and depend on its items alone."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

from tokensieve.data import ImageSet
from tokensieve.data.images import UnusableError
from tokensieve.errors import InputError
from tokensieve.jobs.reading import AT_ONCE, Reader


class Numbers:
    """Items that are their own number; some cannot be read."""

    def __init__(self, count, bad):
        self.count, self.bad = count, set(bad)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise UnusableError("is bad")
        return index, -1


class NumberSet(ImageSet):
    def __init__(self, count, bad=()):
        super().__init__(Numbers(count, bad), torch.as_tensor, names=[f"{i}" for i in range(count)])

    def _read(self, source):
        return torch.tensor([float(source)])


def read(count, bad, shards, *, shard, batch, workers=0):
    found = {}
    for each in Reader(NumberSet(count, bad), shards, shard=shard, batch=batch, workers=workers):
        found.setdefault(each.shard, []).append(each)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_full_whatever_cannot_be_read(seed):
    draw = np.random.default_rng(seed)
    count, batch = int(draw.integers(1, 300)), int(draw.integers(1, 2 * AT_ONCE))
    shard = batch * int(draw.integers(1, 6))
    bad = set(np.flatnonzero(draw.random(count) < draw.choice([0, 0.2, 0.9, 1])).tolist())
    shards = range(-(-count // shard))
    found = read(count, bad, shards, shard=shard, batch=batch)
    assert list(found) == list(shards)
    for number, batches in found.items():
        own = range(number * shard, min((number + 1) * shard, count))
        good = [index for index in own if index not in bad]
        parts = [good[i : i + batch] for i in range(0, len(good), batch)]
        assert [each.indices for each in batches if each.indices] == parts
        assert all(each.images[:, 0].tolist() == each.indices for each in batches if each.indices)
        assert [each.last for each in batches] == [False] * (len(batches) - 1) + [True]
        failed = [int(failure.path) for each in batches for failure in each.failures]
        assert failed == [index for index in own if index in bad]


def test_a_shard_is_read_alike_after_any_other():
    whole = read(40, {3, 4, 21}, range(4), shard=10, batch=4)
    alone = read(40, {3, 4, 21}, [2], shard=10, batch=4)
    assert [each.indices for each in alone[2]] == [each.indices for each in whole[2]]


def test_worker_processes_keep_the_order():
    bad = {1, 50, 51}
    here = read(150, bad, range(3), shard=60, batch=20)
    there = read(150, bad, range(3), shard=60, batch=20, workers=2)
    told = [[(each.indices, each.last, len(each.failures)) for each in batches] for batches in here.values()]
    assert told == [[(each.indices, each.last, len(each.failures)) for each in batches] for batches in there.values()]


def test_shards_may_become_known_only_when_they_are_asked_for():
    asked = []

    def shards():
        for number in (2, 0):
            asked.append(number)
            yield number

    assert list(read(30, (), shards(), shard=10, batch=5)) == [2, 0]
    assert asked == [2, 0]


class Deadly(NumberSet):
    """Ends the process that reads number 3, as the system does where memory is full."""

    def _read(self, source):
        if source == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._read(source)


def test_a_worker_that_is_killed_is_a_sentence():
    reader = Reader(Deadly(8), [0], shard=8, batch=2, workers=1)
    with pytest.raises(InputError, match="A decoding process was killed"):
        list(reader)
