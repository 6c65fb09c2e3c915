"""Patch Slimming's score and its masked model, written the slow and obvious way in float64.

Shares no code with the library: one image at a time, a loop over every path through the heads, masks of zeros and ones,
attention as an explicit softmax over the tokens that a mask leaves. For plain timm `VisionTransformer`s.

"Patch Slimming for Efficient Vision Transformers" (arXiv 2106.02852), section 3.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def path_scores(model: VisionTransformer, images: Tensor, patches: Sequence[Sequence[int]]) -> Tensor:
    """(L, P): s_(t,i), the sum over all head paths of ||A_t[:, i]||^2 ||U_t[i]||^2, mean over images."""
    model = copy.deepcopy(model).double().eval()
    depth, prefix = len(model.blocks), model.num_prefix_tokens
    total = []
    for image in images.double():
        inputs, maps = _dense(model, image)
        count = inputs[0].shape[0]
        masks = [_mask(kept, prefix, count) for kept in patches]
        scores = torch.zeros(depth, count, dtype=torch.float64)
        for t in range(depth):
            heads = range(maps[t].shape[0])
            deeper = list(range(t + 1, depth))
            for path in itertools.product(heads, repeat=len(deeper)):
                product = torch.eye(count, dtype=torch.float64)
                for layer, head in zip(deeper, path, strict=True):  # the deepest layer's factor stands leftmost
                    product = torch.diag(masks[layer]) @ maps[layer][head] @ product
                for head in heads:
                    values = maps[t][head] @ inputs[t].abs()
                    for i in range(count):
                        scores[t, i] += (product[:, i].norm() * values[i].norm()) ** 2
        total.append(scores[:, prefix:])
    return torch.stack(total).mean(0)


def mean_scores(model: VisionTransformer, images: Tensor, patches: Sequence[Sequence[int]]) -> Tensor:
    """(L, P): the same with the attentions averaged over heads before they are multiplied."""
    model = copy.deepcopy(model).double().eval()
    depth, prefix = len(model.blocks), model.num_prefix_tokens
    total = []
    for image in images.double():
        inputs, maps = _dense(model, image)
        count = inputs[0].shape[0]
        scores = torch.zeros(depth, count, dtype=torch.float64)
        for t in range(depth):
            product = torch.eye(count, dtype=torch.float64)
            for layer in range(t + 1, depth):
                product = torch.diag(_mask(patches[layer], prefix, count)) @ maps[layer].mean(0) @ product
            for i in range(count):
                values = sum((maps[t][head] @ inputs[t].abs())[i].norm() ** 2 for head in range(maps[t].shape[0]))
                scores[t, i] = product[:, i].norm() ** 2 * values
        total.append(scores[:, prefix:])
    return torch.stack(total).mean(0)


def masked_forward(model: VisionTransformer, images: Tensor, patches: Sequence[Sequence[int]], form: str) -> Tensor:
    """The head's output of a dense computation: rows that a mask leaves out stay as they were and nobody reads them."""
    model = copy.deepcopy(model).double().eval()
    outputs = []
    for image in images.double():
        x = _embed(model, image)
        alive = torch.ones(x.shape[0], dtype=torch.float64)
        for block, kept in zip(model.blocks, patches, strict=True):
            mask = _mask(kept, model.num_prefix_tokens, x.shape[0])
            read = alive if form == "A" else mask
            probabilities, values = _attention(block.attn, block.norm1(x), read)
            mixed = block.attn.proj((probabilities @ values).transpose(0, 1).flatten(1))
            after = x + block.ls1(mixed)
            after = after + block.ls2(block.mlp(block.norm2(after)))
            x, alive = torch.where(mask[:, None] > 0, after, x), mask
        outputs.append(model.head(model.fc_norm(model.norm(x)[0])))
    return torch.stack(outputs)


@torch.no_grad()
def block_error(
    model: VisionTransformer, images: Tensor, index: int, read: Sequence[int], rows: Sequence[int]
) -> float:
    """Relative Frobenius error of the tokens `rows` after block `index` whose keys are those of `read` alone."""
    model = copy.deepcopy(model).double().eval()
    prefix, errors = model.num_prefix_tokens, []
    for image in images.double():
        x = _embed(model, image)
        for block in model.blocks[:index]:
            x = block(x[None])[0]
        block = model.blocks[index]
        probabilities, values = _attention(block.attn, block.norm1(x), _mask(read, prefix, x.shape[0]))
        after = x + block.ls1(block.attn.proj((probabilities @ values).transpose(0, 1).flatten(1)))
        after = after + block.ls2(block.mlp(block.norm2(after)))
        alive = _mask(rows, prefix, x.shape[0]) > 0
        expected = block(x[None])[0][alive]
        errors.append(float((after[alive] - expected).norm() / expected.norm()))
    return sum(errors) / len(errors)


def _dense(model: VisionTransformer, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """For each block what it reads, (N, d), and its attention, (H, N, N)."""
    x, inputs, maps = _embed(model, image), [], []
    for block in model.blocks:
        inputs.append(x)
        maps.append(_attention(block.attn, block.norm1(x), torch.ones(x.shape[0], dtype=torch.float64))[0])
        x = block(x[None])[0]
    return inputs, maps


def _embed(model: VisionTransformer, image: Tensor) -> Tensor:
    return model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]


def _attention(attn: torch.nn.Module, x: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (H, N, N) over the tokens that `read` marks, and values (H, N, d_h)."""
    q, k, v = attn.qkv(x).view(len(x), 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
    logits = attn.q_norm(q) @ attn.k_norm(k).transpose(1, 2) * attn.head_dim**-0.5
    return logits.masked_fill(read == 0, -torch.inf).softmax(-1), v


def _mask(patches: Sequence[int], prefix: int, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.float64)
    mask[:prefix] = 1
    for patch in patches:
        mask[prefix + patch] = 1
    return mask
