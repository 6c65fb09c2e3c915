"""Checks that the sieved and the dense model are passed in the right order."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import InputError
from ..stream import Sieved


def eager(model: Any) -> Any:
    """The model inside a compiled module, DataParallel or DistributedDataParallel; any other model as it is."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return eager(model.module)
    return eager(model._orig_mod) if hasattr(model, "_orig_mod") else model


def check_pair(fast: Any, dense: Any, function: str, *, sieved: bool = True) -> None:
    """Check that the sieved and the dense model are not swapped and, with `sieved`, that the first is a sieved model.

    Raises:
        InputError: they are not; the message names `function`.
    """
    if isinstance(eager(fast), Sieved) or not (sieved or isinstance(eager(dense), Sieved)):
        return
    if isinstance(eager(dense), Sieved):
        raise InputError(f"The two models are swapped: call {function}(fast, dense, ...).")
    raise InputError(
        f"The first argument of {function}(fast, dense, ...) is a model returned by sieve(), not {type(fast).__name__}."
    )


def check_call(call: Any, function: str) -> None:
    """Check that `call` is a function without arguments, not a model.

    Raises:
        InputError: it is a model, or cannot be called; the message names `function`.
    """
    if isinstance(call, nn.Module) or not callable(call):
        raise InputError(
            f"{function} takes a function without arguments, such as functools.partial(model, images), not "
            f"{type(call).__name__}."
        )
