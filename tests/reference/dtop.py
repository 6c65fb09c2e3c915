"""DToP, the slow way: one image after the other, boolean masks, one token at a time (arXiv 2308.01045, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def exits(prediction: Tensor, exited: Tensor, threshold: float, keep: int) -> Tensor:
    """(K, N) probabilities and (N,) bool of one image -> (N,) bool."""
    active = [n for n in range(len(exited)) if not exited[n]]
    candidates: dict[int, list[tuple[float, int]]] = {}
    for n in active:
        column = [float(value) for value in prediction[:, n]]
        confidence = max(column)
        if confidence > threshold:
            candidates.setdefault(column.index(confidence), []).append((confidence, n))
    gone = set()
    for found in candidates.values():
        found.sort(key=lambda pair: (-pair[0], pair[1]))
        gone |= {n for _, n in found[keep:]}
    if active and len(gone) == len(active):
        gone.remove(min(active, key=lambda n: (max(float(value) for value in prediction[:, n]), n)))
    return torch.tensor([bool(exited[n]) or n in gone for n in range(len(exited))])


def forward(
    x: Tensor,
    blocks: Sequence[Callable[[Tensor], Tensor]],
    heads: dict[int, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]],
    thresholds: Sequence[float],
    keep: int,
    prefix: int,
) -> tuple[Tensor, Tensor, Tensor, list[int], list[int]]:
    """One image through blocks, with exits behind those that have a head.

    Args:
        x: (N, d), prefix first.
        heads: block -> of (n, d) the probability (K, n), what is written on the canvas (K, n), and the head's word on
            the classes as a whole (K,).
        thresholds: of each exit but the last.

    Returns:
        The canvas (K, P), the probability of each patch at its own stage (K, P), the last head's word, how many tokens
        each block read, and the block behind which each patch left.
    """
    patches = len(x) - prefix
    active = list(range(patches))
    canvas: Tensor | None = None
    reads, left, stage = [], [max(heads)] * patches, 0
    for index, block in enumerate(blocks):
        reads.append(len(x))
        x = block(x[None])[0]
        if index not in heads:
            continue
        probability, written, word = heads[index](x)
        probability, written = probability[:, prefix:], written[:, prefix:]
        if canvas is None:
            canvas = torch.zeros(len(written), patches, dtype=x.dtype)
            own = torch.zeros_like(canvas)
        for column, patch in enumerate(active):
            canvas[:, patch], own[:, patch] = written[:, column], probability[:, column]
        if index == max(heads):
            break
        gone = exits(probability, torch.zeros(len(active), dtype=torch.bool), thresholds[stage], keep)
        for column, patch in enumerate(active):
            if gone[column]:
                left[patch] = index
        stays = [column for column in range(len(active)) if not gone[column]]
        active = [active[column] for column in stays]
        x = torch.cat([x[:prefix], x[[prefix + column for column in stays]]])
        stage += 1
    assert canvas is not None
    return canvas, own, word, reads, left
