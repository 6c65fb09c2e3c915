"""Gradient checkpointing on every family of hosts: the same gradients, and what lies in a block is computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.reference.hf_hosts import beit_forms, beit_images, hf_forms, hf_images, open_clip_forms, open_clip_images
from tests.reference.hf_staged import hf_staged_forms
from tests.reference.hosts import host_forms, host_images
from tokensieve import sieve

TOKENS = "random(keep=0.8) + tome(r=2, layers=1:)"
"""Leaves block 0 whole, and opens the others."""
PIXELS = "papr(keep=0.5, significance=centre, stages=(1, 2))"
VITS, HF, STAGED = host_forms(), hf_forms(), hf_staged_forms()


def small(name: str, **settings: Any) -> nn.Module:
    return timm.create_model(name, **settings)


def pictures(model: nn.Module) -> Tensor:
    return torch.randn(2, 3, 64, 64)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], str, str]] = {
    "vit": (VITS["class-token"], host_images, TOKENS, "blocks.{}.norm2"),
    "eva": (VITS["eva"], host_images, TOKENS, "blocks.{}.norm2"),
    "beit": (beit_forms()["beit"], lambda _: beit_images(), TOKENS, "blocks.{}.norm2"),
    "open_clip": (
        open_clip_forms()["class"], lambda _: open_clip_images(), TOKENS, "transformer.resblocks.{}.ln_2",
    ),
    "transformers vit": (HF["vit"], hf_images, TOKENS, "layers.{}.layernorm_after"),
    "convnext": (lambda: small("convnext_atto"), pictures, PIXELS, "stages.{}.blocks.0.norm"),
    "swin": (
        lambda: small("swin_tiny_patch4_window7_224", img_size=64, window_size=2), pictures, PIXELS,
        "layers.{}.blocks.0.norm2",
    ),
    "features_only": (
        lambda: small("convnext_atto", features_only=True), pictures, PIXELS, "stages_{}.blocks.0.norm",
    ),
    "transformers swin": (
        STAGED["SwinForImageClassification"], pictures, PIXELS, "swin.encoder.layers.{}.blocks.0.layernorm_after",
    ),
}  # fmt: skip


def switch(model: Any) -> None:
    getattr(model, "gradient_checkpointing_enable", getattr(model, "set_grad_checkpointing", None))()


def norm_of(model: nn.Module, path: str, number: int) -> nn.Module:
    found = [part for name, part in model.named_modules() if name.endswith(path.format(number))]
    assert len(found) == 1, path
    return found[0]


def first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, list):
        return torch.cat([part.flatten() for part in output])
    return next(value for value in output.values() if isinstance(value, Tensor))


def still(model: nn.Module) -> nn.Module:
    """In training mode, without dropout or stochastic depth."""
    for part in model.train().modules():
        for name in ("p", "drop_prob", "attention_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return model


@pytest.mark.versions
@pytest.mark.parametrize(("build", "draw", "recipe", "path"), CASES.values(), ids=CASES)
def test_gradients_stay_and_blocks_are_computed_again(
    build: Callable[[], nn.Module], draw: Callable[[nn.Module], Tensor], recipe: str, path: str
) -> None:
    model = still(build())
    images, fast = draw(model).float(), sieve(model, recipe)

    def run() -> tuple[Tensor, dict[str, Tensor], dict[int, int]]:
        model.zero_grad()
        calls, hooks = {0: 0, 1: 0}, []
        for number in calls:

            def count(*_: Any, number: int = number) -> None:
                calls[number] += 1

            hooks.append(norm_of(model, path, number).register_forward_hook(count))
        output = first(fast(images))
        output.square().sum().backward()
        for hook in hooks:
            hook.remove()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return output.detach(), gradients, calls

    expected, gradients, once = run()
    switch(model)  # after sieve(): it is seen at the next call
    output, again, twice = run()
    assert torch.equal(output, expected)
    assert gradients.keys() == again.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
    assert twice == {number: 2 * calls for number, calls in once.items()}
    assert fast.trace(images).tokens_per_block == sieve(build().train(), recipe).trace(images).tokens_per_block
