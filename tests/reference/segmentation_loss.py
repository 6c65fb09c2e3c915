"""What segmenters minimise, pixel by pixel in float64.

SegViT, arXiv 2210.05844, section 3.3; SETR, arXiv 2012.15840, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.segmentation import resize, softmax

VOID = 255


def presence(classes: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """Queries (K, C) of each image: -log of the right choice, weighted 1 or, where the class is absent, 0.1."""
    total = weights = 0.0
    for queries, told in zip(classes, labels, strict=True):
        seen = set(told.flatten().tolist())
        for index, logits in enumerate(queries):
            count = len(logits)
            here = 0 if count == 2 else index
            choice, weight = (here, 1.0) if index in seen else (count - 1, 0.1)
            total -= weight * math.log(float(softmax(logits)[choice]))
            weights += weight
    return total / weights


def masks_of(masks: Sequence[Tensor], labels: Sequence[Tensor]) -> list[tuple[list[float], list[float]]]:
    """Of each class in each image the mask's logits at the labels' size, and 1 where the class is, both by pixel."""
    found = []
    for maps, told in zip(masks, labels, strict=True):
        large = resize(maps, told.shape)
        for index in range(len(maps)):
            truth = [float(value == index) for value in told.flatten().tolist()]
            if any(truth):
                found.append((large[index].flatten().tolist(), truth))
    return found


def focal(masks: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """-a (1 - p)^2 log p of the right answer's p, a = 0.25 inside and 0.75 outside; mean over pixels and masks."""
    found = masks_of(masks, labels)
    each = []
    for logits, truth in found:
        total = 0.0
        for logit, inside in zip(logits, truth, strict=True):
            p = 1 / (1 + math.exp(-logit))
            right, weight = (p, 0.25) if inside else (1 - p, 0.75)
            total -= weight * (1 - right) ** 2 * math.log(right)
        each.append(total / len(logits))
    return sum(each) / max(1, len(each))


def dice(masks: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1); mean over masks."""
    each = []
    for logits, truth in masks_of(masks, labels):
        inside = [1 / (1 + math.exp(-logit)) for logit in logits]
        overlap = sum(p * t for p, t in zip(inside, truth, strict=True))
        each.append(1 - (2 * overlap + 1) / (sum(inside) + sum(truth) + 1))
    return sum(each) / max(1, len(each))


def pixels(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """Cross-entropy, mean over the pixels of the batch that count."""
    total, counted = 0.0, 0
    for maps, told in zip(logits, labels, strict=True):
        large = resize(maps, told.shape)
        for place, value in enumerate(told.flatten().tolist()):
            if value != VOID:
                total -= math.log(float(softmax(large.flatten(1)[:, place])[value]))
                counted += 1
    return total / max(1, counted)


def as_tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
