"""Small random hosts that read video, and their weights in timm's models, which the slow reference knows.

VideoMAE and ViViT become `VisionTransformer`, V-JEPA 2 an `Eva` whose rotary rows and pooling are written here.
"""

from __future__ import annotations

import copy
import itertools
import math
import zlib
from functools import partial
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.reference.hf_hosts import CLASSES, Form, seeded

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": CLASSES}
CLIP = {"image_size": (24, 32), "num_frames": 4}
JEPA: dict[str, Any] = {
    **SIZES, "hidden_size": 40, "mlp_ratio": 2, "patch_size": 8, "crop_size": 24, "tubelet_size": 2,
    "frames_per_clip": 6, "num_pooler_layers": 2, "pred_hidden_size": 24, "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 2,
}  # fmt: skip


def video_forms() -> dict[str, Form]:
    """Constructors of transformers' models of video by name; each call builds the same weights anew, in eval mode."""
    import transformers as hf

    def form(model: str, config: str, **settings: Any) -> Form:
        return lambda: getattr(hf, model)(getattr(hf, config)(**settings))

    mae = {**SIZES, **CLIP, "intermediate_size": 64, "patch_size": 8, "tubelet_size": 2, "use_mean_pooling": True}
    vivit = {**SIZES, **CLIP, "intermediate_size": 64, "tubelet_size": [2, 8, 8]}
    forms = {
        "videomae": form("VideoMAEForVideoClassification", "VideoMAEConfig", **mae),
        "videomae-eager": form("VideoMAEForVideoClassification", "VideoMAEConfig", **mae, attn_implementation="eager"),
        "videomae-model": form("VideoMAEModel", "VideoMAEConfig", **{**mae, "use_mean_pooling": False}),
        "vivit": form("VivitForVideoClassification", "VivitConfig", **vivit),
        "vivit-model": form("VivitModel", "VivitConfig", **vivit),
        "vjepa2": form("VJEPA2ForVideoClassification", "VJEPA2Config", **JEPA),
        "vjepa2-model": form("VJEPA2Model", "VJEPA2Config", **JEPA),
    }
    return {name: partial(seeded, form, zlib.crc32(name.encode())) for name, form in forms.items()}


def video_clips(model: Any, batch: int = 2) -> Tensor:
    """Random clips (B, T, C, H, W) in fp32 that fit the host."""
    jepa = hasattr(model.config, "crop_size")
    shape = (6, 3, 24, 24) if jepa else (4, 3, 24, 32)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))


def still_clips(model: Any, batch: int = 2) -> Tensor:
    """The same with patches that stay as they are, another part of each clip."""
    clips = video_clips(model, batch)
    for index in range(batch):
        for moment in range(2, clips.shape[1], 2):
            wide = 8 * (1 + index % 3)
            clips[index, moment : moment + 2, :, 8:, :wide] = clips[index, moment - 2 : moment, :, 8:, :wide]
    return clips


class Tubelets(nn.Module):
    """The host's convolution in the place of timm's patch embedding: (B, T, C, H, W) -> (B, P, d)."""

    def __init__(self, projection: nn.Conv3d) -> None:
        super().__init__()
        self.proj = copy.deepcopy(projection)
        self.grid: tuple[int, ...] = ()

    def forward(self, clips: Tensor) -> Tensor:
        x = self.proj(clips.transpose(1, 2))
        self.grid = tuple(x.shape[2:])
        return x.flatten(2).transpose(1, 2)

    def dynamic_feat_size(self, _size: Any) -> tuple[int, ...]:
        """The grid of the clips that were read last: (t, h, w)."""
        return self.grid


def video_as_timm(model: Any) -> nn.Module:
    """timm's vision transformer with the weights of a classifier of video, in eval mode."""
    name = type(model).__name__
    if name == "VJEPA2ForVideoClassification":
        return _jepa_as_timm(model)
    encoder = model.videomae if name.startswith("VideoMAE") else model.vivit
    mae, config = name.startswith("VideoMAE"), model.config
    known = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=config.hidden_size, depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads, mlp_ratio=config.intermediate_size / config.hidden_size,
        num_classes=CLASSES, class_token=not mae, global_pool="avg" if mae else "token",
    )  # fmt: skip
    known.patch_embed = Tubelets(encoder.embeddings.patch_embeddings.projection)
    known.pos_embed = nn.Parameter(encoder.embeddings.position_embeddings.detach().clone())
    if mae:
        known.norm, known.fc_norm = nn.Identity(), copy.deepcopy(model.fc_norm)
    else:
        known.cls_token = nn.Parameter(encoder.embeddings.cls_token.detach().clone())
        known.norm = copy.deepcopy(encoder.layernorm)
    known.head = copy.deepcopy(model.classifier)
    for block, layer in zip(known.blocks, encoder.encoder.layer if mae else encoder.layers, strict=True):
        block.norm1, block.norm2 = copy.deepcopy(layer.layernorm_before), copy.deepcopy(layer.layernorm_after)
        if mae:
            inner = layer.attention.attention
            _put_qkv(block.attn.qkv, inner.query, inner.key, inner.value)
            block.attn.proj = copy.deepcopy(layer.attention.output.dense)
            mlp = (layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense)
        else:
            inner = layer.attention
            _put_qkv(block.attn.qkv, inner.q_proj, inner.k_proj, inner.v_proj)
            block.attn.proj = copy.deepcopy(inner.o_proj)
            mlp = (layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2)
        block.mlp.fc1, block.mlp.act, block.mlp.fc2 = map(copy.deepcopy, mlp)
    return known.eval()


def _put_qkv(qkv: nn.Linear, *parts: nn.Linear) -> None:
    """One projection of three; a part without a bias has zeros."""
    with torch.no_grad():
        qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        zeros = torch.zeros(parts[0].out_features)
        qkv.bias.copy_(torch.cat([zeros if part.bias is None else part.bias for part in parts]))


def _jepa_as_timm(model: Any) -> nn.Module:
    encoder, config = model.vjepa2.encoder, model.config
    known = Eva(
        img_size=16, patch_size=8, embed_dim=config.hidden_size, depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads, mlp_ratio=config.mlp_ratio, num_classes=CLASSES, class_token=False,
        global_pool="avg", use_abs_pos_emb=False, use_rot_pos_emb=False, qkv_fused=False,
    )  # fmt: skip
    known.patch_embed = Tubelets(encoder.embeddings.patch_embeddings.proj)
    width = config.hidden_size // config.num_attention_heads
    side = config.crop_size // config.patch_size
    table = rotary_rows((config.frames_per_clip // config.tubelet_size, side, side), width)
    known._pos_embed = lambda x: (x, table)
    known.norm, known.fc_norm, known.head = (
        copy.deepcopy(encoder.layernorm),
        nn.Identity(),
        copy.deepcopy(model.classifier),
    )
    known.pool_by = Pooler(model.pooler)
    for block, layer in zip(known.blocks, encoder.layer, strict=True):
        block.norm1, block.norm2 = copy.deepcopy(layer.norm1), copy.deepcopy(layer.norm2)
        inner, attn = layer.attention, block.attn
        attn.q_proj, attn.k_proj, attn.v_proj = map(copy.deepcopy, (inner.query, inner.key, inner.value))
        attn.proj = copy.deepcopy(inner.proj)
        block.mlp.fc1, block.mlp.act, block.mlp.fc2 = map(
            copy.deepcopy, (layer.mlp.fc1, layer.mlp.activation, layer.mlp.fc2)
        )
    return known.eval()


def rotary_rows(grid: tuple[int, ...], width: int) -> Tensor:
    """(P, 2 width) sines, then cosines, as V-JEPA 2 turns a head: by frame, row and column, a third of it each.

    In each part of 2 m channels the angles of m frequencies stand twice in a row, while neighbours turn together.
    """
    part = 2 * (width // 3 // 2)
    rows = []
    for place in itertools.product(*map(range, grid)):
        angles: list[float] = []
        for along in place:
            angles += 2 * [along / 10000 ** (2 * c / part) for c in range(part // 2)]
        angles += [0.0] * (width - len(angles))
        rows.append([*map(math.sin, angles), *map(math.cos, angles)])
    return torch.tensor(rows, dtype=torch.float64)


class Pooler(nn.Module):
    """V-JEPA 2's attentive pooling of one clip: a key that stands for s patches counts s times."""

    def __init__(self, pooler: Any) -> None:
        super().__init__()
        self.inner = copy.deepcopy(pooler)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        """(N, d) and (N,) -> (d,)."""
        for layer in self.inner.self_attention_layers:
            y, own = layer.layer_norm1(x), layer.self_attn
            x = x + own.out_proj(self._attend(own, y, y, sizes))
            x = x + layer.mlp(layer.layer_norm2(x))
        cross, query = self.inner.cross_attention_layer, self.inner.query_tokens[0]
        x = query + self._attend(cross.cross_attn, query, cross.layer_norm1(x), sizes)
        return (x + cross.mlp(cross.layer_norm2(x)))[0]

    @staticmethod
    def _attend(attn: Any, asks: Tensor, read: Tensor, sizes: Tensor) -> Tensor:
        q, k, v = attn.q_proj(asks), attn.k_proj(read), attn.v_proj(read)
        width = q.shape[1] // attn.num_heads
        heads = []
        for s in range(0, q.shape[1], width):
            powers = torch.exp(q[:, s : s + width] @ k[:, s : s + width].T / math.sqrt(width)) * sizes
            heads.append(powers / powers.sum(1, keepdim=True) @ v[:, s : s + width])
        return torch.cat(heads, dim=1)


def still(clip: Tensor, patch: tuple[int, int, int], threshold: float) -> list[int]:
    """RLT's rule on a clip (T, C, H, W), patch by patch: which patches are read, in row-major order of the grid."""
    frames, channels, height, width = clip.shape
    long, tall, wide = patch
    grid = (frames // long, height // tall, width // wide)
    read = []
    for number, (t, y, x) in enumerate(itertools.product(*map(range, grid))):
        total = 0.0
        if t > 0:
            for f, c, i, j in itertools.product(range(long), range(channels), range(tall), range(wide)):
                now = clip[t * long + f, c, y * tall + i, x * wide + j]
                before = clip[(t - 1) * long + f, c, y * tall + i, x * wide + j]
                total += abs(float(now) - float(before))
        if t == 0 or total / (long * channels * tall * wide) >= threshold:
            read.append(number)
    return read
