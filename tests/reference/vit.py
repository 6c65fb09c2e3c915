"""A timm vision transformer under any sequence of methods, written the slow and obvious way in float64.

This file is what the fast code is checked against, so it shares nothing with it: one image at a time, token groups as
lists of positions, attention as an explicit softmax. Only the host's smallest modules are called (embedding, norms,
linear layers, MLP); blocks, attention, pooling and head are composed here. What the methods do is in `dropping.py`,
`merging.py` and `methods.py`.

PaPr: "Accelerating Vision Models by Pruning Patches at Inference" (arXiv 2403.16020).
ToMe: "Token Merging: Your ViT But Faster" (arXiv 2210.09461).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tests.reference.dropping import select
from tests.reference.host_parts import attended, attention, embed, head, scaled
from tests.reference.merging import Tome, match
from tests.reference.stream import Look, Stream, schedule

__all__ = ["Reference", "match", "reference_forward", "schedule", "select"]

HOSTS = (VisionTransformer, VisionTransformerDistilled, Eva)


@dataclass(frozen=True)
class Reference:
    """What the reference computed; B images, P patches, N_last tokens (prefix included) after the last block.

    `margin` is the smallest lead by which a method took one of its decisions (a difference of scores, inf where none
    was taken): another run can be expected to decide alike where its rounding stays well below that.

    Where images keep unlike numbers of tokens (ATS, adaptive), `tokens` and `sizes` are filled up with copies of the
    image's last token that stand for nothing.
    """

    output: Tensor  # what the host returns
    kept: Tensor | None  # (B, n_t) int64, patches that PaPr kept, in token order; None where it was bypassed
    tokens_per_block: list[int]  # tokens, prefix included, that each block's MLP reads
    source: Tensor  # (B, P) int64, for each patch the last block's token that stands for it, -1 if dropped
    sizes: Tensor  # (B, N_last) float64, patches in each token, 1 for prefix tokens
    tokens: Tensor  # (B, N_last, d), last block's output after the host's final norm
    margin: float
    behind: list[list[tuple[Tensor, list[list[int]]]]]  # of each block, of each image: its tokens and their patches


def reference_forward(
    model: nn.Module,
    images: Tensor,
    *,
    keep: float | None = None,
    significance: Tensor | None = None,
    order: str = "raster",
    r: int | tuple[int, float] | Sequence[int] | None = None,
    layers: slice | None = None,
    proportional: bool = True,
    steps: Sequence[Any] = (),
) -> Reference:
    """Run a timm host in float64 with PaPr (`keep`, `significance` (B, P), `order`), then ToMe (`r`, `layers`), then
    `steps` (see `methods.py`), in this order wherever several act in one place.

    The model is copied and converted; the caller's stays as it is.
    """
    if type(model) not in HOSTS:
        raise NotImplementedError(f"no reference for {type(model).__name__}")
    if order not in ("raster", "significance"):
        raise ValueError(f"order {order!r}")
    if keep is not None and keep != 1 and significance is None:
        raise ValueError("keep < 1 needs a significance")
    model = copy.deepcopy(model).double().eval()
    steps = [*([] if r is None else [Tome(r, layers, proportional)]), *steps]

    kepts, counts, behind = [], [], []
    with torch.no_grad():
        streams, rope, patches = [], None, 0
        for b in range(images.shape[0]):
            stream, rope, patches = embed(model, images[b].double())
            for step in steps:
                if hasattr(step, "prepare"):
                    step.prepare(stream)
            if keep is not None and keep != 1:
                if significance.shape != (images.shape[0], patches):
                    raise ValueError(f"significance is {tuple(significance.shape)}, not {(images.shape[0], patches)}")
                kept = select(significance[b].tolist(), keep, stream.prefix, order)
                stream.keep([*range(stream.prefix), *(stream.prefix + j for j in kept)])
                kepts.append(torch.tensor(kept, dtype=torch.int64))
            streams.append(stream)
        for i, block in enumerate(model.blocks):
            table = rope[i] if rope is not None and getattr(model, "rope_mixed", False) else rope
            _run_block(block, streams, table, steps, i, len(model.blocks))
            counts.append(streams[0].count)
            behind.append([(stream.x, [list(group) for group in stream.members]) for stream in streams])
        for stream in streams:
            stream.x = model.norm(stream.x)
        outputs = [head(model, stream) for stream in streams]
        if outputs[0].ndim == 2:  # tokens, unpooled
            outputs = [_filled(x, stream) for x, stream in zip(outputs, streams, strict=True)]
    sizes = [[*stream.sizes, *[0.0] * (stream.count - len(stream.sizes))] for stream in streams]
    return Reference(
        output=torch.stack(outputs),
        kept=torch.stack(kepts) if kepts else None,
        tokens_per_block=counts,
        source=torch.stack([_source(stream, patches) for stream in streams]),
        sizes=torch.tensor(sizes, dtype=torch.float64),
        tokens=torch.stack([_filled(stream.x, stream) for stream in streams]),
        margin=min(stream.margin for stream in streams),
        behind=behind,
    )


def _filled(x: Tensor, stream: Stream) -> Tensor:
    """The rows of x (N, d), and copies of the last one up to what the batch holds."""
    return torch.cat([x, x[-1:].expand(stream.count - x.shape[0], -1)])


def _source(stream: Stream, patches: int) -> Tensor:
    source = [-1] * patches
    for n, group in enumerate(stream.members):
        for j in group:
            source[j] = n
    return torch.tensor(source, dtype=torch.int64)


def _run_block(
    block: nn.Module, streams: list[Stream], table: Tensor | None, steps: Sequence[Any], index: int, depth: int
) -> None:
    """One transformer block; the images go side by side, since how many tokens ATS acts on is decided for all."""
    kind = type(block)
    if kind not in (Block, EvaBlock, ResPostBlock, EvaBlockPostNorm):
        raise NotImplementedError(f"no reference for {kind.__name__}")
    post_norm = kind in (ResPostBlock, EvaBlockPostNorm)

    looks = [Look(index, depth) for _ in streams]
    for step in steps:
        if step.place == "before":
            for stream, look in zip(streams, looks, strict=True):
                step.act(stream, look)

    inner = [stream.x if post_norm else block.norm1(stream.x) for stream in streams]
    for x, stream, look in zip(inner, streams, looks, strict=True):
        stream.own = list(range(len(stream.members)))
        look.probs, look.keys, look.values = attention(block.attn, x, stream, table)
    for place in ("queries", "rows"):
        for step in steps:
            if step.place == place and step.acts(streams[0].count, looks[0]):
                _ask(step, streams, looks)

    for x, stream, look in zip(inner, streams, looks, strict=True):
        probs = look.probs
        for step in steps:
            if hasattr(step, "attend"):
                probs = step.attend(stream, look) or probs
        branch = attended(block.attn, x, stream, probs, look.values)
        stream.x = stream.x + (block.norm1(branch) if post_norm else scaled(branch, block, 1))
        for step in steps:
            if step.place == "inside":
                step.act(stream, look)
        x = stream.x
        stream.x = x + (block.norm2(block.mlp(x)) if post_norm else scaled(block.mlp(block.norm2(x)), block, 2))
    room = max(stream.count for stream in streams)
    for stream in streams:
        stream.count = room


def _ask(step: Any, streams: list[Stream], looks: list[Look]) -> None:
    """Only the tokens that the step names go on; the batch makes room for the most that an image keeps, or for all."""
    for stream, look in zip(streams, looks, strict=True):
        stream.count = len(stream.members)
        stream.keep(step.rows(stream, look))
    room = max(len(stream.members) for stream in streams)
    for stream in streams:
        stream.count = room if getattr(step, "adaptive", True) else step.tokens
