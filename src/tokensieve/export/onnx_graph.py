"""Converts a traced program to ONNX's operators, and runs it in onnxruntime; only this file uses these libraries."""

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
    # The optimiser's time grows with the square of the nodes: first remove the constant ones, about half of them.
    optimizer.fold_constants(graph.model)
    passes.RemoveUnusedNodesPass()(graph.model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph.model)
    graph.optimize()
    passes.ClearMetadataAndDocStringPass()(graph.model)  # stack traces, which contain paths of this machine
    _name_batch(graph.model.graph)
    return graph


def _name_batch(graph: Any) -> None:
    """Rename the free dimension from torch's own symbol to `batch` in all shapes."""
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
    """Stable sort by ONNX's TopK, which gives the lower index first for equal values."""
    count: Any = opset18.Constant(value_ints=[x.shape[dim]])
    return opset18.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def weight_bytes(graph: torch.onnx.ONNXProgram) -> int:
    """Size of all weights in the graph, in bytes."""
    return sum(
        value.const_value.nbytes for value in graph.model.graph.initializers.values() if value.const_value is not None
    )


def runner(file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function from images to the file's outputs, by onnxruntime on the CPU with torch's number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Without this, idle threads keep spinning and take cores from the next session and from torch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised; do not log them too
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))
