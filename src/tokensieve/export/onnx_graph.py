"""A traced program in ONNX's operators, and onnxruntime to run it: all that is known here of those libraries."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset18, optimizer
from torch import Tensor
from torch.export import ExportedProgram

BATCH = "batch"
"""The name of the free dimension."""


def translate(program: ExportedProgram, outputs: Sequence[str], opset: int) -> torch.onnx.ONNXProgram:
    """The program as an ONNX graph from `images` to `outputs`."""
    graph = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=list(outputs),
        opset_version=opset,
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        optimize=False,
        verbose=False,
    )
    assert graph is not None
    # The optimiser's time grows with the square of the nodes: it gets them without the constant ones, half of them.
    optimizer.fold_constants(graph.model)
    passes.RemoveUnusedNodesPass()(graph.model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph.model)
    graph.optimize()
    passes.ClearMetadataAndDocStringPass()(graph.model)  # traces with folders of the machine that wrote the file
    _name_batch(graph.model.graph)
    return graph


def _name_batch(graph: Any) -> None:
    """Call the free dimension `batch` wherever a shape speaks of it, where torch has a symbol of its own for it."""
    free = graph.inputs[0].shape[0]
    if not isinstance(free, onnx_ir.SymbolicDim):
        return
    symbol = re.compile(rf"\b{re.escape(str(free.value))}\b")
    values = [*graph.inputs, *chain.from_iterable(node.outputs for node in graph.all_nodes())]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, onnx_ir.SymbolicDim) and size.value is not None:
                value.shape[axis] = symbol.sub(BATCH, str(size.value))
    for value in graph.outputs:
        value.shape[0] = BATCH


def _stable_sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Sorting as ONNX has it: of equal values TopK gives the lower index first, which is what stable means here."""
    count: Any = opset18.Constant(value_ints=[x.shape[dim]])
    return opset18.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def weight_bytes(graph: torch.onnx.ONNXProgram) -> int:
    """Bytes of all the numbers that the graph carries."""
    return sum(
        value.const_value.nbytes for value in graph.model.graph.initializers.values() if value.const_value is not None
    )


def runner(file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """onnxruntime on the CPU, with as many threads as torch has: images in, the file's outputs out."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads that go on spinning take the cores from the next session, and from torch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))
