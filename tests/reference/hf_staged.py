"""Small random hosts with stages of transformers, and their weights under timm's names for the slow reference."""

from __future__ import annotations

import zlib
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.hf_hosts import CLASSES, Form, seeded

CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1], "num_labels": CLASSES}
SWIN = {"embed_dim": 8, "depths": [2, 2, 2], "num_heads": [1, 2, 2], "window_size": 4, "patch_size": 4}
SWIN |= {"image_size": 64, "num_labels": CLASSES, "drop_path_rate": 0.0}
KINDS = ("ConvNext", "ConvNextV2", "Swin", "Swinv2")


def hf_staged_forms() -> dict[str, Form]:
    """Constructors by the name of the class, or that and what is particular; the same weights each time, eval mode."""
    import transformers as hf

    forms: dict[str, Form] = {}
    for kind in KINDS:
        sizes = SWIN if kind.startswith("Swin") else CONVNEXT
        config = partial(getattr(hf, f"{kind}Config"), **sizes)
        if kind == "ConvNext":
            config = partial(config, layer_scale_init_value=0.1)
        stages = len(sizes["depths"])
        forms |= {
            f"{kind}Model": _form(f"{kind}Model", config),
            f"{kind}ForImageClassification": _form(f"{kind}ForImageClassification", config),
            f"{kind}Backbone": _form(f"{kind}Backbone", partial(config, out_indices=list(range(stages + 1)))),
            f"{kind}Backbone some": _form(f"{kind}Backbone", partial(config, out_indices=[1, stages - 1])),
        }
    small = partial(hf.SwinConfig, **{**SWIN, "image_size": (24, 40), "use_absolute_embeddings": True})
    forms |= {
        "ConvNextModel plain": lambda: hf.ConvNextModel(hf.ConvNextConfig(**CONVNEXT, layer_scale_init_value=0.0)),
        "ConvNextForImageClassification headless": _form(
            "ConvNextForImageClassification", partial(hf.ConvNextConfig, **{**CONVNEXT, "num_labels": 0})
        ),
        # maps of 6 x 10 and 3 x 5, and in the last stage of 2 x 3: the window is settled when the model is made
        "Swinv2Model small": _form("Swinv2Model", partial(hf.Swinv2Config, **{**SWIN, "image_size": (24, 40)})),
        "Swinv2Model pretrained": _form(
            "Swinv2Model", partial(hf.Swinv2Config, **SWIN, pretrained_window_sizes=[6, 6, 3], qkv_bias=False)
        ),
        "SwinModel absolute": _form("SwinModel", partial(hf.SwinConfig, **SWIN, use_absolute_embeddings=True)),
        "SwinBackbone absolute": _form("SwinBackbone", partial(small, out_indices=[0, 3])),
        "SwinModel unpooled": lambda: hf.SwinModel(hf.SwinConfig(**SWIN, qkv_bias=False), add_pooling_layer=False),
    }
    return {name: partial(seeded, form, zlib.crc32(name.encode())) for name, form in forms.items()}


def _form(model: str, config: Any) -> Form:
    import transformers as hf

    return lambda: getattr(hf, model)(config())


def base_of(model: Any) -> Any:
    """What holds embeddings and encoder."""
    for part in ("convnext", "convnextv2", "swin", "swinv2"):
        if hasattr(model, part):
            return getattr(model, part)
    return model


def as_timm(model: nn.Module) -> SimpleNamespace:
    """The weights of a model, and its embeddings and what shrinks its maps as they are, under timm's names."""
    base, train = base_of(model), model.training
    if type(base).__name__.startswith("ConvNext"):
        stages = [
            SimpleNamespace(
                downsample=nn.Sequential(*stage.downsampling_layer), blocks=[_convnext(layer) for layer in stage.layers]
            )
            for stage in base.encoder.stages
        ]
        return SimpleNamespace(
            stem=base.embeddings, stages=stages, norm_pre=nn.Identity(), head=nn.Identity(), training=train
        )
    backbone, later = type(model).__name__.endswith("Backbone"), "Swinv2" in type(base).__name__
    merges = [None, *(stage.downsample for stage in base.encoder.layers)]
    stages = [
        SimpleNamespace(
            downsample=nn.Identity() if merge is None else partial(_merged, merge),
            blocks=[_swin_v2(layer) if later else _swin(layer, not backbone) for layer in stage.blocks],
        )
        for merge, stage in zip(merges, base.encoder.layers, strict=False)
    ]
    return SimpleNamespace(
        patch_embed=partial(_embedded, base.embeddings),
        layers=stages,
        norm=nn.Identity() if backbone else base.layernorm,
        head=nn.Identity(),
        norms_behind=later,
        training=train,
    )


def _embedded(embeddings: nn.Module, images: Tensor) -> Tensor:
    x, size = embeddings(images)
    return x.unflatten(1, size)


def _merged(merge: nn.Module, x: Tensor) -> Tensor:
    height, width = x.shape[1:3]
    return merge(x.flatten(1, 2), (height, width)).unflatten(1, (-(-height // 2), -(-width // 2)))


def _convnext(layer: Any) -> SimpleNamespace:
    mlp = SimpleNamespace(fc1=layer.pwconv1, fc2=layer.pwconv2)
    if hasattr(layer, "grn"):
        mlp.grn = SimpleNamespace(weight=layer.grn.weight.flatten(), bias=layer.grn.bias.flatten(), eps=1e-6)
    gamma = getattr(layer, "layer_scale_parameter", None)
    return SimpleNamespace(conv_dw=layer.dwconv, norm=layer.layernorm, mlp=mlp, gamma=gamma)


def _swin(layer: Any, rests: bool) -> SimpleNamespace:
    inner = layer.attention
    parts = (inner.q_proj, inner.k_proj, inner.v_proj)
    bias = None if inner.q_proj.bias is None else torch.cat([part.bias for part in parts])
    attn = SimpleNamespace(
        num_heads=inner.num_attention_heads,
        qkv=SimpleNamespace(weight=torch.cat([part.weight for part in parts]), bias=bias),
        relative_position_bias_table=inner.relative_position_bias.relative_position_bias_table,
        proj=inner.o_proj,
    )
    mlp = SimpleNamespace(fc1=layer.mlp.fc1, fc2=layer.mlp.fc2)
    return _block(layer, attn, mlp, rests)


def _swin_v2(layer: Any) -> SimpleNamespace:
    inner = layer.attention.self
    attn = SimpleNamespace(
        num_heads=inner.num_attention_heads,
        qkv=SimpleNamespace(weight=torch.cat([inner.query.weight, inner.key.weight, inner.value.weight])),
        q_bias=inner.query.bias,
        v_bias=inner.value.bias,
        cpb_mlp=inner.continuous_position_bias_mlp,
        relative_coords_table=inner.relative_coords_table,
        logit_scale=inner.logit_scale,
        proj=layer.attention.output.dense,
    )
    return _block(layer, attn, SimpleNamespace(fc1=layer.intermediate.dense, fc2=layer.output.dense), False)


def _block(layer: Any, attn: SimpleNamespace, mlp: SimpleNamespace, rests: bool) -> SimpleNamespace:
    return SimpleNamespace(
        window_size=(layer.window_size, layer.window_size),
        shift_size=(layer.shift_size, layer.shift_size),
        norm1=layer.layernorm_before,
        norm2=layer.layernorm_after,
        attn=attn,
        mlp=mlp,
        fills_first=True,
        rests_on_small_maps=rests,
    )
