"""DynamicCNN and DynamicSwin against their mathematics written out pixel by pixel, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from tokensieve import sieve
from tokensieve.errors import InputError, RecipeError, UnsupportedHost

EXACT = 1e-9
DEPTH = 9


def noisy(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.double().eval()


def convnext() -> ConvNeXt:
    return noisy(ConvNeXt(depths=(1, 1, DEPTH, 1), dims=(4, 6, 8, 10), num_classes=3))


def swin() -> SwinTransformer:
    return noisy(
        SwinTransformer(
            img_size=64, window_size=4, embed_dim=4, depths=(1, 1, 6, 1), num_heads=(1, 1, 1, 1), num_classes=3
        )
    )


def checkpoint(kind: str, width: int, blocks: range, extra: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights under the published keys; ConvNeXt's predictors are 1x1 convolutions."""
    torch.manual_seed(2)
    state = {"head.weight": torch.zeros(1)}  # of the host: ignored
    predictor = "score_predictor" if kind == "cnn" else "layers.2.score_predictor"
    sizes = {"in_conv.1": (width, width), "out_conv.0": (width // 2, width), "out_conv.2": (width // 4, width // 2)}
    sizes["out_conv.4"] = (2, width // 4)
    for k in range(3):
        state[f"{predictor}.{k}.in_conv.0.weight"] = torch.rand(width) + 0.5
        state[f"{predictor}.{k}.in_conv.0.bias"] = torch.randn(width)
        for name, (outward, inward) in sizes.items():
            weight = torch.randn(outward, inward)
            state[f"{predictor}.{k}.{name}.weight"] = weight[..., None, None] if kind == "cnn" else weight
            state[f"{predictor}.{k}.{name}.bias"] = torch.randn(outward)
    for block in blocks:
        path = f"stages.2.{block}.fast_path" if kind == "cnn" else f"layers.2.blocks.{block}.fastmlp.fc1"
        state[f"{path}.0.weight"], state[f"{path}.0.bias"] = torch.rand(width) + 0.5, torch.randn(width)
        state[f"{path}.1.weight"], state[f"{path}.1.bias"] = torch.randn(width, width), torch.randn(width)
        if kind == "cnn":
            state[f"stages.2.{block}.fast_path_gamma"] = torch.randn(width)
    return {**state, **(extra or {})}


def norm(x: Tensor, state: dict[str, Tensor], key: str, eps: float) -> Tensor:
    centred = x - x.mean()
    return centred / ((centred**2).mean() + eps).sqrt() * state[key + ".weight"] + state[key + ".bias"]


def layer(x: Tensor, state: dict[str, Tensor], key: str) -> Tensor:
    return state[key + ".weight"].flatten(1) @ x + state[key + ".bias"]


def ranks(pixels: list[Tensor], state: dict[str, Tensor], key: str, eps: float, count: int) -> list[int]:
    """The pixels that a predictor sends through the slow path."""
    inner = [F.gelu(layer(norm(x, state, f"{key}.in_conv.0", eps), state, f"{key}.in_conv.1")) for x in pixels]
    half = len(inner[0]) // 2
    overall = sum(x[half:] for x in inner) / len(inner)
    scores = []
    for x in inner:
        y = F.gelu(layer(torch.cat([x[:half], overall]), state, f"{key}.out_conv.0"))
        y = layer(F.gelu(layer(y, state, f"{key}.out_conv.2")), state, f"{key}.out_conv.4")
        scores.append(float(y.log_softmax(0)[0]))
    return sorted(range(len(pixels)), key=lambda n: (-scores[n], n))[:count]


def by_hand(kind: str, model: Any, state: dict[str, Tensor], image: Tensor, shares: dict[int, float]) -> Tensor:
    """One image (3, H, W) through the model, its third stage pixel by pixel."""
    state = {key: value.double() for key, value in state.items()}
    eps = 1e-6 if kind == "cnn" else 1e-5
    x = model.stem(image[None]) if kind == "cnn" else model.patch_embed(image[None])
    for number, stage in enumerate(model.stages if kind == "cnn" else model.layers):
        if number != 2:
            x = stage(x)
            continue
        x = stage.downsample(x)
        slow: list[int] | None = None
        for index, block in enumerate(stage.blocks):
            rows = (x.permute(0, 2, 3, 1) if kind == "cnn" else x)[0]
            flat = list(rows.flatten(0, 1))
            if index in shares:
                predictor = f"score_predictor.{list(shares).index(index)}"
                key = predictor if kind == "cnn" else f"layers.2.{predictor}"
                slow = ranks(flat, state, key, eps, int(len(flat) * shares[index]))
            if kind == "cnn":
                before, residual = list(block.conv_dw(x)[0].permute(1, 2, 0).flatten(0, 1)), flat
            else:
                before = residual = list((x + block._attn(block.norm1(x)))[0].flatten(0, 1))
            after = []
            for n, (y, old) in enumerate(zip(before, residual, strict=True)):
                if slow is None or n in slow:
                    change = (block.mlp(block.norm(y)) * block.gamma) if kind == "cnn" else block.mlp(block.norm2(y))
                else:
                    path = f"stages.2.{index}.fast_path" if kind == "cnn" else f"layers.2.blocks.{index}.fastmlp.fc1"
                    change = layer(norm(y, state, f"{path}.0", eps), state, f"{path}.1")
                    if kind == "cnn":
                        change = change * state[f"stages.2.{index}.fast_path_gamma"]
                after.append(old + change)
            x = torch.stack(after).view(1, *rows.shape)
            x = x.permute(0, 3, 1, 2) if kind == "cnn" else x
    x = model.norm_pre(x) if kind == "cnn" else model.norm(x)
    return model.forward_head(x)[0]


def case(kind: str, tmp_path: Path, extra: dict[str, Tensor] | None = None) -> tuple[Any, dict[str, Tensor], Path]:
    model = convnext() if kind == "cnn" else swin()
    width, depth = (8, DEPTH) if kind == "cnn" else (16, 6)
    state = checkpoint(kind, width, range(1, depth), extra)
    file = tmp_path / "paths.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return model, state, file


@pytest.mark.parametrize("kind", ["cnn", "swin"])
@pytest.mark.parametrize("keep", ["0.75", "(0.5, 0.25, 0.9)"])
@torch.no_grad()
def test_equals_the_mathematics(kind: str, keep: str, tmp_path: Path) -> None:
    model, state, file = case(kind, tmp_path)
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    fast = sieve(model, f"dynamic{kind}(keep={keep}, weights='{file}')")
    shares = dict(zip((1, 2, 3), (0.75, 0.55, 0.35) if keep == "0.75" else (0.5, 0.25, 0.9), strict=True))
    wanted = torch.stack([by_hand(kind, model, state, image, shares) for image in images])
    assert (fast(images) - wanted).abs().max() <= EXACT
    assert (model(images) - wanted).abs().max() > 1e-3
    pixels = 16
    counts = [int(pixels * share) for share in shares.values()]
    trace = fast.trace(images)
    depth = DEPTH if kind == "cnn" else 6
    assert trace.tokens_per_block == [256, 64, pixels, *counts[:2], *[counts[2]] * (depth - 3), 4]
    assert [None if kept is None else tuple(kept.shape) for kept in trace.kept] == [None, None, (3, counts[2]), None]


@torch.no_grad()
def test_all_kept_is_the_host_bit_by_bit(tmp_path: Path) -> None:
    model, _, file = case("cnn", tmp_path)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(sieve(model, f"dynamiccnn(keep=1, weights='{file}')")(images), model(images))


def test_published_rounding() -> None:
    """0.7 less 0.2 is a half: 98 of 196, and 58 after the third predictor."""
    fast = sieve(ConvNeXt(depths=(1, 1, DEPTH, 1), dims=(4, 6, 8, 10)), "dynamiccnn(keep=0.7)", pretrained=False)
    assert [read.mlp for read in fast.plan.reads(2, 196)] == [196, 137, 98, *[58] * 6]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    model, _, file = case("cnn", tmp_path)
    with pytest.raises(RecipeError, match="needs the weights of its trained predictors"):
        sieve(model, "dynamiccnn(keep=0.7)")
    with pytest.raises(UnsupportedHost, match="made for Swin"):
        sieve(model, "dynamicswin(keep=0.7)", pretrained=False)
    with pytest.raises(RecipeError, match="must be a number in"):
        sieve(model, "dynamiccnn(keep=0.3)", pretrained=False)
    with pytest.raises(RecipeError, match="there is no block 12"):
        sieve(model, "dynamiccnn(keep=0.7, layers=(3, 12))", pretrained=False)
    with pytest.raises(RecipeError, match="keep has 2 shares, but there are 3 predictors"):
        sieve(model, "dynamiccnn(keep=(0.7, 0.5))", pretrained=False)
    with pytest.raises(RecipeError, match="both select the pixels of stage 2"):
        sieve(model, "dynamiccnn(keep=0.7) + papr(keep=0.5, significance=centre)", pretrained=False)
    with pytest.raises(InputError, match="has no"):
        sieve(model, f"dynamiccnn(keep=0.7, weights='{file}', layers=(0, 3, 6))")


def test_state_is_the_hosts() -> None:
    model = convnext()
    fast = sieve(model, "dynamiccnn(keep=0.7)", pretrained=False)
    assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("kind", ["cnn", "swin"])
def test_gradients_reach_the_fast_paths(kind: str, tmp_path: Path) -> None:
    """Beside differences of the answers. Predictors make a hard choice, through which no gradient flows."""
    model, _, file = case(kind, tmp_path)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fast = sieve(model, f"dynamic{kind}(keep=0.75, weights={str(file)!r})")
    fast.parts.requires_grad_(True)
    fast(images).sum().backward()
    assert all(parameter.grad is None for parameter in fast.parts["0"].predictors.parameters())
    for parameter in fast.parts["0"].fast.parameters():
        direction, values = torch.randn_like(parameter), []
        with torch.no_grad():
            for sign in (1, -2):
                parameter += sign * 1e-6 * direction
                values.append(fast(images).sum())
            parameter += 1e-6 * direction
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-4, atol=1e-6)
