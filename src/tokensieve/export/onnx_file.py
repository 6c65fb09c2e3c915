"""ONNX export, checked with onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from ..data.inputs import InputSize
from ..errors import InputError
from ..significance.source import UNTRACEABLE
from .checked import NOT_IN_ONNX, Exported, Written, attempt, facts_of, preprocessing_of, refuse, write_checked

OPSET, OPSETS = 20, range(18, 23)
"""From 23 on attention is one operator, which onnxruntime runs no faster on CPUs, and cannot run with ToMe's sizes."""
ONE_FILE = 1536 * 2**20
"""Bytes of weights from which they are written to a second file: an ONNX file is limited to 2 GiB."""


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
    """Write an ONNX file, after checking that its outputs in onnxruntime match PyTorch's.

    It has one input, `images` (batch, C, H, W) float32, normalised. The output is called `logits`, or `features` if the
    host has no classifier; for transformers' models by the name of its field; backbones have several outputs, named by
    their stages, or `feature_maps_0` and so on. The metadata hold recipe, preprocessing and version. From 1.5 GB on the
    weights are in a second file in the same folder, with the ending `.data`.

    Args:
        module: a sieved model; also a dense model or a `SlicingLimit`. In eval mode, float32, on the CPU.
        path: the file to write. An existing file stays if anything fails.
        input_size: a side in pixels, (H, W) or (C, H, W) of the images, or an `InputSpec`; by default the host's.
        output: the model's output to export, such as `logits`, `pooler_output`, `last_hidden_state` (the tokens after
            the final norm; the last map of a host with stages) or `feature_maps` (those of all stages); or the name of
            one of several tensors. None is the first of `logits`, `image_embeds`, `pooler_output`, `last_hidden_state`,
            `feature_maps` that the model returns.
        batch: fixed batch size; None: any batch size.
        opset: version of ONNX's operators, 18 to 22.
        mean, std: the normalisation of the host's images, for the metadata; by default the host's own. If it has
            another number of channels than the host reads, the metadata hold no preprocessing.
        seed: random seed of the images with which the file is checked.

    Raises:
        InputError: a path, a size, an output or a model that cannot be used; missing packages.
        ExportError: the model cannot be exported, or the file's outputs differ from PyTorch's.
    """
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise InputError(f"ONNX export needs {' and '.join(missing)}: pip install tokensieve[export].")
    if opset not in OPSETS:
        raise InputError(
            f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, not {opset}: earlier versions lack operators; in later "
            "ones attention is an operator that onnxruntime cannot run with merged tokens."
        )
    refuse(module, UNTRACEABLE | NOT_IN_ONNX)
    for parameter in module.parameters():
        if (parameter.dtype, parameter.device.type) != (torch.float32, "cpu"):
            raise InputError(
                "ONNX files are written in float32 and checked on the CPU, where onnxruntime lacks half precision for "
                f"some operators; this model has weights in {str(parameter.dtype).removeprefix('torch.')} on "
                f"{parameter.device}. Convert it with .float().cpu(), or use export_program, which supports all types."
            )

    def write(program: ExportedProgram, file: Path, names: tuple[str, ...]) -> Written:
        from . import onnx_graph

        with attempt(f"The model cannot be written in ONNX's operators (opset {opset})"):
            graph = onnx_graph.translate(program, names, opset)
        graph.model.metadata_props.update(facts_of(module, preprocessing))
        graph.save(file, external_data=onnx_graph.weight_bytes(graph) >= ONE_FILE)
        with attempt(f"onnxruntime cannot open the exported file (opset {opset})"):
            return onnx_graph.runner(file), sum(1 for _ in graph.model.graph.all_nodes())

    spec, preprocessing = preprocessing_of(module, input_size, mean, std)
    return write_checked(module, Path(path), spec, output, batch, seed, write, opset)
