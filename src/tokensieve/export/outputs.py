"""What a model returns, tensor by tensor under names, and the model that returns the chosen ones alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..data.inputs import reading
from ..errors import ExportError, InputError
from ..measure.outputs import FIELDS
from ..stream import Sieved

MAPS = "feature_maps"
"""The output of hosts with stages that has the maps behind each stage, and of a backbone the maps it returns."""
OBVIOUS = (*FIELDS, MAPS)
"""Outputs from the one that is most likely wanted."""
Fields = dict[str, dict[str, Tensor]]
"""Output -> its tensors under their names: most have one, called as the output is."""


class Chosen(nn.Module):
    """A model that returns one of its outputs alone: a tensor, or several as a tuple.

    `names` are those of its tensors, `example` is what it returned for the images that it was made with; `plain` says
    that the model itself returns nothing else.
    """

    def __init__(self, module: nn.Module, images: Tensor, output: str | None = None) -> None:
        """Run on images (B, C, H, W), and choose.

        Raises:
            InputError: the model does not run on these images, or has no such output.
            ExportError: it returns nothing that can be written.
        """
        super().__init__()
        # A sieved model shares its host's parts, which torch finds by their names: `model` would be two things in it
        # where the host has a part of that name. So the host is what is known here, and the model itself is not.
        self.host = module.model if isinstance(module, Sieved) else module
        self._module, self.way, self.single = (module,), "", name_of(module)
        kind, shape, ways = type(module).__name__, tuple(images.shape), _ways(module)
        with reading(module, images):
            answer = module(images)
            fields = fields_of(answer, self.single)
            if output in ways and not _find(fields, output):
                self.way = ways[output]
                fields = self.run(images)
        if not fields:
            raise ExportError(f"{kind} returns a {type(answer).__name__} without a tensor that can be written.")
        if output is None:
            output = next((field for field in OBVIOUS if field in fields), next(iter(fields)))
        selected = _find(fields, output)
        if not selected:
            known = dict.fromkeys([*fields, *ways, *(name for field in fields.values() for name in field)])
            raise InputError(f"{kind} has no output {output!r}; it has {', '.join(known)}.")
        for name, tensor in selected.items():
            if tensor.shape[:1] != images.shape[:1]:
                raise ExportError(
                    f"{kind} returns {name} of shape {tuple(tensor.shape)} for images of shape {shape}; outputs with "
                    "the batch first can be written."
                )
        self.names, self.example = tuple(selected), tuple(selected.values())
        self.plain = isinstance(answer, Tensor) and not self.way
        self.training = module.training  # train() would reach into the model

    def run(self, images: Tensor) -> Fields:
        """All outputs of the call that has the requested one."""
        (module,) = self._module
        answer = getattr(module, self.way)(images) if self.way else module(images)
        return fields_of(answer, _NAMES.get(self.way, self.single))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        every = {name: tensor for field in self.run(images).values() for name, tensor in field.items()}
        outputs = tuple(every[name] for name in self.names)
        return outputs[0] if len(outputs) == 1 else outputs


_NAMES = {"forward_features": "last_hidden_state", "forward_intermediates": MAPS}
"""Outputs that need another call than `model(images)`."""


def _ways(module: Any) -> dict[str, str]:
    """Output -> the function that computes it, where the model's call does not return it."""
    ways = {"last_hidden_state": "forward_features"} if hasattr(module, "forward_features") else {}
    # other models' forward_intermediates return more than the maps
    return {**ways, MAPS: "forward_intermediates"} if getattr(module, "units", "") == "pixels" else ways


def name_of(module: nn.Module) -> str:
    """The name of the single tensor that a model returns: `logits`, or `features` of one without classifier."""
    return "features" if getattr(getattr(module, "model", module), "num_classes", None) == 0 else "logits"


def fields_of(answer: Any, single: str) -> Fields:
    """The outputs in what a model returned.

    A tensor is the output `single`. Of a `ModelOutput` each field is one. A list, a tuple or a dictionary of tensors is
    one output, `feature_maps` where these are maps.
    """
    if isinstance(answer, Tensor):
        return {single: {single: answer}}
    if hasattr(answer, "to_tuple"):
        return {field: tensors for field, value in answer.items() if (tensors := _tensors(field, value))}
    parts = list(answer.values()) if isinstance(answer, Mapping) else answer
    maps = isinstance(parts, list | tuple) and all(isinstance(part, Tensor) and part.ndim == 4 for part in parts)
    field = MAPS if maps else "output"
    tensors = _tensors(field, answer)
    return {field: tensors} if tensors else {}


def _tensors(field: str, value: Any) -> dict[str, Tensor]:
    """The tensors of an output: by its own name, by theirs, or by its name and a number."""
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
    """The tensors of an output, or the one tensor of this name."""
    if output in fields:
        return fields[output]
    return next(({output: field[output]} for field in fields.values() if output in field), {})
