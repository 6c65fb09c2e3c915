"""A cascade for other runtimes: a file for each member, and the rule which of them answers, checked together."""

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
"""What says which member answers an image."""
VERSION = 1
FORMATS = {"onnx": ".onnx", "program": ".pt2"}
CHECKED = 8
"""Random images on which members and rule are checked together."""


@dataclass(frozen=True)
class ExportedCascade:
    """The files of a cascade that answer as it does."""

    path: Path
    """The rule; the members' files lie beside it."""
    members: tuple[Exported, ...]
    """Only those that read anything: a member whose threshold is 1 is left out, and its threshold with it."""
    difference: float
    """Largest difference from the cascade in PyTorch, on random images that no threshold is too near to."""
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

    The rule names the files from cheap to dense in `members`, with `thresholds`, one for each but the last, and the
    `score`: an image is given to the first; where the score of its answer is below the threshold, to the next; the last
    one answers whatever it is given. Every member reads the image from its beginning: what members share in PyTorch is
    not shared between files. `recipe` is the cascade as `sieve` opens it, with its promise.

    Args:
        cascade: what `tokensieve.cascade` or `sieve` returned; its score has a name.
        folder: made if it is not there and the one above it is. A rule that was there stays until all is written.
        format: "onnx" or "program".
        batch, opset, mean, std, seed: as of `export_onnx`.

    Raises:
        InputError: no cascade, a score that is a function, or as `export_onnx` raises.
        ExportError: a member cannot be exported, or the files do not answer as the cascade does.
    """
    itself = eager(cascade)
    if not isinstance(itself, Cascade):
        raise InputError("export_cascade is of a cascade; one recipe is written by export_onnx or export_program.")
    if format not in FORMATS:
        raise InputError(f"format is {' or '.join(FORMATS)}, not {format!r}.")
    score = itself.recipe.score
    if not isinstance(score, str):
        raise InputError("A cascade whose score is a function cannot be written for other runtimes: name a score.")
    folder, spec = make_folder(folder), own_input(itself.dense, input_size)
    thresholds = [threshold for threshold in itself.thresholds if threshold < 1]
    written: list[Exported] = []
    names: list[str] = []
    write: Callable[..., Exported] = partial(export_onnx, opset=opset) if format == "onnx" else export_program
    for number, index in enumerate(itself.active):
        names.append(f"member-{number}{FORMATS[format]}")
        written.append(
            write(itself.members[index], folder / names[-1], spec, batch=batch, mean=mean, std=std, seed=seed)
        )
    like = next(itself.dense.parameters())
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch or CHECKED, *spec, generator=generator).to(like.device, like.dtype)
    calls = [_runner(folder / name, format) for name in names]
    difference = _checked(itself, calls, thresholds, score, images, batch)
    rule = {
        "tokensieve_cascade_files": VERSION,
        "tokensieve": __version__,
        "members": names,
        "thresholds": thresholds,
        "score": score,
        "recipe": json.loads(itself.recipe.to_json()),
    }
    with draft(folder / RULE) as file:
        file.write_text(json.dumps(rule, indent=2) + "\n", encoding="utf-8")
    size = sum(each.bytes for each in written) + (folder / RULE).stat().st_size
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
    """The largest difference of what the files answer under the rule from what the cascade does."""
    trace = cascade.trace(images)
    expected = logits_of(trace.output, cascade, score, len(images))
    outputs, settled = torch.full_like(expected, float("nan")), torch.ones(len(images), dtype=torch.bool)
    pending = torch.arange(len(images))
    for call, threshold in zip(calls, (*thresholds, None), strict=True):
        if not len(pending):
            break
        # A file of one batch size gets all images; its outputs for those already answered are not used.
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
            f"The cascade's files answer otherwise than it does, by {difference:.1e} where {TOLERANCE:g} is allowed."
        )
    return difference
