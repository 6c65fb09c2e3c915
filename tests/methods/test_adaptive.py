"""Adaptive merging: each image as long as it needs, and by itself whatever else is in its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.reference import methods as slow
from tests.reference.hosts import host_forms, host_images
from tests.reference.vit import reference_forward
from tokensieve import Adaptive, Recipe, RecipeError, UnsupportedHost, sieve
from tokensieve.measure import macs
from tokensieve.methods.adaptive import drop_least
from tokensieve.methods.guarded import Guarded
from tokensieve.tokens import Tokens

FORMS = host_forms()
TEXT = "adaptive(bars=(0.3, 0.2, 0.1), drop=(0, 0.2, 0.3))"


def varied(model: nn.Module, batch: int) -> Tensor:
    """Images of unlike contrast, whose tokens are unlike one another to a varying degree."""
    images = host_images(model, batch).double()
    return images * torch.linspace(0.05, 3, batch, dtype=images.dtype)[:, None, None, None]


@torch.no_grad()
@pytest.mark.parametrize("form", ["class-token", "registers", "eva02"])
def test_unlike_lengths_are_those_of_the_reference(form: str) -> None:
    torch.manual_seed(0)
    model = FORMS[form]().double().eval()
    images = varied(model, 4)
    steps = [slow.Adaptive((0.3, 0.2, 0.1), (0, 0.2, 0.3))]
    expected = reference_forward(model, images, steps=steps)
    assert expected.margin > 1e-12
    trace = sieve(model, TEXT).trace(images)
    members = [[len(image[1]) for image in block] for block in expected.behind]
    assert [lengths.tolist() for lengths in trace.lengths] == members
    assert len(set(members[-1])) > 1
    assert trace.tokens_per_block == [max(counts) for counts in members]
    assert torch.equal(trace.source, expected.source)
    torch.testing.assert_close(trace.output, expected.output, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("behind", ["", " + readout()", " + tome(r=2)", " + ats(tokens=6, layers=(2,))"])
def test_an_image_is_answered_by_itself(behind: str) -> None:
    torch.manual_seed(0)
    model = FORMS["class-token"]().double().eval()
    images = varied(model, 8)
    fast = sieve(model, TEXT + behind)
    trace = fast.trace(images)
    assert len(set(trace.lengths[-2].tolist())) > 1
    alone = [fast.trace(image[None]) for image in images]
    torch.testing.assert_close(trace.output, torch.cat([one.output for one in alone]), rtol=1e-9, atol=1e-9)
    turned = fast(images.flip(0)).flip(0)
    torch.testing.assert_close(turned, trace.output, rtol=1e-9, atol=1e-9)
    for block, lengths in enumerate(trace.lengths):
        assert lengths.tolist() == [int(one.lengths[block]) for one in alone]
    assert torch.equal(trace.source, torch.cat([one.source for one in alone]))


@torch.no_grad()
def test_a_bar_below_all_pairs_merges_as_many_as_guarded_can() -> None:
    """Every even token goes: the same pairs, whose order no longer matters."""
    torch.manual_seed(0)
    model = FORMS["class-token"]().double().eval()
    images = varied(model, 3)
    most = sieve(model, Guarded(r=99, source_guard=0.1))
    every = sieve(model, Adaptive(bars=-10.0, source_guard=0.1))
    torch.testing.assert_close(every(images), most(images), rtol=1e-9, atol=1e-9)
    assert every.trace(images).tokens_per_block == most.trace(images).tokens_per_block


@torch.no_grad()
def test_bars_of_one_are_the_host() -> None:
    model = FORMS["class-token"]().eval()
    images = host_images(model, 2).float()
    assert torch.equal(sieve(model, "adaptive()")(images), model(images))
    assert torch.equal(sieve(model, "adaptive(bars=(1, 1), drop=0)")(images), model(images))


@torch.no_grad()
def test_macs_are_those_of_each_image() -> None:
    torch.manual_seed(0)
    model = FORMS["class-token"]().double().eval()
    images = varied(model, 4)
    fast = sieve(model, TEXT)
    each = [macs(fast, images=image[None]) for image in images]
    assert len(set(each)) > 1
    assert macs(fast, images=images) == pytest.approx(sum(each) / 4, rel=1e-12)
    assert macs(fast, tuple(images.shape[1:])) == macs(model, tuple(images.shape[1:]))  # the most that it can be


@torch.no_grad()
def test_the_least_attended_share_is_dropped() -> None:
    x = torch.arange(12.0).view(2, 6, 1).clone()
    attended = torch.tensor([[9.0, 5, 1, 4, 2, 3], [9.0, 1, 2, 3, 0, 0]])
    tokens = Tokens(x, 1, (1, 5), lengths=torch.tensor([6, 4]))
    left = drop_least(tokens, attended, 0.4)  # 2 of 5; 1.2 of 3, which is 1
    assert left.lengths is not None
    assert left.lengths.tolist() == [4, 3]
    assert left.x[0, :, 0].tolist() == [0, 1, 3, 5]
    assert left.x[1, :3, 0].tolist() == [6, 8, 9]
    assert drop_least(tokens, attended, 0.999).lengths_per_image().tolist() == [2, 2]


def test_nothing_for_an_empty_batch() -> None:
    model = FORMS["class-token"]()
    with torch.no_grad():
        assert sieve(model, TEXT)(torch.empty(0, 3, 40, 40)).shape == (0, 7)


def test_a_graph_is_refused() -> None:
    model = FORMS["class-token"]().eval()
    fast, images = sieve(model, TEXT), host_images(model, 1).float()
    with pytest.raises(UnsupportedHost, match=r"adaptive.*take guarded"):
        torch.export.export(fast, (images,), strict=False)  # strict wraps what it meets in its own error


def test_settings_are_checked() -> None:
    for wrong in ({"bars": 1.5}, {"bars": (0.5, "a")}, {"bars": True}, {"drop": 1.0}, {"drop": -0.1}):
        with pytest.raises(RecipeError, match=r"adaptive: (bars|drop) must be a number from"):
            Adaptive(**wrong)
    with pytest.raises(RecipeError, match="metric must be tokens or keys"):
        Adaptive(metric="values")  # type: ignore[arg-type]
    recipe = Recipe.of(Adaptive(bars=[0.5, 1], drop=[0, 0.25]))  # type: ignore[arg-type]
    assert Recipe.parse(str(recipe)) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
