"""Small random hosts of transformers, open_clip and timm's `Beit`, one for each form; every parameter matters."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference import hosts
from tests.reference.hosts import unknown
from tokensieve.hosts import HostBlock
from tokensieve.tokens import Tokens

CLASSES = 7
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 40, "patch_size": 8}
VIT = {**SIZES, "intermediate_size": 64, "num_labels": CLASSES}
DINO = {**SIZES, "mlp_ratio": 2, "num_labels": CLASSES}

Form = Callable[[], nn.Module]


def hf_forms() -> dict[str, Form]:
    """Constructors of transformers' models by name; each call builds the same weights anew, in eval mode."""
    import transformers as hf

    def form(model: str, config: str, **settings: Any) -> Form:
        return lambda: getattr(hf, model)(getattr(hf, config)(**settings))

    registers = {**DINO, "num_register_tokens": 3}
    dinov3 = {**VIT, "num_register_tokens": 4}
    clip = {**VIT, "projection_dim": 24}
    towers = {"vision_config": VIT, "text_config": {**SIZES, "intermediate_size": 64}, "num_labels": CLASSES}
    forms = {
        "vit": form("ViTForImageClassification", "ViTConfig", **VIT),
        "vit-eager": form("ViTForImageClassification", "ViTConfig", **VIT, attn_implementation="eager"),
        "vit-headless": form("ViTForImageClassification", "ViTConfig", **{**VIT, "num_labels": 0}, qkv_bias=False),
        "vit-rectangular": form("ViTForImageClassification", "ViTConfig", **{**VIT, "image_size": (32, 48)}),
        "vit-model": form("ViTModel", "ViTConfig", **VIT),
        "vit-model-unpooled": lambda: hf.ViTModel(hf.ViTConfig(**VIT), add_pooling_layer=False),
        "deit": form("DeiTForImageClassification", "DeiTConfig", **VIT),
        "deit-teacher": form("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VIT),
        "deit-model": form("DeiTModel", "DeiTConfig", **VIT),
        "dinov2": form("Dinov2ForImageClassification", "Dinov2Config", **DINO),
        "dinov2-model": form("Dinov2Model", "Dinov2Config", **DINO),
        "dinov2-swiglu": form("Dinov2Model", "Dinov2Config", **DINO, use_swiglu_ffn=True, drop_path_rate=0.1),
        "dinov2-registers": form("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", **registers),
        "dinov2-registers-model": form("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **registers),
        "dinov3-model": form("DINOv3ViTModel", "DINOv3ViTConfig", **dinov3),
        "dinov3-gated": form("DINOv3ViTModel", "DINOv3ViTConfig", **dinov3, use_gated_mlp=True, key_bias=True),
        "clip-vision": form("CLIPVisionModel", "CLIPVisionConfig", **clip),
        "clip-projection": form("CLIPVisionModelWithProjection", "CLIPVisionConfig", **clip),
        "clip-classifier": form("CLIPForImageClassification", "CLIPConfig", **towers),
        "siglip-vision": form("SiglipVisionModel", "SiglipVisionConfig", **VIT),
        "siglip-classifier": form("SiglipForImageClassification", "SiglipConfig", **towers),
        "siglip-unpooled": form("SiglipVisionModel", "SiglipVisionConfig", **VIT, vision_use_head=False),
        "mae": form("ViTMAEModel", "ViTMAEConfig", **VIT, mask_ratio=0.0),
    }
    return {name: partial(seeded, form, zlib.crc32(name.encode())) for name, form in forms.items()}


def hf_images(model: nn.Module, batch: int = 2) -> Tensor:
    """Random images (B, 3, H, W) in fp32 that fit the host."""
    config = getattr(model.config, "vision_config", model.config)
    side = config.image_size
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


def beit_forms() -> dict[str, Form]:
    """Constructors of timm's `Beit` by name; a form that the installed timm has no settings for is left out."""
    from timm.models.beit import Beit

    sizes = {"img_size": (32, 40), "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    beit = partial(Beit, **sizes, mlp_ratio=2.0)
    forms = {
        "beit": partial(beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1),
        "beit-shared": partial(beit, use_abs_pos_emb=False, use_shared_rel_pos_bias=True, global_pool="token"),
        "beit-both": partial(beit, use_rel_pos_bias=True, use_shared_rel_pos_bias=True, qkv_bias=False),
        "beit-absolute": partial(beit, global_pool="", swiglu_mlp=True, scale_mlp=True),
        "beit-norm": partial(beit, use_rel_pos_bias=True, use_fc_norm=False, init_values=0.1),
    }
    return {name: partial(seeded, form, zlib.crc32(name.encode())) for name, form in forms.items() if not unknown(form)}


def beit_images(batch: int = 2) -> Tensor:
    """Random images (B, 3, 32, 40) in fp32."""
    return torch.randn(batch, 3, 32, 40, generator=torch.Generator().manual_seed(batch))


def open_clip_forms() -> dict[str, Form]:
    """Constructors of open_clip's own vision tower by name."""
    from open_clip.transformer import VisionTransformer

    sizes = {
        "image_size": 40,
        "patch_size": 8,
        "width": 32,
        "layers": 3,
        "heads": 2,
        "mlp_ratio": 2.0,
        "output_dim": 24,
    }
    tower = partial(VisionTransformer, **sizes)
    pooled = {"attn_pooler_queries": 5, "attn_pooler_heads": 2}
    forms: dict[str, Form] = {
        "class": tower,
        "average": partial(tower, pool_type="avg", ls_init_value=0.1, output_tokens=True),
        "average-norm": partial(tower, pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
        "unpooled": partial(tower, pool_type="none"),
        "attention": partial(tower, attentional_pool=True, output_tokens=True, **pooled),
        "attention-parallel": partial(tower, output_dim=32, attentional_pool="parallel", output_tokens=True, **pooled),
        "attention-cascade": partial(tower, output_dim=32, attentional_pool="cascade", **pooled),
    }
    return {name: partial(seeded, form, zlib.crc32(name.encode())) for name, form in forms.items()}


def open_clip_images(batch: int = 2) -> Tensor:
    """Random images (B, 3, 40, 40) in fp32."""
    return torch.randn(batch, 3, 40, 40, generator=torch.Generator().manual_seed(batch))


def in_pairs(images: Tensor, patch: int = 8) -> Tensor:
    """The same images (B, 3, H, W) in which every second patch, in row-major order, is a copy of the one before."""
    batch, _, height, width = images.shape
    patches = nn.functional.unfold(images, patch, stride=patch)
    last = patches.shape[2] // 2 * 2
    patches[:, :, 1:last:2] = patches[:, :, 0:last:2]
    return nn.functional.fold(patches, (height, width), patch, stride=patch).view(batch, 3, height, width)


def assert_asking_agrees(block: HostBlock, tokens: Tokens) -> None:
    """Told who asks, a block projects fewer queries, and is otherwise `qkv(...).ask`."""
    prefix = torch.arange(tokens.prefix).expand(2, -1)
    rows = torch.cat([prefix, torch.tensor([[0, 2, 4], [1, 2, 3]]) + tokens.prefix], dim=1)
    asked, whole = block.qkv(tokens, rows), block.qkv(tokens).only_queries(rows)
    for part in ("q", "k", "v", "keys", "bias"):
        torch.testing.assert_close(getattr(asked, part), getattr(whole, part), atol=1e-12, rtol=1e-12)
    assert (asked.scale, asked.dropout, asked.gate) == (whole.scale, whole.dropout, whole.gate)


def assert_verbs_compose(block: HostBlock, tokens: Tokens, expected: Tensor | None = None, **tolerance: float) -> None:
    """The verbs one after the other give what the block, called whole, gives (or what is `expected`)."""
    heads = block.qkv(tokens)
    out = block.mlp(block.attention_out(heads.attend(), heads, tokens.x))
    expected = block(tokens) if expected is None else expected
    torch.testing.assert_close(out, expected, **(tolerance or {"atol": 1e-10, "rtol": 1e-10}))


def seeded(form: Form, seed: int) -> nn.Module:
    """The model with every parameter random, in eval mode."""
    return hosts.seeded(form, seed, _value)


def _value(name: str, parameter: Tensor) -> Tensor:
    noise = torch.randn_like(parameter)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("gamma_1", "gamma_2", "lambda1", "gamma", "layer_scale"):
        return 0.6 + 0.2 * noise
    if leaf in (
        "cls_token",
        "class_token",
        "class_embedding",
        "distillation_token",
        "register_tokens",
        "probe",
        "query",
    ):
        return noise
    if "position" in name or leaf in ("pos_embed", "pos_embedding", "positional_embedding"):
        return 0.5 * noise
    if leaf.endswith("bias"):
        return 0.3 * noise
    if parameter.ndim == 1:  # norm weights
        return 1 + 0.3 * noise
    # a little above unit gain, so that attention is neither flat nor one-hot
    return 1.2 * noise / parameter[0].numel() ** 0.5
