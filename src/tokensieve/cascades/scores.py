"""Confidence scores of logits, which decide whether an image is read again by the next member of a cascade."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sureness(logits: Tensor, score: object = "margin") -> Tensor:
    """Confidence of logits (B, K), K at least 2: (B,) float32 or float64, from 0 to 1.

    Args:
        logits: (B, K). Half precision is computed in float32.
        score: "margin" is the largest probability minus the second largest, "probability" the largest, "entropy" 1
            minus the entropy of the probabilities divided by log K. For a function (see `logits_of`) it is the margin.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if score == "entropy":
        logs = exact.log_softmax(1)
        return 1 + (logs.exp() * logs).nan_to_num(0.0).sum(1) / math.log(logits.shape[1])
    largest = exact.softmax(1).topk(2, dim=1).values
    return largest[:, 0] if score == "probability" else largest[:, 0] - largest[:, 1]


def read_again(scores: Tensor, threshold: float) -> Tensor:
    """Which images to read again, (B,) bool: those with a score (B,) below the threshold, or NaN; all if it is 1."""
    return torch.ones_like(scores, dtype=torch.bool) if threshold >= 1 else ~(scores >= threshold)
