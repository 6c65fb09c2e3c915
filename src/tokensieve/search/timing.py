"""Measures the speed of the recipes of a front, all of them in the same rounds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from ..cascades.cascade import Cascade
from ..measure.load import WIDE, OtherWork, disturbs
from ..measure.speed import Speed, interleaved, summarise
from .evaluator import Evaluator
from .front import Front, Measured, Point

MEASURED = 16
"""Batch size for measuring the speed of a front."""
ATTEMPTS = 3
"""Maximum number of measurements while the machine is not quiet."""


def timed(front: Front, evaluator: Evaluator) -> Front:
    """The front with measured speeds of its undominated points and of all at the recommended budget."""
    chosen = [point for point in front.points if not point.dominated or point.budget == front.best.budget]
    points = with_speed(evaluator, front.points, chosen)
    best = next(new for old, new in zip(front.points, points, strict=True) if old is front.best)
    return replace(front, points=tuple(points), best=best)


@torch.no_grad()
def with_speed(
    evaluator: Evaluator, points: Sequence[Point], chosen: Sequence[Point], seconds: float = 10.0
) -> list[Point]:
    """All points; the chosen ones get their speed relative to the dense model, measured in the same rounds.

    If other processes keep the machine busy, or the rounds differ much, it is measured again; the measurement with the
    smallest spread is used.
    """
    parameter = next(evaluator.model.parameters())
    images = evaluator.images[evaluator.parts["search"][:MEASURED]].to(parameter.device)
    fasts = {str(point.recipe): _unwatched(evaluator.sieved(point.recipe)) for point in chosen}
    calls: dict[str, Callable[[], Any]] = {"dense": partial(evaluator.model, images)}
    calls |= {text: partial(fast, images) for text, fast in fasts.items()}
    rounds: list[tuple[str, float, float, dict[str, Speed]]] = []
    try:
        while len(rounds) < ATTEMPTS and not (rounds and not rounds[-1][0]):
            work = OtherWork()
            times = interleaved(calls, seconds=seconds, min_rounds=5, max_rounds=50)
            other_load = work.cores()
            speeds = {
                text: summarise({"dense": times["dense"], "sieved": times[text], "limit": times[text]}, len(images))
                for text in fasts
            }
            spread = median((speed.high - speed.low) / speed.ratio for speed in speeds.values())
            rounds.append((_busy(other_load, spread), spread, other_load, speeds))
    except KeyboardInterrupt:  # the user interrupts the measurement: return the front without it
        if not rounds:
            return list(points)
    busy, _, other_load, speeds = min(rounds, key=lambda entry: (bool(entry[0]), entry[1]))

    def measured(speed: Speed) -> Measured:
        return Measured(speed.ratio, speed.low, speed.high, len(images), len(rounds), other_load, busy)

    return [
        replace(point, speed=measured(speeds[text])) if (text := str(point.recipe)) in fasts else point
        for point in points
    ]


def _unwatched(fast: nn.Module) -> nn.Module:
    """A cascade without its watch, which would warn about repeated images that differ from its calibration."""
    return fast.unwatched() if isinstance(fast, Cascade) else fast


def _busy(other_load: float, spread: float) -> str:
    """Why a measurement is unreliable; empty if the machine was quiet."""
    sentences = []
    if disturbs(other_load, torch.get_num_threads()):
        sentences.append(f"other processes used {other_load:.1f} of {os.cpu_count()} cores")
    if spread > WIDE:
        sentences.append(f"the rounds differ by {100 * spread:.0f} %")
    return ", ".join(sentences)
