"""A method's learned layers and the file that holds them, under the names that published checkpoints use."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from .base import BaseMethod


def load_part(method: BaseMethod, module: nn.Module, description: str) -> None:
    """Read the file that `method.weights` names into its learned layers; `description` names both in errors.

    Raises:
        InputError: the file cannot be had, is not the recorded one, or does not fit.
    """
    from ..zoo.models import load_strictly  # only where weights are read: it loads proposal libraries

    state = method.read("weights")
    if method.published:
        state = renamed(state, method.published)
    expected = module.state_dict()
    for name, value in state.items():
        if value.ndim == 4 and name in expected and expected[name].ndim == 2:
            state[name] = value.flatten(1)  # a 1x1 convolution is a linear layer
    if any(value.dtype == torch.float64 for value in state.values()):
        module.double()  # else loading rounds; `sieve` gives the layers the precision of the host
    load_strictly(module, state, description)


def part_state(method: BaseMethod, module: nn.Module) -> dict[str, Tensor]:
    """The weights of a method's learned layers, as a file of its `weights` holds them, on the CPU.

    Raises:
        InputError: they are on the meta device.
    """
    if any(value.is_meta for value in module.state_dict().values()):
        raise InputError(f"The learned layers of {method.name} are on the meta device and have no values to store.")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    if not method.published:
        return state
    return renamed(state, {own_name: published for published, own_name in method.published.items()})


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by other names, which are templates: `{}` at the end is any rest, elsewhere any part between dots.

    What fits no template is left out.
    """
    renamed_state: dict[str, Tensor] = {}
    for old, new in names.items():
        pattern = re.sub(r"\\\{\\\}$", "(.+)", re.escape(old)).replace(r"\{\}", r"([^.]+)")
        matches = {name: re.fullmatch(pattern, name) for name in state}
        renamed_state |= {new.format(*match.groups()): state[name] for name, match in matches.items() if match}
    return renamed_state
