"""Small random models of transformers for dense prediction, one for each form; every parameter matters."""

from __future__ import annotations

import zlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.hf_hosts import CLASSES, DINO, VIT, Form, seeded

OUT = ["stage1", "stage2", "stage3"]
FOUR = ["stage1", "stage2", "stage3", "stage4"]
DEEP = {"num_hidden_layers": 4}
NECK = {"neck_hidden_sizes": [8, 12, 16, 16], "fusion_hidden_size": 8, "reassemble_hidden_size": 32}
UPER = {"hidden_size": 12, "auxiliary_channels": 8, "pool_scales": [1, 2], "num_labels": CLASSES}
BEIT = {**VIT, "use_relative_position_bias": True, "layer_scale_init_value": 0.1}
QUERIES = {"num_queries": 5, "num_blocks": 2, "num_upscale_blocks": 1, "num_labels": CLASSES}
STAGED = {"depths": [1, 1, 2, 1], "out_features": FOUR}


def backbone_forms() -> dict[str, Form]:
    """Backbones with tokens, by name; each call builds the same weights anew, in eval mode."""
    import transformers as hf

    def form(model: str, config: str, **settings: Any) -> Form:
        return lambda: getattr(hf, model)(getattr(hf, config)(**settings))

    registers = {**DINO, "num_register_tokens": 3, "out_features": OUT}
    dinov3 = {**VIT, "num_register_tokens": 4}
    return _seeded(
        {
            "dinov2": form("Dinov2Backbone", "Dinov2Config", **DINO, out_features=OUT),
            "dinov2-rows": form(
                "Dinov2Backbone", "Dinov2Config", **DINO, out_features=["stem", "stage2"], reshape_hidden_states=False
            ),
            "dinov2-plain": form("Dinov2Backbone", "Dinov2Config", **DINO, out_features=OUT, apply_layernorm=False),
            "dinov2-registers": form("Dinov2WithRegistersBackbone", "Dinov2WithRegistersConfig", **registers),
            "dinov3": form("DINOv3ViTBackbone", "DINOv3ViTConfig", **dinov3, out_features=["stage1", "stage3"]),
            "dinov3-class": form(
                "DINOv3ViTBackbone", "DINOv3ViTConfig", **dinov3, out_features=["stage2"], return_class_token=True
            ),
            "beit": form("BeitBackbone", "BeitConfig", **BEIT, out_features=OUT),
            "beit-shared": form(
                "BeitBackbone", "BeitConfig", **VIT, use_shared_relative_position_bias=True, out_features=OUT
            ),
            "beit-both": form(
                "BeitBackbone", "BeitConfig", **BEIT, use_shared_relative_position_bias=True, out_features=OUT
            ),
            "beit-absolute": form(
                "BeitBackbone", "BeitConfig", **VIT, use_absolute_position_embeddings=True, out_features=OUT
            ),
            "beit-pyramid": form("BeitBackbone", "BeitConfig", **{**BEIT, **DEEP}, out_features=FOUR, add_fpn=True),
        }
    )


def dense_forms() -> dict[str, Form]:
    """Models with a head for dense prediction, or for boxes, by name."""
    import transformers as hf

    def around(model: str, config: str, backbone: str, inner: dict[str, Any], **settings: Any) -> Form:
        def build() -> nn.Module:
            own = getattr(hf, backbone)(**inner)
            return getattr(hf, model)(getattr(hf, config)(backbone_config=own, **settings))

        return build

    def form(model: str, config: str, **settings: Any) -> Form:
        return lambda: getattr(hf, model)(getattr(hf, config)(**settings))

    rows = {**DINO, **DEEP, "out_features": FOUR, "reshape_hidden_states": False}
    maps = {**DINO, **DEEP, "out_features": FOUR}
    beit = {**BEIT, **DEEP}
    depth = {**NECK, "head_hidden_size": 6, "patch_size": 8}
    dpt = {**VIT, **DEEP, **NECK, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False}
    eomt = {**DINO, **QUERIES, **DEEP, "num_register_tokens": 2}
    yolos = {**VIT, "image_size": [32, 48], "num_detection_tokens": 4}
    convnext = {**STAGED, "hidden_sizes": [8, 12, 16, 24]}
    swin = {**STAGED, "embed_dim": 8, "num_heads": [1, 2, 2, 4], "window_size": 4, "image_size": 64}
    return _seeded(
        {
            "depth-anything": around(
                "DepthAnythingForDepthEstimation", "DepthAnythingConfig", "Dinov2Config", rows, **depth
            ),
            "depth-anything-metric": around(
                "DepthAnythingForDepthEstimation",
                "DepthAnythingConfig",
                "Dinov2Config",
                rows,
                **depth,
                depth_estimation_type="metric",
                max_depth=20,
            ),
            "prompt-depth-anything": around(
                "PromptDepthAnythingForDepthEstimation", "PromptDepthAnythingConfig", "Dinov2Config", rows, **depth
            ),
            "dpt-depth": form("DPTForDepthEstimation", "DPTConfig", **dpt),
            "dpt-depth-backbone": around(
                "DPTForDepthEstimation", "DPTConfig", "Dinov2Config", rows, **NECK, patch_size=8, is_hybrid=False
            ),
            "dpt-classes": form("DPTForSemanticSegmentation", "DPTConfig", **dpt),
            "zoe": around(
                "ZoeDepthForDepthEstimation",
                "ZoeDepthConfig",
                "BeitConfig",
                {**beit, "out_features": FOUR, "reshape_hidden_states": False},
                **NECK,
                bottleneck_features=8,
                num_relative_features=6,
                num_attractors=[4, 2, 2, 1],
                patch_size=8,
                bin_embedding_dim=12,
                bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
            ),
            "uper-dinov2": around("UperNetForSemanticSegmentation", "UperNetConfig", "Dinov2Config", maps, **UPER),
            "uper-dinov3": around(
                "UperNetForSemanticSegmentation",
                "UperNetConfig",
                "DINOv3ViTConfig",
                {**VIT, **DEEP, "num_register_tokens": 4, "out_features": FOUR},
                **UPER,
            ),
            "uper-beit": around(
                "UperNetForSemanticSegmentation",
                "UperNetConfig",
                "BeitConfig",
                {**beit, "out_features": FOUR, "add_fpn": True},
                **UPER,
            ),
            "beit-classes": form(
                "BeitForSemanticSegmentation",
                "BeitConfig",
                **beit,
                out_indices=[1, 2, 3, 4],
                pool_scales=[1, 2],
                auxiliary_channels=8,
            ),
            "eomt": form("EomtForUniversalSegmentation", "EomtConfig", **eomt),
            "eomt-swiglu": form("EomtForUniversalSegmentation", "EomtConfig", **eomt, use_swiglu_ffn=True),
            "eomt-dinov3": form(
                "EomtDinov3ForUniversalSegmentation",
                "EomtDinov3Config",
                **{**VIT, **QUERIES, **DEEP, "num_register_tokens": 2},
            ),
            "yolos": form("YolosForObjectDetection", "YolosConfig", **yolos),
            "yolos-once": form("YolosForObjectDetection", "YolosConfig", **yolos, use_mid_position_embeddings=False),
            "uper-convnext": around(
                "UperNetForSemanticSegmentation", "UperNetConfig", "ConvNextConfig", convnext, **UPER
            ),
            "uper-swin": around("UperNetForSemanticSegmentation", "UperNetConfig", "SwinConfig", swin, **UPER),
        }
    )


def dense_images(model: nn.Module, batch: int = 2) -> Tensor:
    """Random images (B, 3, H, W) in fp32 that fit the model."""
    config: Any = getattr(model.config, "backbone_config", None) or model.config
    staged = config.model_type in ("convnext", "swin")
    side = 64 if staged else config.image_size
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


def _seeded(forms: dict[str, Form]) -> dict[str, Form]:
    return {name: partial(seeded, form, zlib.crc32(name.encode())) for name, form in forms.items()}
