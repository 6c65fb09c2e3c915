"""Loads and saves a method's learned layers, with the weight names of published checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from .base import BaseMethod


def load_part(method: BaseMethod, module: nn.Module, description: str) -> None:
    """Load the file in `method.weights` into the method's learned layers `module`; `description` is for errors.

    Raises:
        InputError: the file cannot be read, has another SHA-256 than the recorded one, or does not fit.
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
        module.double()  # otherwise loading would round; `sieve` later casts the layers to the host's dtype
    load_strictly(module, state, description)


def part_state(method: BaseMethod, module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a method's learned layers on the CPU, as stored in a file for its setting `weights`.

    Raises:
        InputError: the layers are on the meta device.
    """
    if any(value.is_meta for value in module.state_dict().values()):
        raise InputError(f"The learned layers of {method.name} are on the meta device and have no values to store.")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    if not method.published:
        return state
    return renamed(state, {name: published for published, name in method.published.items()})


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename tensors by templates, old -> new. `{}` at the end matches any text, elsewhere one part between dots.

    Tensors that match no template are left out.
    """
    renamed_state: dict[str, Tensor] = {}
    for old, new in names.items():
        pattern = re.sub(r"\\\{\\\}$", "(.+)", re.escape(old)).replace(r"\{\}", r"([^.]+)")
        matches = {name: re.fullmatch(pattern, name) for name in state}
        renamed_state |= {new.format(*match.groups()): state[name] for name, match in matches.items() if match}
    return renamed_state
