"""Small random hosts of torchvision, and their weights in timm's models or under its names for the references."""

from __future__ import annotations

import copy
import zlib
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, LayerNorm2d
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from tests.reference.hf_hosts import CLASSES, Form, seeded

VIT = {"image_size": 40, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
SWIN: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2]}
SWIN |= {"window_size": [4, 4], "stochastic_depth_prob": 0.0, "num_classes": 5}
V2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}


def torchvision_vits() -> dict[str, Form]:
    """Constructors of vision transformers by name; the same weights each time, in eval mode."""
    vit = partial(VisionTransformer, **VIT, num_classes=CLASSES)
    stem = [ConvStemConfig(channels, 3, 2, norm_layer=LayerNorm2d) for channels in (8, 16, 24)]
    forms = {
        "vit": vit,
        "vit-representation": partial(vit, representation_size=12),
        "vit-convolutional-stem": partial(vit, conv_stem_configs=stem),
    }
    return _named(forms)


def torchvision_staged() -> dict[str, Form]:
    """The same of models with stages; no dropout and no stochastic depth."""
    convnext = partial(_convnext, (8, 16, 24, 32), (1, 2, 2, 1))
    swin = partial(SwinTransformer, **SWIN)
    forms = {
        "convnext": convnext,
        "convnext-shrunk-behind": partial(_convnext, (8, 16, 24), (1, 2, 1), behind=28),
        "swin": swin,
        "swin-tall-windows": partial(swin, **{**SWIN, "window_size": [9, 3], "patch_size": [4, 2]}),
        "swin-v2": partial(swin, **V2),
        "swin-v2-tall-windows": partial(swin, **{**SWIN, **V2, "window_size": [9, 3], "patch_size": [4, 2]}),
    }
    return _named(forms)


def _named(forms: dict[str, Any]) -> dict[str, Form]:
    return {name: partial(seeded, form, zlib.crc32(f"torchvision {name}".encode())) for name, form in forms.items()}


def _convnext(widths: tuple[int, ...], depths: tuple[int, ...], behind: int | None = None) -> ConvNeXt:
    following = (*widths[1:], behind)
    settings = [CNBlockConfig(*each) for each in zip(widths, following, depths, strict=True)]
    return ConvNeXt(settings, layer_scale=0.1, num_classes=5)


def torchvision_images(model: nn.Module, batch: int = 2) -> Tensor:
    """Random images (B, 3, 40, 40) in fp32, of the size that a vision transformer reads."""
    return torch.randn(batch, 3, 40, 40, generator=torch.Generator().manual_seed(batch))


def vit_as_timm(model: Any) -> TimmVisionTransformer:
    """timm's vision transformer with the weights of torchvision's, copied, in eval mode."""
    layers = model.encoder.layers
    other = TimmVisionTransformer(
        model.image_size,
        model.patch_size,
        embed_dim=model.hidden_dim,
        depth=len(layers),
        num_heads=layers[0].num_heads,
        mlp_ratio=model.mlp_dim / model.hidden_dim,
        num_classes=model.num_classes,
    )
    other.patch_embed.proj, other.head = copy.deepcopy(model.conv_proj), copy.deepcopy(model.heads)  # of any parts
    names = {"conv_proj": "patch_embed.proj", "encoder.ln": "norm", "heads": "head"}
    own = {"class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}
    for index in range(len(layers)):
        here, there = f"encoder.layers.encoder_layer_{index}", f"blocks.{index}"
        names |= {f"{here}.ln_1": f"{there}.norm1", f"{here}.ln_2": f"{there}.norm2"}
        names |= {f"{here}.mlp.0": f"{there}.mlp.fc1", f"{here}.mlp.3": f"{there}.mlp.fc2"}
        names |= {f"{here}.self_attention.out_proj": f"{there}.attn.proj"}
        own |= {f"{here}.self_attention.in_proj_{part}": f"{there}.attn.qkv.{part}" for part in ("weight", "bias")}
    state = {}
    for key, value in model.state_dict().items():
        name = next((name for name in names if key.startswith(f"{name}.")), "")
        state[names[name] + key.removeprefix(name) if name else own[key]] = value
    other.load_state_dict(state)
    return other.eval()


def staged_as_timm(model: Any) -> SimpleNamespace:
    """The weights of a model with stages, and its stem and what shrinks its maps as they are, under timm's names."""
    stem, *parts = model.features
    convnext = isinstance(model, ConvNeXt)
    stages, shrink = [], None
    for part in parts:
        blocks = list(part) if isinstance(part, nn.Sequential) and not isinstance(part[-1], nn.Conv2d) else None
        if blocks is None:
            shrink = part
        else:
            opened = [_cn_block(block) if convnext else _swin_block(block) for block in blocks]
            stages.append(SimpleNamespace(downsample=shrink or nn.Identity(), blocks=opened))
            shrink = None
    if convnext:
        norm, _, linear = model.classifier
        return SimpleNamespace(
            stem=stem,
            stages=stages,
            norm_pre=shrink or nn.Identity(),
            head=lambda x: linear(norm(x.mean((2, 3))[:, :, None, None])[:, :, 0, 0]),
            training=model.training,
        )
    return SimpleNamespace(
        patch_embed=stem,
        layers=stages,
        norm=model.norm,
        head=lambda x: model.head(x.mean((1, 2))),
        norms_behind=isinstance(parts[0][0], SwinTransformerBlockV2),
        training=model.training,
    )


def _cn_block(block: Any) -> SimpleNamespace:
    conv, _, norm, wide, _, narrow, _ = block.block
    return SimpleNamespace(
        conv_dw=conv, norm=norm, mlp=SimpleNamespace(fc1=wide, fc2=narrow), gamma=block.layer_scale[:, 0, 0]
    )


def _swin_block(block: Any) -> SimpleNamespace:
    inner = block.attn
    attn = SimpleNamespace(num_heads=inner.num_heads, qkv=inner.qkv, proj=inner.proj)
    if isinstance(block, SwinTransformerBlockV2):
        attn.q_bias, _, attn.v_bias = inner.qkv.bias.chunk(3)
        attn.cpb_mlp, attn.relative_coords_table = inner.cpb_mlp, inner.relative_coords_table
        attn.logit_scale = inner.logit_scale
    else:
        attn.relative_position_bias_table = inner.relative_position_bias_table
    return SimpleNamespace(
        window_size=tuple(inner.window_size),
        shift_size=tuple(inner.shift_size),
        norm1=block.norm1,
        norm2=block.norm2,
        attn=attn,
        mlp=SimpleNamespace(fc1=block.mlp[0], fc2=block.mlp[3]),
        fills_first=True,
        rests_along_small_sides=True,
    )
