"""The contract between a training task and the loop."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Loss(NamedTuple):
    """The loss of one batch: the scalar to minimise, and further scalars by column name, whose means are logged."""

    value: Tensor
    logged: dict[str, Tensor]


class Task(Protocol):
    """A training task: data, module and loss.

    Attributes:
        name: name of the files that the training writes.
        identity: text of everything except the `TrainConfig` that affects the result: data, sizes, a teacher.
        module: the module that is trained, with parts that are dropped afterwards; the loop never calls its forward.
        samples: number of samples in an epoch.
    """

    name: str
    identity: str
    module: Any
    samples: int

    def batches(self, size: int, count: int, seed: int) -> Dataset[Any]:
        """A map-style dataset of `count` batches of `size` samples.

        A batch, with its random augmentation, must depend only on seed and index, so that a resumed training repeats
        it, and all devices get the same. Worker processes load the batches; the loop moves tensors to the device.
        """

    def loss(self, module: Any, batch: Any) -> Loss:
        """The loss of one batch, in training mode and under autocast.

        `module` is `self.module` itself, so that a task may use all of its methods, such as a sieved model's
        `trace(images)`.
        """

    def evaluate(self, module: Any) -> dict[str, float]:
        """The task's metrics, by column name; `module` may be the moving average, and is left in eval mode."""

    def weights(self, module: Any) -> dict[str, Tensor]:
        """The state dict to save at the end."""


class Order:
    """The order of samples in a training: position -> index of the sample, shuffled again in each epoch.

    Args:
        count: number of samples.
        seed: random seed; the order depends on it and on the epoch.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.count)
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
        return int(self._order[index])


def batch_seed(seed: int, number: int) -> int:
    """The random seed of batch `number`."""
    return seed * 1_000_003 + number


def halved(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in half precision; integers stay integers."""
    return {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}
