"""The dense model and the sieved one, in the places where they belong."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import InputError
from ..stream import Sieved


def eager(model: Any) -> Any:
    """The model itself, where it is compiled or wrapped for several devices."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return eager(model.module)
    return eager(model._orig_mod) if hasattr(model, "_orig_mod") else model


def check_pair(fast: Any, dense: Any, function: str, *, sieved: bool = True) -> None:
    """Refuse the two in each other's place and, where the first must be a sieved one, anything else there.

    Raises:
        InputError: they are not what `function` compares.
    """
    if isinstance(eager(fast), Sieved) or not (sieved or isinstance(eager(dense), Sieved)):
        return
    if isinstance(eager(dense), Sieved):
        raise InputError(f"The models are in each other's place: call {function}(fast, dense, ...).")
    raise InputError(f"{function}(fast, dense, ...) begins with what sieve() returned, not with {type(fast).__name__}.")


def check_call(call: Any, function: str) -> None:
    """Refuse a model where something is needed that is called without arguments.

    Raises:
        InputError: it is one, or nothing that can be called.
    """
    if isinstance(call, nn.Module) or not callable(call):
        raise InputError(
            f"{function} takes a function without arguments, such as functools.partial(model, images), not "
            f"{type(call).__name__}."
        )
