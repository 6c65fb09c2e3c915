"""Batches that memory does not hold are halved; whatever else goes wrong is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tokensieve.data.inputs import reading
from tokensieve.errors import InputError
from tokensieve.jobs.shards import InParts, out_of_memory


class Holds:
    """Asks a model that runs out of memory with more than `most` items."""

    def __init__(self, most, error):
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, images):
        self.sizes.append(len(images))
        with reading(nn.Identity(), images):
            if len(images) > self.most:
                raise self.error
        return {"number": images[:, 0].numpy(), "name": [f"{int(i)}" for i in images[:, 0]]}


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:66] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", FULL, ids=["cuda", "cpu", "python"])
def test_a_batch_that_does_not_fit_is_halved_and_it_is_said(error):
    said, images = [], torch.arange(10.0)[:, None]
    ask = Holds(3, error)
    parts = InParts(ask, 10, said.append)
    columns = parts(images)
    assert columns["number"].tolist() == list(range(10))
    assert columns["name"] == [f"{i}" for i in range(10)]
    assert ask.sizes == [10, 5, 2, 2, 2, 2, 2]
    assert said == [
        "Out of memory with a batch of 10: the batch size is 5 from now on.",
        "Out of memory with a batch of 5: the batch size is 2 from now on.",
    ]
    ask.sizes.clear()
    parts(images[:4])
    assert ask.sizes == [2, 2], "it is not tried again"


def test_one_item_that_does_not_fit_is_a_sentence():
    with pytest.raises(InputError, match="even with one item at a time"):
        InParts(Holds(0, FULL[0]), 2, print)(torch.zeros(2, 1))


def test_other_errors_are_not_taken_for_it():
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(InputError, match="does not run"):
        InParts(Holds(0, RuntimeError("shapes cannot be multiplied")), 2, print)(torch.zeros(2, 1))
