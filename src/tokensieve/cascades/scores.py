"""How sure an answer is, from its scores of classes: what decides whether an image is read again."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sureness(logits: Tensor, score: object = "margin") -> Tensor:
    """(B, K) scores of classes, K at least 2 -> (B,) float32 or float64, 0 to 1, the surer the higher.

    "margin" is the first probability less the second, "probability" the first, "entropy" 1 less the entropy of the
    probabilities over log K; a function of its own counts by the margin. Half precision is computed in float32.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if score == "entropy":
        logs = exact.log_softmax(1)
        return 1 + (logs.exp() * logs).nan_to_num(0.0).sum(1) / math.log(logits.shape[1])
    first = exact.softmax(1).topk(2, dim=1).values
    return first[:, 0] if score == "probability" else first[:, 0] - first[:, 1]


def read_again(scores: Tensor, threshold: float) -> Tensor:
    """(B,) scores -> (B,) bool: below the threshold, or not a number; at a threshold of 1 all."""
    return torch.ones_like(scores, dtype=torch.bool) if threshold >= 1 else ~(scores >= threshold)
