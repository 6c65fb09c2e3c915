"""A cascade for other runtimes: a file for each member, and the rule that selects the member, checked together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from .._files import draft, make_folder
from ..cascades.cascade import Cascade, logits_of
from ..cascades.scores import sureness
from ..data.inputs import InputSize, own_input
from ..errors import ExportError, InputError
from ..measure.pair import eager
from .checked import TOLERANCE, Exported
from .onnx_file import OPSET, export_onnx
from .program_file import export_program

RULE = "cascade.json"
"""File name of the rule that selects the member for an image."""
VERSION = 1
FORMATS = {"onnx": ".onnx", "program": ".pt2"}
CHECKED = 8
"""Number of random images on which members and rule are checked together."""


@dataclass(frozen=True)
class ExportedCascade:
    """The files of an exported cascade."""

    path: Path
    """The rule; the members' files are in the same folder."""
    members: tuple[Exported, ...]
    """The members that are run: those with threshold 1 are left out, with their thresholds."""
    difference: float
    """Largest difference from the cascade in PyTorch, on random images whose scores are not close to a threshold."""
    bytes: int


@torch.no_grad()
def export_cascade(
    cascade: Cascade,
    folder: str | os.PathLike[str],
    input_size: InputSize | None = None,
    *,
    format: str = "onnx",
    batch: int | None = None,
    opset: int = OPSET,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> ExportedCascade:
    """Write a file for each member of a cascade and `cascade.json`, the rule, and check them together.

    The rule lists the files from cheap to dense in `members`, with `thresholds`, one for each but the last, and the
    `score`: run the first member on an image; while the score of its output is below the threshold, run the next one;
    the output of the last member always counts. Every file computes the whole member: computation that members share in
    PyTorch is not shared between files. `recipe` is the JSON of the cascade for `sieve`, with its promise.

    Args:
        cascade: a cascade from `tokensieve.cascade` or `sieve`, with a named score.
        folder: made if it does not exist; its parent must exist. An existing rule is replaced last.
        input_size: as for `export_onnx`.
        format: "onnx" or "program".
        batch, opset, mean, std, seed: as for `export_onnx`.

    Raises:
        InputError: not a cascade, a score that is a function, or as for `export_onnx`.
        ExportError: a member cannot be exported, or the files' outputs differ from the cascade's.
    """
    eager_cascade = eager(cascade)
    if not isinstance(eager_cascade, Cascade):
        raise InputError("export_cascade takes a cascade; export a single recipe with export_onnx or export_program.")
    if format not in FORMATS:
        raise InputError(f"format must be {' or '.join(FORMATS)}, not {format!r}.")
    score = eager_cascade.recipe.score
    if not isinstance(score, str):
        raise InputError("A cascade whose score is a function cannot be exported: use a named score.")
    folder, spec = make_folder(folder), own_input(eager_cascade.dense, input_size)
    thresholds = [threshold for threshold in eager_cascade.thresholds if threshold < 1]
    written: list[Exported] = []
    names: list[str] = []
    write: Callable[..., Exported] = partial(export_onnx, opset=opset) if format == "onnx" else export_program
    for number, index in enumerate(eager_cascade.active):
        names.append(f"member-{number}{FORMATS[format]}")
        written.append(
            write(eager_cascade.members[index], folder / names[-1], spec, batch=batch, mean=mean, std=std, seed=seed)
        )
    weight = next(eager_cascade.dense.parameters())
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch or CHECKED, *spec, generator=generator).to(weight.device, weight.dtype)
    calls = [_runner(folder / name, format) for name in names]
    difference = _checked(eager_cascade, calls, thresholds, score, images, batch)
    rule = {
        "tokensieve_cascade_files": VERSION,
        "tokensieve": __version__,
        "members": names,
        "thresholds": thresholds,
        "score": score,
        "recipe": json.loads(eager_cascade.recipe.to_json()),
    }
    with draft(folder / RULE) as file:
        file.write_text(json.dumps(rule, indent=2) + "\n", encoding="utf-8")
    size = sum(member.bytes for member in written) + (folder / RULE).stat().st_size
    return ExportedCascade(folder / RULE, tuple(written), difference, size)


def _runner(path: Path, format: str) -> Callable[[Tensor], Any]:
    if format == "onnx":
        from . import onnx_graph

        return onnx_graph.runner(path)
    return torch.export.load(path).module()


def _checked(
    cascade: Cascade,
    calls: Sequence[Callable[[Tensor], Any]],
    thresholds: Sequence[float],
    score: str,
    images: Tensor,
    batch: int | None,
) -> float:
    """The largest difference of the files' outputs under the rule from the cascade's outputs."""
    trace = cascade.trace(images)
    expected = logits_of(trace.output, cascade, score, len(images))
    outputs, settled = torch.full_like(expected, float("nan")), torch.ones(len(images), dtype=torch.bool)
    pending = torch.arange(len(images))
    for call, threshold in zip(calls, (*thresholds, None), strict=True):
        if not len(pending):
            break
        # A file with a fixed batch size gets all images; outputs for images that are already done are not used.
        inputs = images if batch else images[pending]
        output = call(inputs)
        logits = logits_of(output[0] if isinstance(output, tuple | list) else output, cascade, score, len(inputs))
        logits = (logits[pending] if batch else logits).to(expected.device, expected.dtype)
        sure = sureness(logits, score)
        settled[pending] &= True if threshold is None else (sure - threshold).abs().cpu() > 10 * TOLERANCE
        again = torch.zeros(len(pending), dtype=torch.bool) if threshold is None else (~(sure >= threshold)).cpu()
        outputs[pending[~again]] = logits[~again.to(logits.device)]
        pending = pending[again]
    if not settled.any():
        return 0.0
    difference = float((outputs - expected)[settled].abs().max())
    if not difference <= TOLERANCE:
        raise ExportError(
            f"The outputs of the cascade's files differ from PyTorch's by {difference:.1e}, {TOLERANCE:g} is allowed."
        )
    return difference
