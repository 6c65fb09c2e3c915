"""Whether a module is where the tensors are that it is given."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from ._recording import recording
from .errors import InputError


def check_device(module: nn.Module, x: Tensor, what: str) -> None:
    """Refuse a tensor that is not on the device of a module, which `what` names in the sentence. Raises `InputError`.

    A forward that is recorded is not asked: a graph is made of modules that ran before.
    """
    own = None if recording() else next(chain(module.parameters(), module.buffers()), None)
    if own is not None and own.device != x.device:
        raise InputError(
            f"{what} on {own.device}, and what it is given is on {x.device}: move what sieve() returned, fast.to(...), "
            "and not its host alone; and the images with it."
        )
