"""Cascades and their bound, one image and one threshold at a time, in float64 and exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn


def tail(hits: int, count: int, share: Fraction) -> Fraction:
    """The probability of `hits` or more of `count`, where each comes with probability `share`."""
    return sum(
        (math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits, count + 1)), Fraction(0)
    )


def lower_bound(hits: int, count: int, confidence: float) -> float:
    """The largest share under which so many hits have no more than 1 - confidence, by halving exact fractions."""
    if hits == 0:
        return 0.0
    low, high = Fraction(0), Fraction(1)
    for _ in range(30):
        middle = (low + high) / 2
        if float(tail(hits, count, middle)) <= 1 - confidence:
            low = middle
        else:
            high = middle
        low, high = low.limit_denominator(10**9), high.limit_denominator(10**9)
    return float(low)


def certified(
    scores: Sequence[Sequence[float]], same: Sequence[Sequence[bool]], agree: float, confidence: float, steps: int
) -> float | None:
    """The threshold, the same for all members, that a sequence from 1 down in so many steps ends with; None where
    the first one fails."""
    count, kept = len(same[0]), None
    for step in range(steps, -1, -1):
        threshold = step / steps
        hits = 0
        for image in range(count):
            member = 0
            while member < len(scores) and (threshold >= 1 or scores[member][image] < threshold):
                member += 1
            hits += same[member][image]
        # The test of "it agrees too seldom": so many hits are improbable where the share is `agree`.
        if (
            sum(math.comb(count, k) * agree**k * (1 - agree) ** (count - k) for k in range(hits, count + 1))
            > 1 - confidence
        ):
            return kept
        kept = threshold
    return kept


def score_of(logits: Tensor, score: str) -> float:
    """How sure one answer is, of its (K,) scores of classes."""
    values = [math.exp(float(each) - float(logits.max())) for each in logits]
    probabilities = sorted((value / sum(values) for value in values), reverse=True)
    if score == "probability":
        return probabilities[0]
    if score == "entropy":
        return 1 + sum(p * math.log(p) for p in probabilities if p > 0) / math.log(len(probabilities))
    return probabilities[0] - probabilities[1]


def answer(
    members: Sequence[nn.Module],
    thresholds: Sequence[float],
    score: str,
    images: Tensor,
    call: Callable = lambda m, x: m(x),
) -> tuple[Tensor, list[int]]:
    """Each image by itself, through every member in turn -> the answers in order, and who gave each."""
    rows, who = [], []
    for image in images.split(1):
        for index, member in enumerate(members):
            output = call(member, image)
            last = index == len(members) - 1
            if last or (thresholds[index] < 1 and score_of(output[0], score) >= thresholds[index]):
                rows.append(output)
                who.append(index)
                break
    return torch.cat(rows), who
