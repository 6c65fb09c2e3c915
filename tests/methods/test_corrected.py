"""The corrected class token beside its formula, on every form of timm host that reads it."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from tests.reference.hosts import host_forms, host_images
from tokensieve import Corrected, InputError, Recipe, RecipeError, UnsupportedHost, measure, sieve

FORMS = host_forms()


@pytest.fixture
def written(tmp_path):
    """Writes a correction of so many channels; returns its file and what is in it."""

    def write(width, scale=0.3):
        generator = torch.Generator().manual_seed(width)
        weight = scale * torch.randn(width, width, generator=generator)
        bias = scale * torch.randn(width, generator=generator)
        save_file({"weight": weight, "bias": bias}, tmp_path / "correction.safetensors")
        return tmp_path / "correction.safetensors", weight.double(), bias.double()

    return write


def reads_class_token(model):
    return getattr(model, "cls_token", None) is not None and (
        hasattr(model, "head_dist") or model.global_pool == "token"
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_head_reads_the_corrected_class_token(form, written):
    model = copy.deepcopy(FORMS[form]()).double().eval()
    images = host_images(model).double()
    file, weight, bias = written(model.embed_dim)
    if not reads_class_token(model):
        with pytest.raises(UnsupportedHost, match="cannot take corrected"):
            sieve(model, Corrected(weights=file))
        return
    with torch.no_grad():
        for before in ("", "random(keep=0.5) + "):
            features = sieve(model, before.removesuffix(" + ")).forward_features(images)
            slow = features.clone()
            for image in range(len(images)):
                slow[image, 0] = features[image, 0] + weight @ features[image, 0] + bias
            fast = sieve(model, f"{before}corrected(weights='{file}')")
            torch.testing.assert_close(fast.forward_features(images), slow, rtol=1e-9, atol=1e-9)
            trace = fast.trace(images)
            torch.testing.assert_close(trace.output, model.forward_head(slow), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(fast(images), trace.output, rtol=1e-12, atol=1e-12)


def small(**settings):
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, **settings
    ).eval()


def test_a_correction_of_zeros_is_the_host_bit_by_bit(written):
    model, images = small(), torch.randn(3, 3, 32, 32)
    file, *_ = written(16, scale=0.0)
    fast = sieve(model, Corrected(weights=file))
    with torch.no_grad():
        assert torch.equal(fast(images), model(images))
        assert torch.equal(fast.train()(images), model(images))
        model.eval()
        half = model.bfloat16()
        assert torch.equal(sieve(half, Corrected(weights=file))(images.bfloat16()), half(images.bfloat16()))


def test_it_costs_one_product_of_a_token_and_is_no_part_of_the_host(written):
    file, *_ = written(16)
    model = small()
    for before in ("", "tome(r=2) + readout() + "):
        plain = measure.macs(sieve(model, before.removesuffix(" + ")), (3, 32, 32))
        fast = sieve(model, f"{before}corrected(weights='{file}')")
        assert measure.macs(fast, (3, 32, 32)) == plain + 16 * 16
        assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.slow
def test_it_is_compiled_in_one_graph(written):
    file, *_ = written(16)
    fast, images = sieve(small(), f"tome(r=2) + readout() + corrected(weights='{file}')"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        quick = torch.compile(fast, backend="eager", fullgraph=True)
        torch.testing.assert_close(quick(images), fast(images))


def test_weights_that_have_changed_since_are_refused(written, tmp_path):
    file, *_ = written(16)
    model, recipe = small(), Corrected(weights=file)
    fast = sieve(model, recipe)
    path = fast.recipe.save(tmp_path / "best.json")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for again in (path, str(path), Recipe.load(path)):
            assert torch.equal(sieve(model, again)(images), fast(images))
        written(16, scale=0.2)
        for again in (path, str(path), Recipe.load(path), fast.recipe):
            with pytest.raises(InputError, match=r"correction\.safetensors is not the file that was expected"):
                sieve(model, again)
        assert not torch.equal(sieve(model, recipe)(images), fast(images))  # by path alone: whatever lies there
        with pytest.raises(InputError, match="is not the file"):
            sieve(model, fast.recipe.save(tmp_path / "later.json"))  # what ran, not what lies there by now


def test_weights_that_are_missing_or_of_another_model_are_named(written, tmp_path):
    file, *_ = written(24)
    with pytest.raises(RecipeError, match=r"corrected needs the weights that tokensieve\.correct"):
        sieve(small(), "corrected()")
    with pytest.raises(InputError, match=r"no weights file .*nowhere"):
        sieve(small(), f"corrected(weights='{tmp_path / 'nowhere.safetensors'}')")
    with pytest.raises(InputError, match=r"the correction .*has shape \(24, 24\) in the file and \(16, 16\)"):
        sieve(small(), f"corrected(weights='{file}')")
    assert sieve(small(), "corrected()", pretrained=False)(torch.randn(1, 3, 32, 32)).shape == (1, 5)
