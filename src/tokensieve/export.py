"""One file for other runtimes: ONNX, or PyTorch's own exported program. Checked before it takes its place."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.torch_version import TorchVersion

from . import __version__
from .answers import Chosen
from .data import Preprocessing
from .data.inputs import InputSize, InputSpec, channels_of, own_input
from .errors import ExportError, InputError, RecipeError, SieveError, cause
from .files import draft
from .measure.parity import largest_difference
from .methods import PaPr
from .packing import PackedLinear
from .recipe import Recipe
from .significance.source import UNTRACEABLE

TOLERANCE = 1e-4
"""Largest difference from PyTorch in any output."""
OPSET, OPSETS = 20, range(18, 23)
"""From 23 on attention is one operator, which onnxruntime runs no faster on CPUs, and not at all with ToMe's sizes."""
LEAST_TORCH = "2.9"
"""Of older versions, export ties the graph to the example's batch, and the way to ONNX lacks operators."""
BATCHES = (1, 5)
"""What a file that takes any batch is checked at; it is traced with another."""
ONE_FILE = 1536 * 2**20
"""Bytes of weights from which ONNX files keep them in a second file: the format ends at 2 GiB."""

_NOT_IN_ONNX = {
    "eigen-cam": "needs eigenvectors, for which ONNX has no operator",
    "random": "hashes the bits of the images, which ONNX cannot see",
}
Shape = tuple[str | int, ...]
Written = tuple[Callable[[Tensor], Any], int]  # what runs the file, and the operators in it


@dataclass(frozen=True)
class Exported:
    """A file that was written and answers as PyTorch does."""

    path: Path
    inputs: dict[str, Shape]
    """Name -> shape; a dimension that may be any number is a name."""
    outputs: dict[str, Shape]
    differences: dict[int, float]
    """Batch size -> largest difference from PyTorch in any output, on random images: absolute, and of tokens and maps
    a share of the output's largest number where that is above 1."""
    nodes: int
    """Operators in the graph."""
    bytes: int
    """Size of what was written."""
    opset: int | None = None
    """Version of ONNX's operators; None for an exported program."""


def export_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    input_size: InputSize | None = None,
    *,
    output: str | None = None,
    batch: int | None = None,
    opset: int = OPSET,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Exported:
    """Write an ONNX file, once onnxruntime has answered with it as PyTorch does.

    One input, `images` (batch, C, H, W) float32, normalised. The output is called `logits`, or `features` where the
    host has no classifier; of transformers' models as its field is called; of backbones there are several, called after
    their stages or `feature_maps_0` and so on. The metadata hold recipe, preprocessing and version. From 1.5 GB on the
    weights are in a second file beside it, named after it with `.data`.

    Args:
        module: what `sieve` returns; also a dense model or a `SlicingLimit`. In eval mode, float32, on the CPU.
        path: the file to write. What was there before stays if anything goes wrong.
        input_size: a side in pixels, (H, W) or (C, H, W) of the images, or an `InputSpec`; by default what the host was
            built for.
        output: what to write of all that the model offers, such as `logits`, `pooler_output`, `last_hidden_state` (the
            tokens after the final norm; the last map of a host with stages) or `feature_maps` (those of all stages);
            also one of several tensors by its name. None is the first of `logits`, `image_embeds`, `pooler_output`,
            `last_hidden_state`, `feature_maps` that the model returns.
        batch: the one number of images that the file takes; None lets it take any.
        opset: version of ONNX's operators, 18 to 22.
        mean, std: the normalisation of the host's images, for the metadata; by default what the host states. Where that
            is for other channels than the host reads, the metadata hold no preprocessing.
        seed: of the random images on which the file is checked.

    Raises:
        InputError: a path, a size, an output or a model that cannot be used as it is; missing packages.
        ExportError: the model cannot be exported, or the file does not answer as PyTorch does.
    """
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise InputError(f"ONNX export needs {' and '.join(missing)}: pip install tokensieve[export].")
    if opset not in OPSETS:
        raise InputError(
            f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, not {opset}: before, operators are missing; after, "
            "attention is an operator that onnxruntime cannot run with merged tokens."
        )
    _refuse(module, UNTRACEABLE | _NOT_IN_ONNX)
    for parameter in module.parameters():
        if (parameter.dtype, parameter.device.type) != (torch.float32, "cpu"):
            raise InputError(
                "ONNX files are written in float32 and checked on the CPU, where onnxruntime lacks half precision for "
                f"parts of the stream; this model has weights in {str(parameter.dtype).removeprefix('torch.')} on "
                f"{parameter.device}. Move it with .float().cpu(), or write an exported program, which takes any."
            )

    def write(program: ExportedProgram, file: Path, names: tuple[str, ...]) -> Written:
        from . import onnx_graph

        with _attempt(f"The model cannot be written in ONNX's operators (opset {opset})"):
            graph = onnx_graph.translate(program, names, opset)
        graph.model.metadata_props.update(_facts(module, own))
        graph.save(file, external_data=onnx_graph.weight_bytes(graph) >= ONE_FILE)
        with _attempt(f"onnxruntime cannot open the exported file (opset {opset})"):
            return onnx_graph.runner(file), sum(1 for _ in graph.model.graph.all_nodes())

    spec, own = _preprocessing(module, input_size, mean, std)
    return _export(module, Path(path), spec, output, batch, seed, write, opset)


def export_program(
    module: nn.Module,
    path: str | os.PathLike[str],
    input_size: InputSize | None = None,
    *,
    output: str | None = None,
    batch: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Exported:
    """Write a `torch.export` program (.pt2), once it has been read again and has answered as the module does.

    `torch.export.load(path).module()` is called with images (batch, C, H, W) in the module's precision, on its device,
    and returns a tensor, or a tuple where there are several. What an ONNX file has as metadata are extra files here:
    `recipe`, `recipe_json`, `preprocessing`, `tokensieve`, and `outputs`, a JSON list of their names.
    Arguments and errors as in `export_onnx`; the module may have any precision and be on any device.
    """
    if Path(path).suffix != ".pt2":
        raise InputError(f"torch.export reads its programs from files that end in .pt2, not from {path}.")
    _refuse(module, UNTRACEABLE)

    def write(program: ExportedProgram, file: Path, names: tuple[str, ...]) -> Written:
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names folders of the machine that writes the file
        with _attempt("torch.export cannot save the program"):
            torch.export.save(program, file, extra_files=_facts(module, own) | {"outputs": json.dumps(names)})
            again = torch.export.load(file)
        return again.module(), sum(node.op == "call_function" for node in again.graph.nodes)

    spec, own = _preprocessing(module, input_size, mean, std)
    return _export(module, Path(path), spec, output, batch, seed, write)


@torch.no_grad()
def _export(
    module: nn.Module,
    path: Path,
    spec: InputSpec,
    output: str | None,
    batch: int | None,
    seed: int,
    write: Callable[[ExportedProgram, Path, tuple[str, ...]], Written],
    opset: int | None = None,
) -> Exported:
    """Trace, write beside the target, compare, and only then put in place."""
    kind = type(module).__name__
    if TorchVersion(torch.__version__) < LEAST_TORCH:
        raise ExportError(
            f"Writing files for other runtimes needs torch {LEAST_TORCH} or newer; this is {torch.__version__}."
        )
    if batch is not None and batch < 1:
        raise InputError(f"batch must be at least 1, or None for any, not {batch}.")
    like, generator = next(module.parameters(), torch.empty(0)), torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.randn(count, *spec, generator=generator).to(like.device, like.dtype)

    with draft(path) as file:
        example = draw(batch or 2)
        with _attempt(f"{kind} does not run on random images"):
            chosen = Chosen(module, example, output)
        asked = module if chosen.plain else chosen
        with _attempt(f"{kind} cannot be traced by torch.export"):
            free = None if batch else ({0: Dim("batch")},)
            program = torch.export.export(asked, (example,), dynamic_shapes=free, strict=False)
        run, nodes = write(program, file, chosen.names)
        counts = (batch,) if batch else BATCHES
        with _attempt("The exported file does not run"):
            differences = {n: largest_difference(asked, run, draw(n), TOLERANCE) for n in counts}
        size = sum(part.stat().st_size for part in file.parent.iterdir())
    shapes = [(batch or "batch", *tensor.shape[1:]) for tensor in (example, *chosen.example)]
    outputs = dict(zip(chosen.names, shapes[1:], strict=True))
    return Exported(path, {"images": shapes[0]}, outputs, differences, nodes, size, opset)


@contextmanager
def _attempt(what: str, refusal: type[SieveError] = ExportError) -> Iterator[None]:
    """Quietly. What fails in the depths of a library, in whatever way, becomes a sentence that begins with `what`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn of what they do to a model; what matters of it is checked
            yield
    except SieveError:
        raise
    except Exception as error:
        raise refusal(f"{what}: {cause(error)}.") from error


def _refuse(module: Any, reasons: dict[str, str]) -> None:
    """Say before anything slow what cannot be written."""
    kind = type(module).__name__
    if hasattr(module, "_orig_mod"):
        raise InputError(f"{kind} is compiled: export the module that was compiled.")
    if any(isinstance(part, PackedLinear) for part in module.modules()):
        raise InputError("The model's weights are packed for this CPU: export the model that prepack() was given.")
    if getattr(module, "model", module).training:
        raise InputError(f"{kind} is in training mode, which a file does not have: call .eval() first.")
    if getattr(module, "significance", None) is None:
        return
    for method in module.recipe:
        if isinstance(method, PaPr) and isinstance(method.significance, str) and method.significance in reasons:
            known = ", ".join(name for name in ("mean", "cam", "centre", *_NOT_IN_ONNX) if name not in reasons)
            raise ExportError(
                f"The map {method.significance} {reasons[method.significance]}. Maps that can be written: {known}."
            )


def _preprocessing(
    module: nn.Module, input_size: InputSize | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[InputSpec, Preprocessing | None]:
    """The images, and their preprocessing: None where the host states none for as many channels."""
    given = None if input_size is None else own_input(module, input_size)
    own = Preprocessing.of(module, mean, std, None if given is None else given.size)
    if given is None and channels_of(module) is None:  # as many as the normalisation is for
        given = InputSpec((len(own.mean), *own.input_size))
    spec = given or own_input(module, own.input_size)
    if len(own.mean) == spec.channels:
        return spec, own
    if mean is not None or std is not None:
        raise InputError(f"mean and std have {len(own.mean)} numbers, and the images {spec.channels} channels.")
    return spec, None


def _facts(module: nn.Module, own: Preprocessing | None) -> dict[str, str]:
    """What the file says of itself."""
    facts = {"tokensieve": __version__}
    if own is not None:
        facts["preprocessing"] = json.dumps(asdict(own))
    recipe = getattr(module, "recipe", None)
    if isinstance(recipe, Recipe):
        facts["recipe"] = str(recipe)
        with suppress(RecipeError):  # a module or a tensor in the recipe: the graph holds it, text cannot
            facts["recipe_json"] = recipe.to_json()
    return facts
