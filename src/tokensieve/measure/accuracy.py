"""Accuracy of a model on labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .outputs import evaluating, failures_of, forward_batches, nothing_read
from .scores import IGNORE_INDEX, Accuracy, MapScore, Scorer, TopK

__all__ = ["Accuracy", "TopK", "accuracy", "score"]


def accuracy(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    k: int | Sequence[int] = (1, 5),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Accuracy:
    """Score a classifier on labelled images, in evaluation mode and without gradients; its modes are restored.

    Args:
        model: maps images (B, 3, H, W) to scores (B, K), or to an object with `.logits`.
        batches: a loader of `load_batches`, or any iterable of tuples that begin with images and labels (B,) int.
        k: one or several; each from 1 to K.
        device: the device that images are moved to (the model is not moved); by default the model's.
        dtype: the dtype that images are converted to (the model is not); by default the model's.

    Raises:
        RecipeError: a k below 1 or above K.
        InputError: images without labels, labels beyond K, a model without a classifier, no images.
    """
    counter = TopK(k)
    with evaluating(model):
        for batch_outputs in forward_batches([model], batches, device=device, dtype=dtype):
            (output,) = batch_outputs.outputs
            if not batch_outputs.classes:
                raise InputError(f"{type(model).__name__} has no classifier, its outputs are features: use fidelity.")
            if output.ndim > 3:
                raise InputError(
                    f"{type(model).__name__} returns maps of shape {tuple(output.shape)}, which have no top-k: "
                    "measure.score gives their mean IoU."
                )
            counter.update(output, batch_outputs.labels)
    if not counter.count:
        raise nothing_read(batches)
    return counter.result(failures_of(batches))


def score(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    k: int | Sequence[int] = (1, 5),
    ignore_index: int | None = IGNORE_INDEX,
    kind: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Accuracy | MapScore:
    """Score any model on labelled images: by top-k accuracy, mean IoU or depth errors, depending on its output.

    Runs in evaluation mode and without gradients; the model's modes are restored.

    Args:
        model: maps images (B, 3, H, W) to scores (B, K), to maps of class scores (B, K, h, w), or to depths
            (B, 1, h, w) or (B, h, w); or to transformers' `ModelOutput` with `.logits` or `.predicted_depth`.
        batches: tuples that begin with images and labels: (B,) int, a class for each image; (B, H, W) int, a class for
            each pixel; or (B, H, W) floating-point, a depth for each pixel. Maps of another size than the labels are
            resized to it, bilinearly.
        k: for top-k accuracy, one or several; each from 1 to K.
        ignore_index: the label of pixels that are not scored; negative labels never are. None: no such label. Depths
            are not scored where the label is 0, negative or not finite.
        kind: "depth" if the output is a tensor (B, h, w) of depths; see `measure.comparison.KINDS`.
        device, dtype: as for `accuracy`.

    Raises:
        RecipeError: a k below 1 or above K.
        InputError: labels that are missing, have another shape or are beyond K; outputs that labels cannot score; no
            images.
    """
    counter: Scorer | None = None
    with evaluating(model):
        for batch_outputs in forward_batches([model], batches, device=device, dtype=dtype):
            if counter is None:
                counter = batch_outputs.kind(kind).scorer(k, ignore_index)
            counter.update(batch_outputs.outputs[0], batch_outputs.labels)
    if counter is None:
        raise nothing_read(batches)
    result: Accuracy | MapScore = counter.result(failures_of(batches))
    return result
