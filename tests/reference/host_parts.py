"""The parts of a timm vision transformer that the slow reference composes: embedding, attention, pooling and head."""

from __future__ import annotations

import math

import timm.layers
import torch
from timm.layers import AttentionPoolLatent
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from tests.reference.stream import Stream

ATTENTIONS = [Attention, EvaAttention, getattr(timm.layers, "AttentionRope", Attention)]


def embed(model: nn.Module, image: Tensor) -> tuple[Stream, Tensor | None, int]:
    """Everything before block 0: patches, prefix tokens, positions, patch dropout (none in eval), pre-norm."""
    x = model.patch_embed(image[None])
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)  # drops patches itself
    else:
        x, rope = model.patch_drop(model._pos_embed(x)), None
    x = _part(model, "norm_pre", x)[0]
    prefix = model.num_prefix_tokens
    patches = x.shape[0] - prefix
    stream = Stream.start(x, prefix, tuple(model.patch_embed.dynamic_feat_size(image.shape[-2:])))
    return stream, rope, patches


def scaled(branch: Tensor, block: nn.Module, which: int) -> Tensor:
    """LayerScale of the attention (1) or MLP (2) branch: a module in ViT, a parameter or None in EVA."""
    if isinstance(block, Block):
        return getattr(block, f"ls{which}")(branch)
    gamma = getattr(block, f"gamma_{which}")
    return branch if gamma is None else gamma * branch


def attention(
    attn: nn.Module, x: Tensor, stream: Stream, table: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Self-attention of one image: each head's probabilities (N, N), its keys (N, d_h) before rotary, its values."""
    q, k, v = _heads(attn, x)
    q = [_part(attn, "q_norm", head) for head in q]
    k = [_part(attn, "k_norm", head) for head in k]
    metric = list(k)
    if table is not None:
        # a head of 'mixed' tables has its own rows; keys of grouped heads rotate with the row all heads share
        q = [_rotate(head, stream, table[h] if table.ndim == 3 else table, attn) for h, head in enumerate(q)]
        k = [_rotate(head, stream, table[h] if table.ndim == 3 else table, attn) for h, head in enumerate(k)]
    bias = None
    if stream.weights is not None:
        bias = torch.tensor([math.log(w) for w in stream.weights], dtype=torch.float64)
    share = len(q) // len(k)  # query heads that read one key head
    return [_softmax(q[h], k[h // share], attn.scale, bias) for h in range(len(q))], metric, v


def attended(attn: nn.Module, x: Tensor, stream: Stream, probs: list[Tensor], values: list[Tensor]) -> Tensor:
    """The attention branch (M, d) of the tokens that ask, M of the N in x (N, d)."""
    share = len(probs) // len(values)
    out = torch.cat([matrix[stream.own] @ values[h // share] for h, matrix in enumerate(probs)], dim=-1)
    out = _part(attn, "norm", out)
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out / (1 + torch.exp(-gate(x[stream.own])))
    return attn.proj(out)


def _part(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a part makes of x; an older timm may not have the part, and then nothing is done."""
    return getattr(module, name)(x) if hasattr(module, name) else x


def _heads(attn: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Queries, keys and values as one (N, d_h) matrix a head."""
    if type(attn) not in ATTENTIONS:
        raise NotImplementedError(f"no reference for {type(attn).__name__}")
    width = (attn.q_proj.out_features if attn.qkv is None else attn.qkv.out_features // 3) // attn.num_heads
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


def _rotate(head: Tensor, stream: Stream, table: Tensor, attn: nn.Module) -> Tensor:
    """Rotary position embedding: each patch token turns by its own row of `table` (P, 2 d_h) = [sin, cos]."""
    width = head.shape[1]
    if getattr(attn, "rotate_half", False):
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


def _softmax(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """softmax(q k^T * scale + log weight), proportional attention where there is a bias."""
    logits = q @ k.T * scale
    if bias is not None:
        logits = logits + bias[None, :]
    weights = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
    return weights / weights.sum(dim=1, keepdim=True)


def head(model: nn.Module, stream: Stream) -> Tensor:
    """The host's head on merged tokens: what it would say if every patch had its token's value."""
    x = stream.x
    if isinstance(model, VisionTransformerDistilled):
        return (model.head(x[0]) + model.head_dist(x[1])) / 2
    sizes = torch.tensor(stream.sizes, dtype=torch.float64)
    # EVA's attention pooling reads the prefix tokens too and its other poolings do not; ViT has a switch for both, but
    # in an older timm, which goes by the same rule as EVA
    if hasattr(model, "pool_by"):  # a host whose pooling timm does not have
        return model.head(model.pool_by(x, sizes))
    pool = getattr(model, "attn_pool", None)
    start = 0 if getattr(model, "pool_include_prefix", pool is not None) else stream.prefix
    if pool is not None:
        pooled = _attention_pool(pool, x[start:], sizes[start:])
    elif model.global_pool == "token":
        pooled = x[0]
    elif model.global_pool == "":
        pooled = x
    else:
        average = (sizes[start:, None] * x[start:]).sum(dim=0) / sizes[start:].sum()
        maximum = (
            torch.stack([token for token, size in zip(x, sizes, strict=True) if size > 0][start:]).max(dim=0).values
        )
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
        heads.append(_softmax(q, k, pool.scale, sizes.log()) @ v)
    out = pool.proj(torch.cat(heads, dim=-1))
    if pool.mlp is not None:
        out = out + pool.mlp(pool.norm(out))
    return {"token": out[0], "avg": out.mean(dim=0)}.get(pool.pool, out)
