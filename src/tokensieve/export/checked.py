"""Shared part of all exports: trace, write, compare with PyTorch, and only then put the file in place."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.torch_version import TorchVersion

from .. import __version__
from .._files import draft
from ..cascades.cascade import Cascade
from ..data import Preprocessing, VideoPreprocessing
from ..data.inputs import InputSize, InputSpec, channels_of, own_input
from ..errors import ExportError, InputError, RecipeError, SieveError, cause
from ..methods import PaPr
from ..recipe import Recipe
from .outputs import Chosen
from .packing import PackedLinear
from .parity import largest_difference

TOLERANCE = 1e-4
"""Largest difference from PyTorch in any output."""
LEAST_TORCH = "2.9"
"""In older versions export fixes the batch size of the example, and the conversion to ONNX lacks operators."""
BATCHES = (1, 5)
"""Batch sizes at which a file with a free batch size is checked; it is traced with another one."""
NOT_IN_ONNX = {
    "eigen-cam": "needs eigenvectors, for which ONNX has no operator",
    "random": "hashes the bits of the images, which ONNX cannot see",
}
Shape = tuple[str | int, ...]
Written = tuple[Callable[[Tensor], Any], int]  # a function that runs the file, and its number of operators


@dataclass(frozen=True)
class Exported:
    """An exported file whose outputs match PyTorch's."""

    path: Path
    inputs: dict[str, Shape]
    """Name -> shape; a free dimension is given by its name."""
    outputs: dict[str, Shape]
    differences: dict[int, float]
    """Batch size -> largest difference from PyTorch in any output, on random images: absolute, but for tokens and maps
    relative to the output's largest value if that is above 1."""
    nodes: int
    """Number of operators in the graph."""
    bytes: int
    """Size of the files written, in bytes."""
    opset: int | None = None
    """Version of ONNX's operators; None for an exported program."""


@torch.no_grad()
def write_checked(
    module: nn.Module,
    path: Path,
    spec: InputSpec,
    output: str | None,
    batch: int | None,
    seed: int,
    write: Callable[[ExportedProgram, Path, tuple[str, ...]], Written],
    opset: int | None = None,
) -> Exported:
    """Trace a module, write a draft of the file, compare its outputs with PyTorch's, and put it in place."""
    kind = type(module).__name__
    if TorchVersion(torch.__version__) < LEAST_TORCH:
        raise ExportError(f"Exporting needs torch {LEAST_TORCH} or newer; this is {torch.__version__}.")
    if batch is not None and batch < 1:
        raise InputError(f"batch must be at least 1, or None for any, not {batch}.")
    parameter, generator = next(module.parameters(), torch.empty(0)), torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.randn(count, *spec, generator=generator).to(parameter.device, parameter.dtype)

    with draft(path) as file:
        example = draw(batch or 2)
        with attempt(f"{kind} does not run on random images"):
            chosen = Chosen(module, example, output)
        exported = module if chosen.plain else chosen
        with attempt(f"{kind} cannot be traced by torch.export"):
            free = None if batch else ({0: Dim("batch")},)
            program = torch.export.export(exported, (example,), dynamic_shapes=free, strict=False)
        run, nodes = write(program, file, chosen.names)
        counts = (batch,) if batch else BATCHES
        with attempt("The exported file does not run"):
            differences = {n: largest_difference(exported, run, draw(n), TOLERANCE) for n in counts}
        size = sum(part.stat().st_size for part in file.parent.iterdir())
    shapes = [(batch or "batch", *tensor.shape[1:]) for tensor in (example, *chosen.example)]
    outputs = dict(zip(chosen.names, shapes[1:], strict=True))
    return Exported(path, {"images": shapes[0]}, outputs, differences, nodes, size, opset)


@contextmanager
def attempt(what: str, refusal: type[SieveError] = ExportError) -> Iterator[None]:
    """Context without warnings in which any error of a library becomes a `refusal` whose message begins with `what`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn about changes to the model; its outputs are checked anyway
            yield
    except SieveError:
        raise
    except Exception as error:
        raise refusal(f"{what}: {cause(error)}.") from error


def refuse(module: Any, reasons: dict[str, str]) -> None:
    """Raise for modules that cannot be exported, before anything slow; `reasons`: name of a map -> why it cannot."""
    kind = type(module).__name__
    if hasattr(module, "_orig_mod"):
        raise InputError(f"{kind} is compiled: export the module that was compiled.")
    if any(isinstance(part, PackedLinear) for part in module.modules()):
        raise InputError("The model's weights are packed for this CPU: export the model without prepack().")
    if isinstance(module, Cascade):
        raise InputError("A cascade is exported by export_cascade(cascade, folder), with a file for each member.")
    if getattr(module, "model", module).training:
        raise InputError(f"{kind} is in training mode, which cannot be exported: call .eval() first.")
    if getattr(module, "significance", None) is None:
        return
    for method in module.recipe:
        if isinstance(method, PaPr) and isinstance(method.significance, str) and method.significance in reasons:
            known = ", ".join(name for name in ("mean", "cam", "centre", *NOT_IN_ONNX) if name not in reasons)
            raise ExportError(
                f"The map {method.significance} {reasons[method.significance]}. Maps that can be exported: {known}."
            )


def preprocessing_of(
    module: nn.Module, input_size: InputSize | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[InputSpec, Preprocessing | VideoPreprocessing | None]:
    """The input spec, and the preprocessing; the latter is None if the host has none for its number of channels."""
    input_spec = None if input_size is None else own_input(module, input_size)
    if "T" in (stated := input_spec or InputSpec.of(module)).layout:
        own_clips = {"input_size": stated.size, "frames": stated.frames, "layout": stated.layout}
        return stated, VideoPreprocessing.of(module, mean, std, **own_clips)
    preprocessing = Preprocessing.of(module, mean, std, None if input_spec is None else input_spec.size)
    if input_spec is None and channels_of(module) is None:  # take the number of channels from the normalisation
        input_spec = InputSpec((len(preprocessing.mean), *preprocessing.input_size))
    spec = input_spec or own_input(module, preprocessing.input_size)
    if len(preprocessing.mean) == spec.channels:
        return spec, preprocessing
    if mean is not None or std is not None:
        raise InputError(
            f"mean and std have {len(preprocessing.mean)} numbers, and the images {spec.channels} channels."
        )
    return spec, None


def facts_of(module: nn.Module, preprocessing: Preprocessing | VideoPreprocessing | None) -> dict[str, str]:
    """The metadata of the file."""
    facts = {"tokensieve": __version__}
    if preprocessing is not None:
        facts["preprocessing"] = json.dumps(asdict(preprocessing))
    recipe = getattr(module, "recipe", None)
    if isinstance(recipe, Recipe):
        facts["recipe"] = str(recipe)
        with suppress(RecipeError):  # a module or a tensor in the recipe is part of the graph, but cannot be text
            facts["recipe_json"] = recipe.to_json()
    return facts
