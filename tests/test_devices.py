"""Methods on every form of host with fake tensors on a GPU: nothing in the stream is made on the CPU.

Needs no GPU: fake tensors have shapes and devices alone. An operator that gets tensors of two devices fails in fake
mode as on a GPU, but for indices on the CPU, which are accepted there and cost a copy: `OneDevice` refuses those too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.reference.cases import FIXED, Facts
from tests.reference.hf_hosts import beit_forms, beit_images, hf_forms, hf_images, open_clip_forms, open_clip_images
from tests.reference.hf_staged import hf_staged_forms
from tests.reference.hosts import host_forms, host_images
from tests.reference.torchvision_hosts import torchvision_images, torchvision_staged, torchvision_vits
from tokensieve import PaPr, RecipeError, UnsupportedHost, padding, sieve
from tokensieve.methods import ats, papr
from tokensieve.stream import Sieved
from tokensieve.tokens import Tokens

GPU = torch.device("cuda", 0)
FAKE = FakeTensorMode()
"""One for all: a host may keep what it made on a device for the next call (DINOv3 of transformers does)."""


def _indexes_fake_tensors() -> bool:
    """Under torch 2.6 an index into a fake tensor of a GPU asks the driver for a real one."""
    tensor = FakeTensor(FAKE, torch.empty(2, device="meta"), GPU)
    try:
        with FAKE:
            tensor[:1]
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not _indexes_fake_tensors(), reason=f"torch {torch.__version__} wants a GPU for fake ones"
)
Form = tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]


def pictures(_: nn.Module) -> Tensor:
    return torch.zeros(2, 3, 64, 64)


def absolute(model: Any) -> Tensor:
    """Of the size to which absolute positions belong."""
    height, width = (
        (model.config.image_size,) * 2 if isinstance(model.config.image_size, int) else model.config.image_size
    )
    return torch.zeros(2, 3, height, width)


def timm_staged(name: str, **settings: Any) -> nn.Module:
    import timm

    return timm.create_model(name, **settings).eval()


TOKENS: dict[str, Form] = {
    **{name: (form, host_images) for name, form in host_forms().items()},
    **{f"transformers {name}": (form, hf_images) for name, form in hf_forms().items()},
    **{f"beit {name}": (form, lambda _: beit_images()) for name, form in beit_forms().items()},
    **{f"open_clip {name}": (form, lambda _: open_clip_images()) for name, form in open_clip_forms().items()},
    **{f"torchvision {name}": (form, torchvision_images) for name, form in torchvision_vits().items()},
}
STAGED: dict[str, Form] = {
    "convnext": (lambda: timm_staged("convnextv2_atto"), pictures),
    "swin": (lambda: timm_staged("swin_tiny_patch4_window7_224", img_size=64, window_size=2), pictures),
    "features_only": (lambda: timm_staged("convnext_atto", features_only=True), pictures),
    **{
        f"transformers {name}": (form, absolute if "absolute" in name else pictures)
        for name, form in hf_staged_forms().items()
    },
    **{f"torchvision {name}": (form, pictures) for name, form in torchvision_staged().items()},
}


class OneDevice(TorchDispatchMode):
    """Refuses operators that get tensors of the CPU beside tensors of the GPU; numbers (0-d) may come from anywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim > 0]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) <= 1, f"{func} gets tensors on {' and '.join(sorted(devices))}"
        return func(*args, **(kwargs or {}))


@cache
def host(form: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, draw = {**TOKENS, **STAGED}[form]
    model = build()
    return model, tuple(draw(model).shape)


def on_gpu(fast: Sieved) -> Sieved:
    """The same with fake weights on a GPU, in the place of its own."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return fast._apply(lambda tensor: fake(tuple(tensor.shape), tensor.dtype))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def fake(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> FakeTensor:
    return FakeTensor(FAKE, torch.empty(shape, dtype=dtype, device="meta"), GPU)


def runs_on_gpu(monkeypatch: pytest.MonkeyPatch, form: str, recipe: Any) -> None:
    """Raises where a tensor of the CPU meets one of the GPU."""
    import copy

    model, shape = host(form)
    for module in (papr, ats):  # what looks at values, which fake tensors do not have
        monkeypatch.setattr(module, "recording", lambda: True)
    monkeypatch.setattr(padding.Packing, "of", lambda tokens: None)  # as in graphs: how many there are is a value too
    fast = on_gpu(sieve(copy.deepcopy(model), recipe, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False))
    images = fake(shape)
    with torch.no_grad(), FAKE, OneDevice():
        outputs = [output for output in tree_leaves(fast.trace(images).output) if isinstance(output, Tensor)]
    assert {output.device for output in outputs} == {GPU}


RECIPES = [*FIXED, "proposal"]
SHARE = 16
"""Each form takes every sixteenth recipe, the next form those beside them: a method never learns its host."""


@pytest.mark.versions
@pytest.mark.parametrize(
    ("recipe", "form"),
    [(recipe, form) for number, form in enumerate(TOKENS) for recipe in RECIPES[number % SHARE :: SHARE]],
)
def test_tokens(recipe: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = host(form)
    if recipe == "proposal":
        texts = ["papr(keep=0.5, proposal=test_resnet, proposal_size=64)"]
    else:
        with torch.no_grad():
            grid = sieve(model).host.embed(torch.zeros(shape)).grid
        facts = Facts(grid[0] * grid[1], len(sieve(model).host.blocks))
        texts = [FIXED[recipe][0].text.replace("{slimming}", repr(facts.nested(4)))]
    for text in texts:
        try:
            sieve(model, text, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
        except (UnsupportedHost, RecipeError):  # in which cells is what test_matrix.py says
            continue
        runs_on_gpu(monkeypatch, form, text)


@pytest.mark.versions
@pytest.mark.parametrize("form", STAGED)
def test_pixels(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = list(STAGED).index(form)
    significance = ("centre", "random", "mean, proposal=test_resnet")[number % 3]
    background = ("zero", "keep")[number % 2]
    runs_on_gpu(monkeypatch, form, f"papr(keep=0.5, significance={significance}, background={background})")


class Careless(PaPr):
    """Makes its indices on the CPU, and forgets to move them."""

    def reduce(self, tokens: Tokens, left: int, evidence: Any) -> Tokens:
        kept = torch.arange(left - tokens.prefix).expand(tokens.x.shape[0], -1)
        assert tokens.x[:, kept[0]].shape[1] == left - tokens.prefix  # passes in fake mode, as on a GPU
        return super().reduce(tokens, left, evidence)


def test_an_index_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=r"index.* gets tensors on cpu and cuda"):
        runs_on_gpu(monkeypatch, "class-token", Careless(keep=0.5, significance="centre"))
