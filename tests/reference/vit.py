"""A timm vision transformer with PaPr and ToMe, written the slow and obvious way in float64.

This file is what the fast code is checked against, so it shares nothing with it: one image at a time, token groups as
lists of positions, attention as an explicit softmax. Only the host's smallest modules are called (embedding, norms,
linear layers, MLP); blocks, attention, pooling and head are composed here.

PaPr: "Accelerating Vision Models by Pruning Patches at Inference" (arXiv 2403.16020).
ToMe: "Token Merging: Your ViT But Faster" (arXiv 2210.09461).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import AttentionPoolLatent
from timm.layers.attention import Attention, AttentionRope
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

HOSTS = (VisionTransformer, VisionTransformerDistilled, Eva)


@dataclass(frozen=True)
class Reference:
    """What the reference computed; B images, P patches, N_last tokens (prefix included) after the last block.

    `margin` is the smallest lead by which ToMe took one of its decisions (a cosine difference, inf without a merge):
    a lower-precision run can be expected to take the same decisions where its rounding stays well below that.
    """

    output: Tensor  # what the host returns
    kept: Tensor | None  # (B, n_t) int64, patches that PaPr kept, in token order; None where it was bypassed
    tokens_per_block: list[int]  # tokens, prefix included, that each block's MLP reads
    source: Tensor  # (B, P) int64, for each patch the last block's token that stands for it, -1 if dropped
    sizes: Tensor  # (B, N_last) float64, patches in each token, 1 for prefix tokens
    tokens: Tensor  # (B, N_last, d), last block's output after the host's final norm
    margin: float


@dataclass
class _Stream:
    """The tokens of one image on their way through the blocks."""

    x: Tensor  # (N, d)
    prefix: int
    members: list[list[int]]  # patches that each token stands for; empty for prefix tokens
    rows: list[int]  # row of the rotary table that each token uses; -1 for prefix tokens
    sizes: list[float]
    merged: bool = False
    margin: float = math.inf


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
) -> Reference:
    """Run a timm host in float64 with PaPr (`keep`, `significance` (B, P), `order`) and ToMe (`r`, `layers`).

    The model is copied and converted; the caller's stays as it is.
    """
    if type(model) not in HOSTS:
        raise NotImplementedError(f"no reference for {type(model).__name__}")
    if order not in ("raster", "significance"):
        raise ValueError(f"order {order!r}")
    if keep is not None and keep != 1 and significance is None:
        raise ValueError("keep < 1 needs a significance")
    model = copy.deepcopy(model).double().eval()
    r_of_block = schedule(r, len(model.blocks), layers)

    outputs, kepts, sources, sizes, tokens = [], [], [], [], []
    counts: list[int] = []
    margin = math.inf
    with torch.no_grad():
        for b in range(images.shape[0]):
            stream, rope, patches = _embed(model, images[b].double())
            kept = None
            if keep is not None and keep != 1:
                if significance.shape != (images.shape[0], patches):
                    raise ValueError(f"significance is {tuple(significance.shape)}, not {(images.shape[0], patches)}")
                kept = select(significance[b].tolist(), keep, stream.prefix, order)
                _drop(stream, kept)
            counts = []
            for i, block in enumerate(model.blocks):
                table = rope[i] if rope is not None and model.rope_mixed else rope
                _run_block(block, stream, table, r_of_block[i], proportional)
                counts.append(len(stream.members))
            stream.x = model.norm(stream.x)

            outputs.append(_head(model, stream))
            tokens.append(stream.x)
            sizes.append(torch.tensor(stream.sizes, dtype=torch.float64))
            sources.append(_source(stream, patches))
            if kept is not None:
                kepts.append(torch.tensor(kept, dtype=torch.int64))
            margin = min(margin, stream.margin)
    return Reference(
        output=torch.stack(outputs),
        kept=torch.stack(kepts) if kepts else None,
        tokens_per_block=counts,
        source=torch.stack(sources),
        sizes=torch.stack(sizes),
        tokens=torch.stack(tokens),
        margin=margin,
    )


# --- PaPr ------------------------------------------------------------------------------------------------------------


def select(significance: Sequence[float], keep: float, prefix: int, order: str = "raster") -> list[int]:
    """PaPr's patch selection: the n_t most significant patches, ties to the lower index.

    n_t is counted from all tokens, prefix included (197 and keep .5 give 98 patches), and never exceeds the patches.
    """
    patches = len(significance)
    n_t = min(max(int((patches + prefix) * keep), 1), patches)
    ranking = sorted(range(patches), key=lambda j: (-significance[j], j))
    survivors = ranking[:n_t]
    return sorted(survivors) if order == "raster" else survivors


def _drop(stream: _Stream, kept: list[int]) -> None:
    """Keep the prefix tokens and the given patches, in the given order."""
    p = stream.prefix
    positions = list(range(p)) + [p + j for j in kept]
    stream.x = torch.stack([stream.x[n] for n in positions])
    stream.members = [stream.members[n] for n in positions]
    stream.rows = [stream.rows[n] for n in positions]
    stream.sizes = [stream.sizes[n] for n in positions]


# --- ToMe ------------------------------------------------------------------------------------------------------------


def schedule(r: int | tuple[int, float] | Sequence[int] | None, depth: int, layers: slice | None = None) -> list[int]:
    """ToMe's merging schedule: merges per block from a constant, a pair (r, inflect) or a list padded with zeros."""
    if r is None:
        wanted = [0] * depth
    elif isinstance(r, int):
        wanted = [r] * depth
    elif isinstance(r, tuple) and len(r) == 2:
        mean, inflect = r
        low = int(mean * (1 - inflect))
        high = 2 * mean - low
        wanted = [int(low + (high - low) * i / max(depth - 1, 1)) for i in range(depth)]
    else:
        wanted = [*r, *[0] * depth][:depth]
    active = range(depth) if layers is None else range(depth)[layers]
    return [max(wanted[i], 0) if i in active else 0 for i in range(depth)]


def match(metric: Tensor, prefix: int, r: int) -> tuple[list[list[int]], float]:
    """ToMe's bipartite soft matching of N tokens with features `metric` (N, d).

    Returns the new sequence as groups of old positions and the smallest lead of a decision. A group's first position
    is the destination: the one that gives the group its place and its rotary row. Even positions are A, odd ones B.
    """
    n = metric.shape[0]
    r = min(r, (n - prefix) // 2)
    if r <= 0:
        return [[i] for i in range(n)], math.inf
    unit = []
    for key in metric.tolist():
        length = math.sqrt(sum(v * v for v in key))
        # a zero key is similar to nothing; the quotient would be NaN
        unit.append([v / length for v in key] if length > 0 else key)
    a_side = [i for i in range(n) if i % 2 == 0 and i >= prefix]
    b_side = [i for i in range(n) if i % 2 == 1 and i >= prefix]

    best: dict[int, int] = {}
    score: dict[int, float] = {}
    lead: dict[int, float] = {}
    for a in a_side:
        scores = [sum(u * v for u, v in zip(unit[a], unit[b], strict=True)) for b in b_side]
        winner = max(range(len(scores)), key=lambda k: (scores[k], -k))
        best[a], score[a] = b_side[winner], scores[winner]
        lead[a] = min((scores[winner] - s for k, s in enumerate(scores) if k != winner), default=math.inf)

    ranking = sorted(a_side, key=lambda a: (-score[a], a))
    sources, unmerged = ranking[:r], ranking[r:]
    margin = min(lead[a] for a in sources)
    if unmerged:
        margin = min(margin, score[sources[-1]] - score[unmerged[0]])
    if prefix > 0:
        # where a class token leads, the survivors of A return to their own order
        unmerged = sorted(unmerged)
    else:
        margin = min([margin, *(score[a] - score[b] for a, b in itertools.pairwise(unmerged))])
    groups = [[i] for i in range(prefix)]
    groups += [[a] for a in unmerged]
    groups += [[b] + [a for a in sources if best[a] == b] for b in b_side]
    return groups, margin


def _merge(stream: _Stream, groups: list[list[int]]) -> None:
    """Replace each group by its mean weighted by size; sizes add up (ToMe, tracking token size)."""
    old = stream.x
    means, members, rows, sizes = [], [], [], []
    for group in groups:
        total = sum(stream.sizes[n] for n in group)
        weighted = torch.zeros_like(old[0])
        for n in group:
            weighted = weighted + stream.sizes[n] * old[n]
        means.append(weighted / total if len(group) > 1 else old[group[0]])
        members.append([j for n in group for j in stream.members[n]])
        rows.append(stream.rows[group[0]])
        sizes.append(total)
    stream.x, stream.members, stream.rows, stream.sizes = torch.stack(means), members, rows, sizes
    stream.merged = True


def _source(stream: _Stream, patches: int) -> Tensor:
    source = [-1] * patches
    for n, group in enumerate(stream.members):
        for j in group:
            source[j] = n
    return torch.tensor(source, dtype=torch.int64)


# --- the host --------------------------------------------------------------------------------------------------------


def _embed(model: nn.Module, image: Tensor) -> tuple[_Stream, Tensor | None, int]:
    """Everything before block 0: patches, prefix tokens, positions, patch dropout (none in eval), pre-norm."""
    x = model.patch_embed(image[None])
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)  # drops patches itself
    else:
        x, rope = model.patch_drop(model._pos_embed(x)), None
    x = model.norm_pre(x)[0]
    prefix = model.num_prefix_tokens
    patches = x.shape[0] - prefix
    stream = _Stream(
        x=x,
        prefix=prefix,
        members=[[] for _ in range(prefix)] + [[j] for j in range(patches)],
        rows=[-1] * prefix + list(range(patches)),
        sizes=[1.0] * (prefix + patches),
    )
    return stream, rope, patches


def _run_block(block: nn.Module, stream: _Stream, table: Tensor | None, r: int, proportional: bool) -> None:
    """One transformer block with ToMe's merge between the attention residual and the MLP."""
    kind = type(block)
    x = stream.x
    if kind in (Block, EvaBlock):
        branch, keys = _attention(block.attn, block.norm1(x), stream, table, proportional)
        stream.x = x + _scaled(branch, block, 1)
    elif kind in (ResPostBlock, EvaBlockPostNorm):
        branch, keys = _attention(block.attn, x, stream, table, proportional)
        stream.x = x + block.norm1(branch)
    else:
        raise NotImplementedError(f"no reference for {kind.__name__}")

    groups, margin = match(sum(keys) / len(keys), stream.prefix, r)
    if len(groups) < len(stream.members):
        _merge(stream, groups)
        stream.margin = min(stream.margin, margin)

    x = stream.x
    if kind in (Block, EvaBlock):
        stream.x = x + _scaled(block.mlp(block.norm2(x)), block, 2)
    else:
        stream.x = x + block.norm2(block.mlp(x))


def _scaled(branch: Tensor, block: nn.Module, which: int) -> Tensor:
    """LayerScale of the attention (1) or MLP (2) branch: a module in ViT, a parameter or None in EVA."""
    if isinstance(block, Block):
        return getattr(block, f"ls{which}")(branch)
    gamma = getattr(block, f"gamma_{which}")
    return branch if gamma is None else gamma * branch


def _attention(
    attn: nn.Module, x: Tensor, stream: _Stream, table: Tensor | None, proportional: bool
) -> tuple[Tensor, list[Tensor]]:
    """Self-attention of one image: the branch (N, d) and each head's keys (N, d_h) after key norm, before rotary."""
    q, k, v = _heads(attn, x)
    q = [attn.q_norm(head) for head in q]
    k = [attn.k_norm(head) for head in k]
    metric = list(k)
    if table is not None:
        # a head of 'mixed' tables has its own rows; keys of grouped heads rotate with the row all heads share
        q = [_rotate(head, stream, table[h] if table.ndim == 3 else table, attn) for h, head in enumerate(q)]
        k = [_rotate(head, stream, table[h] if table.ndim == 3 else table, attn) for h, head in enumerate(k)]
    bias = None
    if proportional and stream.merged:
        bias = torch.tensor([math.log(s) for s in stream.sizes], dtype=torch.float64)
    share = len(q) // len(k)  # query heads that read one key head
    out = torch.cat([_attend(q[h], k[h // share], v[h // share], attn.scale, bias) for h in range(len(q))], dim=-1)
    out = attn.norm(out)
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out / (1 + torch.exp(-gate(x)))
    return attn.proj(out), metric


def _heads(attn: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Queries, keys and values as one (N, d_h) matrix a head."""
    if type(attn) not in (Attention, AttentionRope, EvaAttention):
        raise NotImplementedError(f"no reference for {type(attn).__name__}")
    width = attn.head_dim
    if attn.qkv is None:
        parts = [attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)]
    else:
        joint = attn.qkv(x)
        if type(attn) is EvaAttention and attn.q_bias is not None:
            joint = joint + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        third = attn.num_heads * width
        parts = [joint[:, s * third : (s + 1) * third] for s in range(3)]
    q, k, v = ([part[:, s : s + width] for s in range(0, part.shape[1], width)] for part in parts)
    return q, k, v


def _rotate(head: Tensor, stream: _Stream, table: Tensor, attn: nn.Module) -> Tensor:
    """Rotary position embedding: each patch token turns by its own row of `table` (P, 2 d_h) = [sin, cos]."""
    width = head.shape[1]
    if attn.rotate_half:
        pairs = [(c, c + width // 2) for c in range(width // 2)]
    else:
        pairs = [(c, c + 1) for c in range(0, width, 2)]
    first = [a for a, _ in pairs]
    second = [b for _, b in pairs]
    out = head.clone()
    for n, row in enumerate(stream.rows):
        if row < 0:
            continue  # prefix tokens have no place in the picture
        sin, cos = table[row, :width], table[row, width:]
        out[n, first] = head[n, first] * cos[first] - head[n, second] * sin[first]
        out[n, second] = head[n, second] * cos[second] + head[n, first] * sin[second]
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """softmax(q k^T * scale + log size) v, ToMe's proportional attention where there is a bias."""
    logits = q @ k.T * scale
    if bias is not None:
        logits = logits + bias[None, :]
    weights = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights @ v


def _head(model: nn.Module, stream: _Stream) -> Tensor:
    """The host's head on merged tokens: what it would say if every patch had its token's value."""
    x = stream.x
    if isinstance(model, VisionTransformerDistilled):
        return (model.head(x[0]) + model.head_dist(x[1])) / 2
    sizes = torch.tensor(stream.sizes, dtype=torch.float64)
    # EVA's attention pooling reads the prefix tokens too and its other poolings do not; ViT has a switch for both
    include = model.attn_pool is not None if isinstance(model, Eva) else model.pool_include_prefix
    start = 0 if include else stream.prefix
    if model.attn_pool is not None:
        pooled = _attention_pool(model.attn_pool, x[start:], sizes[start:])
    elif model.global_pool == "token":
        pooled = x[0]
    elif model.global_pool == "":
        pooled = x
    else:
        average = (sizes[start:, None] * x[start:]).sum(dim=0) / sizes[start:].sum()
        maximum = x[start:].max(dim=0).values
        pooled = {"avg": average, "max": maximum, "avgmax": (average + maximum) / 2}[model.global_pool]
    return model.head(model.fc_norm(pooled))


def _attention_pool(pool: nn.Module, x: Tensor, sizes: Tensor) -> Tensor:
    """Attention pooling with a learned query; a key that stands for s patches counts s times."""
    if type(pool) is not AttentionPoolLatent or pool.pos_embed is not None:
        raise NotImplementedError(f"no reference for {type(pool).__name__}")
    width = pool.head_dim
    total = width * pool.num_heads
    queries = pool.q(pool.latent[0])
    both = pool.kv(x)
    heads = []
    for s in range(0, total, width):
        q = pool.q_norm(queries[:, s : s + width])
        k = pool.k_norm(both[:, s : s + width])
        v = both[:, total + s : total + s + width]
        heads.append(_attend(q, k, v, pool.scale, sizes.log()))
    out = pool.proj(torch.cat(heads, dim=-1))
    if pool.mlp is not None:
        out = out + pool.mlp(pool.norm(out))
    return {"token": out[0], "avg": out.mean(dim=0)}.get(pool.pool, out)
