"""Pixels taken from maps and put back: the forms that are there for speed say what the plain one says."""

import pytest
import torch
from timm.models.convnext import ConvNeXt
from torch import nn

from tokensieve import pixels, sieve
from tokensieve.pixels import Pixels, by_slices, put, take

INDEX = torch.tensor([[0, 3, 5], [1, 2, 4]])


@pytest.mark.parametrize("background", ["zero", "keep"])
def test_what_is_put_back_is_added_where_it_was_taken(background):
    map, chosen = torch.randn(2, 2, 3, 4), Pixels(INDEX, 6)
    change = torch.randn(6, 4)
    out = put(map, chosen.flat, change, background)
    for image in range(2):
        for place in range(6):
            before, after = map[image].reshape(6, 4)[place], out[image].reshape(6, 4)[place]
            if place in INDEX[image]:
                row = image * 3 + INDEX[image].tolist().index(place)
                torch.testing.assert_close(after, before + change[row])
            else:
                assert torch.equal(after, before if background == "keep" else torch.zeros(4))
    assert torch.equal(take(map, chosen.flat, 3)[1, 0], map[1, 0, 1])


def test_only_a_map_of_its_own_is_changed():
    map, chosen, change = torch.randn(2, 2, 3, 4), Pixels(INDEX, 6), torch.randn(6, 4)
    before = map.clone()
    out = put(map, chosen.flat, change, "keep")
    assert torch.equal(map, before)
    assert torch.equal(put(map, chosen.flat, change, "keep", in_place=True), out)
    assert torch.equal(map, out)


@pytest.mark.parametrize("size", [8, 17, 96, 2000])
def test_slices_are_one_operator(monkeypatch, size):
    monkeypatch.setattr(pixels, "SLICE", size)
    calls = []
    layer = nn.Linear(4, 5).double()

    def operator(x):
        calls.append(x.shape)
        return layer(x)

    x = torch.randn(3, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(by_slices(operator, x), layer(x), rtol=1e-12, atol=1e-12)
    assert (len(calls) == 1) == (size >= x.numel())
    assert max(shape.numel() for shape in calls) <= max(size, 4) + 4


@pytest.mark.parametrize("use_grn", [False, True])
@pytest.mark.parametrize("background", ["zero", "keep"])
def test_slices_and_maps_changed_in_place_answer_as_training_does(monkeypatch, background, use_grn):
    """With gradients nothing is changed in place; response normalisation, which needs all pixels, is never sliced."""
    torch.manual_seed(0)
    model = ConvNeXt(depths=(2, 3, 1, 2), dims=(4, 8, 8, 16), use_grn=use_grn, ls_init_value=None if use_grn else 0.5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    fast = sieve(model.double().eval(), f"papr(keep=0.5, significance=centre, background={background})")
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    slow = fast(images)
    monkeypatch.setattr(pixels, "SLICE", 60)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), slow, rtol=1e-9, atol=1e-9)
        pyramid = fast.forward_intermediates(images)
    for one, other in zip(pyramid, fast.forward_intermediates(images), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-9, atol=1e-9)


def small_convnext():
    torch.manual_seed(0)
    return ConvNeXt(depths=(1, 1, 3, 1), dims=(4, 8, 8, 16), ls_init_value=0.5).eval()


@pytest.mark.parametrize("recipe", ["papr(keep=0.5, significance=centre)", "dynamiccnn(keep=(1, 0.5), layers=(0, 1))"])
def test_what_a_hook_holds_stays_as_it_was(recipe):
    model, held = small_convnext(), []

    def hold(_module, inputs, _output):
        held.append((inputs[0], inputs[0].clone()))

    fast, images = sieve(model, recipe, pretrained=False), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        answer = fast(images)
        for block in model.stages[2].blocks:
            block.conv_dw.register_forward_hook(hold)
        torch.testing.assert_close(fast(images), answer)
    assert len(held) == 3
    assert all(torch.equal(map, before) for map, before in held)


def test_no_images_have_no_answers():
    model = small_convnext()
    with torch.no_grad():
        assert sieve(model, "papr(keep=0.5, significance=centre)")(torch.zeros(0, 3, 64, 64)).shape == (0, 1000)
