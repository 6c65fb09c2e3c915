"""Names of a model's output tensors, and a module that returns only the chosen ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..data.inputs import reading
from ..errors import ExportError, InputError
from ..measure.outputs import FIELDS
from ..stream import Sieved

MAPS = "feature_maps"
"""Name of the output with the maps of all stages of a host, or with the maps that a backbone returns."""
OBVIOUS = (*FIELDS, MAPS)
"""Outputs in the order in which one is chosen by default."""
Fields = dict[str, dict[str, Tensor]]
"""Output -> its tensors by name; most outputs have one tensor, with the output's name."""


class Chosen(nn.Module):
    """A module that returns one output of a model: a tensor, or several as a tuple.

    `names` are the names of the tensors, `example` holds them for the images given to the constructor; `plain` is True
    if the model itself returns just this tensor.
    """

    def __init__(self, module: nn.Module, images: Tensor, output: str | None = None) -> None:
        """Run the model on images (B, C, H, W), and choose the output.

        Raises:
            InputError: the model does not run on these images, or does not have this output.
            ExportError: it returns no tensor that can be exported.
        """
        super().__init__()
        # Register the host, and hide the sieved model in a tuple: it shares the host's submodules under the host's
        # names, so that `model` would be ambiguous if the host has a submodule with that name.
        self.host = module.model if isinstance(module, Sieved) else module
        self._module, self.way, self.single = (module,), "", name_of(module)
        kind, shape, ways = type(module).__name__, tuple(images.shape), _ways(module)
        with reading(module, images):
            result = module(images)
            fields = fields_of(result, self.single)
            if output in ways and not _find(fields, output):
                self.way = ways[output]
                fields = self.run(images)
        if not fields:
            raise ExportError(f"{kind} returns a {type(result).__name__} without a tensor that can be exported.")
        if output is None:
            output = next((field for field in OBVIOUS if field in fields), next(iter(fields)))
        selected = _find(fields, output)
        if not selected:
            known = dict.fromkeys([*fields, *ways, *(name for field in fields.values() for name in field)])
            raise InputError(f"{kind} has no output {output!r}; it has {', '.join(known)}.")
        for name, tensor in selected.items():
            if tensor.shape[:1] != images.shape[:1]:
                raise ExportError(
                    f"{kind} returns {name} of shape {tuple(tensor.shape)} for images of shape {shape}; only outputs "
                    "with the batch first can be exported."
                )
        self.names, self.example = tuple(selected), tuple(selected.values())
        self.plain = isinstance(result, Tensor) and not self.way
        self.training = module.training  # set directly, since train() would change the model

    def run(self, images: Tensor) -> Fields:
        """All outputs of the call that has the requested one."""
        (module,) = self._module
        result = getattr(module, self.way)(images) if self.way else module(images)
        return fields_of(result, _NAMES.get(self.way, self.single))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        every = {name: tensor for field in self.run(images).values() for name, tensor in field.items()}
        outputs = tuple(every[name] for name in self.names)
        return outputs[0] if len(outputs) == 1 else outputs


_NAMES = {"forward_features": "last_hidden_state", "forward_intermediates": MAPS}
"""Functions other than `model(images)` -> the output that they return."""


def _ways(module: Any) -> dict[str, str]:
    """Output -> the model's function that computes it, for outputs that the model's call does not return."""
    ways = {"last_hidden_state": "forward_features"} if hasattr(module, "forward_features") else {}
    # other models' forward_intermediates return more than the maps
    return {**ways, MAPS: "forward_intermediates"} if getattr(module, "units", "") == "pixels" else ways


def name_of(module: nn.Module) -> str:
    """The name for the single tensor that a model returns: `logits`, or `features` without a classifier."""
    return "features" if getattr(getattr(module, "model", module), "num_classes", None) == 0 else "logits"


def fields_of(result: Any, single: str) -> Fields:
    """The outputs in a model's return value.

    A tensor is the output `single`. Each field of a `ModelOutput` is an output. A list, a tuple or a dict of tensors is
    one output, `feature_maps` if these are maps.
    """
    if isinstance(result, Tensor):
        return {single: {single: result}}
    if hasattr(result, "to_tuple"):
        return {field: tensors for field, value in result.items() if (tensors := _tensors(field, value))}
    parts = list(result.values()) if isinstance(result, Mapping) else result
    maps = isinstance(parts, list | tuple) and all(isinstance(part, Tensor) and part.ndim == 4 for part in parts)
    field = MAPS if maps else "output"
    tensors = _tensors(field, result)
    return {field: tensors} if tensors else {}


def _tensors(field: str, value: Any) -> dict[str, Tensor]:
    """The tensors of an output: named by the output, by their own names, or by the output and an index."""
    if isinstance(value, Tensor):
        return {field: value}
    if isinstance(value, Mapping):
        tensors = {str(name): item for name, item in value.items()}
    elif isinstance(value, list | tuple):
        tensors = {f"{field}_{number}": item for number, item in enumerate(value)}
    else:
        return {}
    return {name: item for name, item in tensors.items() if isinstance(item, Tensor)}


def _find(fields: Fields, output: str) -> dict[str, Tensor]:
    """The tensors of an output, or the one tensor with this name."""
    if output in fields:
        return fields[output]
    return next(({output: field[output]} for field in fields.values() if output in field), {})
