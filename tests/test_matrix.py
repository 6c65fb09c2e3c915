"""Every method on every form of timm's and torchvision's vision transformers, and on transformers' of video.

Bit-equal at identity settings, equal to the slow reference, or refused. A cell is one method (or one recipe of several)
on one host. What was seen in each is counted at the end of the session.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.cases import CASES, IDENTITY, VIDEO_ONLY, Case, Facts
from tests.reference.hosts import host_forms, host_images
from tests.reference.torchvision_hosts import torchvision_vits, vit_as_timm
from tests.reference.video_hosts import Tubelets, video_as_timm, video_clips, video_forms
from tests.reference.vit import reference_forward
from tests.turns import in_turn
from tokensieve import RecipeError, UnsupportedHost, sieve
from tokensieve.stream import Sieved

TORCHVISION = {f"torchvision {name}": form for name, form in torchvision_vits().items()}
VIDEO = {f"video {name}": form for name, form in video_forms().items() if name in ("videomae", "vivit", "vjepa2")}
FORMS = {**host_forms(), **TORCHVISION, **VIDEO}
CLOSE = 1e-9
SURE = 1e-12
"""The lead that a decision must have in float64 for two orders of summation to agree on it."""
DRAWS = 3
"""Pairs of images that are tried before a cell fails for want of sure decisions."""

EQUAL, REFUSED = "equal to the reference", "refused"

CLASS_TOKEN = ("adaptive", "evit", "ats", "diffrate", "guarded")


@cache
def host(form: str) -> tuple[nn.Module, Tensor, Facts]:
    """A host in fp32, two images in float64, and what cases need to know."""
    known, model = as_timm(form), FORMS[form]()
    images = (video_clips(model) if form in VIDEO else host_images(known)).double()
    if form in VIDEO:
        known.patch_embed(images.float())  # learns the grid
    return model, images, Facts(prod(known.patch_embed.dynamic_feat_size(images.shape[-2:])), len(known.blocks))


@cache
def as_timm(form: str) -> nn.Module:
    """The same in timm's model, which the reference knows."""
    model = FORMS[form]()
    if form in VIDEO:
        return video_as_timm(model)
    return vit_as_timm(model) if form in TORCHVISION else model


def said(output: Any) -> Any:
    """The logits of transformers' classifiers, and whatever other hosts return."""
    return getattr(output, "logits", output)


def names(recipe: str) -> list[str]:
    return recipe.split(" + ")


def refusal(recipe: str, model: nn.Module) -> str | None:
    """Why this host cannot take the recipe, from the specification: the method that is at fault."""
    for name in names(recipe):
        if name in CLASS_TOKEN and getattr(model, "cls_token", None) is None:
            return name
        if name in VIDEO_ONLY and not isinstance(model.patch_embed, Tubelets):
            return "tome"
        if name == "readout" and not hasattr(model, "head_dist") and model.global_pool != "token":
            return name
    return None


def written(text: str, patches: tuple[tuple[int, ...], ...]) -> str:
    return text.replace("{slimming}", repr(patches))


@pytest.mark.parametrize(("recipe", "form"), in_turn(CASES, FORMS))
def test_a_cell(recipe: str, form: str, record_property: Callable[[str, object], None]) -> None:
    def note(outcome: str) -> None:
        record_property("cell", outcome)

    model, images, _ = host(form)
    expected, before = dense(form), {key: value.clone() for key, value in model.state_dict().items()}
    note(outcome(recipe, CASES[recipe][0], form))
    if recipe in IDENTITY:
        note(identity(IDENTITY[recipe], form))

    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(said(model(images.float())), expected)
    note("host left as it was")


MORE = [recipe for recipe, cases in CASES.items() if len(cases) > 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "form"),
    [(recipe, form) for i, recipe in enumerate(MORE) for j, form in enumerate(FORMS) if (i + j) % 2 == 0],
)
def test_further_settings(recipe: str, form: str, record_property: Callable[[str, object], None]) -> None:
    outcomes = [outcome(recipe, each, form) for each in CASES[recipe][1:]]
    for each in outcomes:
        if each != REFUSED:  # refusals are counted once a cell
            record_property("cell", each)


def outcome(recipe: str, each: Case, form: str) -> str:
    """What one setting of a method does on a host; anything but equal or refused is a failure."""
    model, _, facts = host(form)
    text = written(each.text, facts.nested(4))
    if fault := refusal(recipe, as_timm(form)):
        with pytest.raises((UnsupportedHost, RecipeError), match=rf"{type(model).__name__}.*\b{fault}\b"):
            sieve(model, text)
        return REFUSED
    if not any(equals_the_reference(each, text, form, draw) for draw in range(DRAWS)):
        pytest.fail(f"{text} decides by next to nothing on {form}, on {DRAWS} pairs of images: compare others.")
    return EQUAL


@cache
def dense(form: str) -> Tensor:
    model, images, _ = host(form)
    with torch.no_grad():
        return said(model(images.float()))


@torch.no_grad()
def equals_the_reference(each: Case, text: str, form: str, draw: int = 0) -> bool:
    """False where the reference decided by next to nothing, so that another order of summation may decide otherwise."""
    model, images, facts = host(form)
    if draw:
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(draw), dtype=images.dtype)
    double = copy.deepcopy(model).double()
    fast = with_weights(sieve(double, text, pretrained=False))
    facts = Facts(facts.patches, facts.depth, predictors(fast))
    state = {key: value.clone() for key, value in double.state_dict().items()}
    trace = fast.trace(images)
    known = as_timm(form)
    expected = reference_forward(
        known,
        images,
        **(each.papr or {}),
        significance=trace.significance.flatten(1) if each.papr else None,
        steps=each.steps(facts),
    )
    if expected.margin < SURE:
        return False
    assert expected.tokens_per_block[-1] < facts.patches + known.num_prefix_tokens, text  # it acts
    assert trace.tokens_per_block == expected.tokens_per_block, text
    assert torch.equal(trace.source, expected.source), text
    if each.papr:
        assert torch.equal(trace.kept, expected.kept), text
    assert said(trace.output).shape == expected.output.shape, text
    real = expected.sizes[..., None] > 0  # what stands behind an image of fewer tokens is nobody's business
    assert largest((trace.tokens.x - expected.tokens) * real) <= CLOSE, text
    assert differ(said(trace.output), expected.output, real) <= CLOSE, text
    sizes = torch.ones_like(expected.sizes) if trace.tokens.counted is None else trace.tokens.counted
    assert torch.equal(sizes, expected.sizes), text
    assert differ(said(fast(images)), expected.output, real) <= CLOSE, text  # the plain call, which tracks nothing
    assert all(torch.equal(value, state[key]) for key, value in double.state_dict().items()), text
    return True


def with_weights(fast: Sieved) -> Sieved:
    """A method's own layers in float64, with norms and biases that matter."""
    fast.double()
    generator = torch.Generator().manual_seed(11)
    for parameter in fast.parts.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return fast


def predictors(fast: Sieved) -> tuple[tuple[Tensor, ...], ...]:
    """DynamicViT's predictors: ten tensors a stage, weight and bias of a norm and of four linear layers."""
    flat = list(fast.parts.state_dict().values())
    stages = [tuple(flat[i : i + 10]) for i in range(0, len(flat), 10)]
    width = fast.host.width
    shapes = [(width,), (width,), (width, width), (width,), (width // 2, width), (width // 2,)]
    shapes += [(width // 4, width // 2), (width // 4,), (2, width // 4), (2,)]
    assert all([tuple(tensor.shape) for tensor in stage] == shapes for stage in stages)
    return tuple(stages)


def differ(output: Tensor, expected: Tensor, real: Tensor) -> float:
    """The largest difference, of hosts that return their tokens without what stands behind an image of fewer."""
    return largest((output - expected) * real if output.ndim == 3 else output - expected)


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


@torch.no_grad()
def identity(text: str, form: str) -> str:
    """Bit-equal to the host in evaluation and training and in bfloat16."""
    model, images, facts = host(form)
    text = written(text, (tuple(range(facts.patches)),) * facts.depth)
    fast = sieve(model, text)
    half = copy.deepcopy(model).bfloat16()
    assert torch.equal(said(fast(images.float())), dense(form))
    assert torch.equal(said(sieve(half, text)(images.bfloat16())), said(half(images.bfloat16())))
    fast.train()
    try:
        assert same(said(fast(images.float())), said(model(images.float())))
    finally:
        fast.eval()
    return "bit-equal at identity"


def same(a: object, b: object) -> bool:
    if isinstance(a, tuple):  # the distilled host returns both heads in training
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b)


@pytest.mark.parametrize("recipe", CASES)
def test_no_method_is_refused_everywhere(recipe: str) -> None:
    assert not all(refusal(recipe, as_timm(form)) for form in FORMS)
