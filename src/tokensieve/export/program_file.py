"""Export as a `torch.export` program, checked after loading it again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from ..data.inputs import InputSize
from ..errors import InputError
from ..significance.source import UNTRACEABLE
from .checked import Exported, Written, attempt, facts_of, preprocessing_of, refuse, write_checked


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
    """Write a `torch.export` program (.pt2), after loading it again and checking its outputs against the module's.

    `torch.export.load(path).module()` is called with images (batch, C, H, W) in the module's precision and on its
    device, and returns a tensor, or a tuple of several. The metadata of ONNX files are extra files here: `recipe`,
    `recipe_json`, `preprocessing`, `tokensieve`, and `outputs`, a JSON list of the outputs' names. Arguments and errors
    as in `export_onnx`; the module may have any precision and be on any device.
    """
    if Path(path).suffix != ".pt2":
        raise InputError(f"torch.export programs must end in .pt2, and {path} does not.")
    refuse(module, UNTRACEABLE)

    def write(program: ExportedProgram, file: Path, names: tuple[str, ...]) -> Written:
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # contains paths of this machine
        with attempt("torch.export cannot save the program"):
            torch.export.save(
                program, file, extra_files=facts_of(module, preprocessing) | {"outputs": json.dumps(names)}
            )
            loaded = torch.export.load(file)
        return loaded.module(), sum(node.op == "call_function" for node in loaded.graph.nodes)

    spec, preprocessing = preprocessing_of(module, input_size, mean, std)
    return write_checked(module, Path(path), spec, output, batch, seed, write)
