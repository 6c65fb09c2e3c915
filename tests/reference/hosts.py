"""Small random timm hosts, one for each form that a vision transformer takes there.

Every parameter is random and matters: LayerScale, norms, registers, class tokens and positions would otherwise be so
close to nothing at initialisation that leaving them out would pass unnoticed.

A form whose settings the installed timm does not know, or that it runs in fp32 alone, is left out, and `absent_forms`
says which.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention, ResPostBlock, VisionTransformer
from torch import Tensor, nn

CLASSES = 7

needs_relpos = pytest.mark.skipif(
    not timm.is_model("test_vit_relpos"), reason=f"timm {timm.__version__} has no test_vit_relpos"
)
"""For tests of a small model that is neither host nor proposal."""

Form = Callable[[], nn.Module]


def host_forms() -> dict[str, Form]:
    """Constructors of the hosts by name; each call builds the same weights anew, in eval mode."""
    return {
        name: partial(seeded, form, zlib.crc32(name.encode()), _value)
        for name, form in _forms().items()
        if not unknown(form)
    }


def absent_forms() -> dict[str, str]:
    """Why the other forms cannot be built here, by name."""
    lacking = {name: unknown(form) for name, form in _forms().items()}
    return {name: f"timm {timm.__version__} has no {' and no '.join(what)}" for name, what in lacking.items() if what}


def _forms() -> dict[str, partial[nn.Module]]:
    sizes = {"img_size": 40, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": CLASSES}
    vit = partial(VisionTransformer, **sizes, depth=4, mlp_ratio=2.0)
    eva = partial(Eva, **sizes, depth=3, mlp_ratio=2.0)
    return {
        # class-token ViTs
        "class-token": vit,
        "distilled": partial(VisionTransformerDistilled, **vit.keywords),
        "registers": partial(vit, reg_tokens=4, no_embed_class=True, init_values=0.1),
        "mae": partial(vit, global_pool="avg", fc_norm=True),
        "layerscale": partial(vit, init_values=0.1),
        "qk-norm": partial(vit, qk_norm=True),
        "pre-norm": partial(vit, pre_norm=True),
        "dynamic-size": partial(vit, img_size=32, dynamic_img_size=True),
        "rectangular": partial(vit, img_size=(32, 48)),
        "headless": partial(vit, num_classes=0),
        "no-pool": partial(vit, global_pool="", reg_tokens=1),
        "include-prefix": partial(vit, global_pool="avg", pool_include_prefix=True, reg_tokens=2),
        "map-include-prefix": partial(vit, global_pool="map", pool_include_prefix=True),
        "scale-norms": partial(vit, scale_attn_norm=True, scale_mlp_norm=True),
        "gated": partial(_gated, Attention, vit),
        "rms-swiglu": partial(vit, norm_layer="rmsnorm", mlp_layer=SwiGLUPacked, qk_norm=True, qkv_bias=False),
        # without a class token
        "gap": partial(vit, class_token=False, global_pool="avg", fc_norm=False),
        "gap-fc-norm": partial(vit, class_token=False, global_pool="avg"),
        "registers-gap": partial(vit, class_token=False, reg_tokens=3, global_pool="avg", fc_norm=False),
        "max-pool": partial(vit, class_token=False, global_pool="max"),
        "avgmax-pool": partial(vit, global_pool="avgmax"),
        "siglip": partial(vit, class_token=False, global_pool="map"),
        "respost": partial(vit, class_token=False, global_pool="avg", block_fn=ResPostBlock, init_values=0.1),
        # EVA
        "eva": partial(eva, qkv_bias=True, init_values=0.1),
        "eva-gap": partial(eva, class_token=False, use_rot_pos_emb=True, qkv_bias=False),
        "eva02": partial(
            eva,
            global_pool="token",
            qkv_fused=False,
            swiglu_mlp=True,
            scale_mlp=True,
            scale_attn_inner=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(4, 4),
        ),
        "dinov3": partial(
            eva,
            img_size=32,
            dynamic_img_size=True,
            num_reg_tokens=4,
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_temperature=100.0,
            rope_rotate_half=True,
            init_values=0.1,
            use_fc_norm=False,
        ),
        "eva-mixed-rope": partial(
            eva,
            img_size=(32, 48),
            global_pool="token",
            attn_type="rope",
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="mixed",
            rope_grid_indexing="xy",
            rope_temperature=10.0,
            init_values=0.1,
        ),
        "eva-postnorm": partial(eva, use_post_norm=True, use_rot_pos_emb=True, swiglu_mlp=True),
        "eva-gqa": partial(
            eva,
            num_heads=4,
            num_kv_heads=2,
            attn_type="rope",
            qkv_fused=False,
            use_rot_pos_emb=True,
            qk_norm=True,
            swiglu_mlp=True,
        ),
        "eva-pe": partial(
            eva,
            global_pool="map",
            attn_type="rope",
            use_rot_pos_emb=True,
            rope_grid_offset=1.0,
            rope_grid_indexing="xy",
            ref_feat_shape=(4, 4),
            use_pre_transformer_norm=True,
        ),
        "eva-gated": partial(
            _gated, EvaAttention, partial(eva, use_rot_pos_emb=True, num_reg_tokens=1, no_embed_class=True)
        ),
        "eva-mrope": partial(
            eva, attn_type="rope", use_rot_pos_emb=True, rope_type="mrope", rope_mrope_section=(2, 3, 3)
        ),
    }


def unknown(form: partial[nn.Module]) -> list[str]:
    """The settings of a form that the installed timm does not know, or with which its own model does not run."""
    if form.func is _gated:
        kind, inner = form.args
        return unknown(inner) or unknown(partial(kind, gated=True))
    known = signature(form.func).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values()):
        return []
    absent = [f"{form.func.__name__}({name}=)" for name in form.keywords if name not in known]
    # timm 1.0.21 multiplies its fp32 frequencies with positions of the model's own type.
    if not absent and form.keywords.get("rope_type") == "mixed" and not _runs_in_float64(form):
        return ["rope_type=mixed in other types than fp32"]
    return absent


@torch.no_grad()
def _runs_in_float64(form: Form) -> bool:
    with torch.random.fork_rng(devices=[]):
        model = form().eval().double()
    try:
        model(host_images(model).double())
    except RuntimeError:
        return False
    return True


def host_images(model: nn.Module, batch: int = 2) -> Tensor:
    """Random fp32 images (B, 3, H, W) that fit the host; one patch taller than its own size where it allows that."""
    height, width = model.patch_embed.img_size
    if not model.patch_embed.strict_img_size:
        height += model.patch_embed.patch_size[0]
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


def _gated(kind: type[nn.Module], form: Form) -> nn.Module:
    """The host with gated attention, which timm's constructors do not pass on to the blocks."""
    model = form()
    for block in model.blocks:
        old = block.attn
        settings = {"num_heads": old.num_heads, "qkv_bias": True, "gated": True}
        if isinstance(old, EvaAttention):
            settings |= {"num_prefix_tokens": old.num_prefix_tokens, "scale_norm": False}
        block.attn = kind(model.embed_dim, **settings)
    return model


def seeded(form: Form, seed: int, value: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """The model in eval mode, with every parameter what `value` makes of its name and itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = form()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(value(name, parameter))
    return model.eval()


def _value(name: str, parameter: Tensor) -> Tensor:
    if name.startswith("rope."):  # random already, and tied to the rotary layout
        return parameter
    noise = torch.randn_like(parameter)
    leaf = name.rsplit(".", 1)[-1]
    if "gamma" in leaf:
        return 0.6 + 0.2 * noise
    if leaf in ("cls_token", "reg_token", "dist_token", "latent"):
        return noise
    if leaf == "pos_embed":
        return 0.5 * noise
    if leaf.endswith("bias"):
        return 0.3 * noise
    if parameter.ndim == 1:  # norm weights
        return 1 + 0.3 * noise
    # a little above unit gain, so that attention is neither flat nor one-hot
    return 1.2 * noise / parameter[0].numel() ** 0.5
