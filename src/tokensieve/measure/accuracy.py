"""How right a model is on labelled images."""

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
        model: images (B, 3, H, W) to scores (B, K), or to an object with `.logits`.
        batches: of `load_batches`, or any tuples that begin with images and labels (B,) int.
        k: one or several; each from 1 to K.
        device: where the images go (not the model); by default where the model is.
        dtype: of the images (not the model); by default the model's.

    Raises:
        RecipeError: a k below 1 or above K.
        InputError: images without labels, labels beyond K, a model without a classifier, nothing to read.
    """
    counter = TopK(k)
    with evaluating(model):
        for answers in forward_batches([model], batches, device=device, dtype=dtype):
            (output,) = answers.outputs
            if not answers.classes:
                raise InputError(f"{type(model).__name__} has no classifier, its outputs are features: use fidelity.")
            if output.ndim > 3:
                raise InputError(
                    f"{type(model).__name__} returns maps of shape {tuple(output.shape)}, which have no top-k: "
                    "measure.score gives their mean IoU."
                )
            counter.update(output, answers.labels)
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
    """Score any model on labelled images by the kind of its output: top-k accuracy, mean IoU or errors of depth.

    In evaluation mode and without gradients; the model's modes are restored.

    Args:
        model: images (B, 3, H, W) to scores (B, K), to maps of class scores (B, K, h, w), or to depths (B, 1, h, w) or
            (B, h, w); or to transformers' `ModelOutput` with `.logits` or `.predicted_depth`.
        batches: tuples that begin with images and labels: (B,) int, a class for each image; (B, H, W) int, a class for
            each pixel; or (B, H, W) floating-point, a depth for each pixel. Maps of another size than the labels are
            resized to it, bilinearly.
        k: of top-k accuracy; one or several; each from 1 to K.
        ignore_index: the label of pixels that count nowhere, as negative ones do; None for none. Of depths those count
            nowhere whose label is 0, negative or not finite.
        kind: "depth" where a tensor (B, h, w) is meant as that; see `measure.comparison.KINDS`.
        device, dtype: as of `accuracy`.

    Raises:
        RecipeError: a k below 1 or above K.
        InputError: labels that are missing, of another shape or beyond K; outputs that labels cannot score; nothing to
            read.
    """
    counter: Scorer | None = None
    with evaluating(model):
        for answers in forward_batches([model], batches, device=device, dtype=dtype):
            if counter is None:
                counter = answers.kind(kind).scorer(k, ignore_index)
            counter.update(answers.outputs[0], answers.labels)
    if counter is None:
        raise nothing_read(batches)
    result: Accuracy | MapScore = counter.result(failures_of(batches))
    return result
