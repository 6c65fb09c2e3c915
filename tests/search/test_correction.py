"""Fitting a correction: the regression beside a slow one, what it undoes, and what it refuses."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer

from tokensieve import InputError, Recipe, RecipeError, UnsupportedHost, correct, sieve
from tokensieve.measure import fidelity
from tokensieve.search.correction import FOLDS, _chosen, _cross_validated, fit


def slow_fit(sieved, dense, ridge):
    """The same least squares by rows that stand for the price, one output channel after the other."""
    x, y = sieved.double().numpy(), dense.double().numpy()
    middle = x.mean(0)
    centred, count, width = x - middle, *x.shape
    price = np.sqrt(ridge * count * np.mean(centred**2))
    weight, bias = np.zeros((width, width)), np.zeros(width)
    for channel in range(width):
        rows = np.vstack([np.hstack([centred, np.ones((count, 1))]), price * np.eye(width, width + 1)])
        wanted = np.concatenate([(y - x)[:, channel], np.zeros(width)])
        answer = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        weight[channel], bias[channel] = answer[:-1], answer[-1] - answer[:-1] @ middle
    return torch.from_numpy(weight), torch.from_numpy(bias)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_the_regression_is_the_slow_one(ridge):
    generator = torch.Generator().manual_seed(3)
    sieved = torch.randn(40, 6, generator=generator) * torch.tensor([3.0, 1, 1, 0.5, 2, 0.1]) + 1
    dense = sieved @ torch.randn(6, 6, generator=generator) + 0.3 * torch.randn(40, 6, generator=generator)
    for one, other in zip(fit(sieved, dense, ridge), slow_fit(sieved, dense, ridge), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_no_image_is_corrected_by_itself():
    generator = torch.Generator().manual_seed(4)
    sieved = torch.randn(15, 3, 2, 4, generator=generator)
    dense = sieved + torch.randn(15, 3, 2, 4, generator=generator)
    change = _cross_validated(sieved, dense, 0.5)
    for image in range(15):
        others = [i for i in range(15) if i % FOLDS != image % FOLDS]
        weight, bias = slow_fit(sieved[others][:, :, 0].reshape(-1, 4), dense[others][:, :, 0].reshape(-1, 4), 0.5)
        torch.testing.assert_close(change[image], weight @ sieved[image, 0, 0].double() + bias, rtol=1e-9, atol=1e-9)


def test_agreement_decides_where_the_loss_cannot():
    divergence = torch.linspace(0.9, 1.1, 100, dtype=torch.float64)
    wobble = 0.1 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(50)
    same = torch.arange(100) < 90
    found = {
        0.1: (divergence + 0.05 + wobble, same | True),  # five standard errors more
        0.5: (divergence + 0.01 + wobble, torch.arange(100) < 95),  # one
        1.0: (divergence, same),
        2.0: (divergence + 0.001 + wobble, same),
    }
    assert _chosen(found) == 0.5
    assert _chosen({ridge: (told, None) for ridge, (told, _) in found.items()}) == 1.0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(2)
    return torch.nn.functional.interpolate(torch.randn(240, 3, 8, 8, generator=generator), size=32, mode="bilinear")


RECIPE = "papr(keep=0.6, significance=random)"


def test_it_loses_less_on_images_that_it_never_saw(model, images, tmp_path):
    model.train()
    out = tmp_path / "correction.safetensors"
    said = []
    found = correct(model, RECIPE, images[:160], out, views=3, report=said.append)
    assert model.training
    model.eval()
    assert said[-1] == "160 images read"
    assert str(found.recipe) == f"{RECIPE} + corrected(weights='{out}')"
    assert found.images == 160
    assert found.corrected_divergence < 0.9 * found.divergence
    plain, fast = (fidelity(sieve(model, recipe), model, [images[160:]]).kl for recipe in (RECIPE, found.recipe))
    assert fast < 0.9 * plain
    assert found.divergence == pytest.approx(fidelity(sieve(model, RECIPE), model, [images[:160]]).kl, rel=1e-4)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"recipe": RECIPE}


def test_batches_and_labels_do_not_matter_and_a_second_correction_replaces_the_first(model, images, tmp_path):
    model.eval()
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    first = correct(model, RECIPE, images[:60], one, views=3)
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images[:60].split(20)]
    again = correct(model, first.recipe, batches, other, views=3)
    assert again.corrected_divergence == pytest.approx(first.corrected_divergence, rel=1e-5)
    assert str(again.recipe) == f"{RECIPE} + corrected(weights='{other}')"
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        torch.testing.assert_close(a.get_tensor("weight"), b.get_tensor("weight"), rtol=1e-3, atol=1e-5)


def test_crops_depend_on_the_seed(model, images, tmp_path):
    divergences = [
        correct(model, RECIPE, images[:20], tmp_path / "c.safetensors", views=4, seed=seed).corrected_divergence
        for seed in (0, 0, 1)
    ]
    assert divergences[0] == divergences[1] != divergences[2]


def test_where_nothing_helps_nothing_is_written(model, images, tmp_path):
    found = correct(model, "", images[:20], tmp_path / "c.safetensors", views=1)
    assert found.recipe == Recipe()
    assert found.ridge is None
    assert found.divergence == found.corrected_divergence == pytest.approx(0, abs=1e-9)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_corrected_is_refused_before_anything_is_read(model, images, tmp_path):
    out = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="9 images are too few"):
        correct(model, RECIPE, images[:9], out, views=1)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        correct(model, RECIPE, images, tmp_path / "c.json")
    for wrong in ({"views": 0}, {"batch": 0}):
        with pytest.raises(RecipeError, match=r"views=\d+ and batch=\d+ must be at least 1"):
            correct(model, RECIPE, images, out, **wrong)
    with pytest.raises(InputError, match="no images"):
        correct(model, RECIPE, [], out)
    pooled = VisionTransformer(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2, global_pool="avg")
    with pytest.raises(UnsupportedHost, match="its head reads patch tokens too"):
        correct(pooled, RECIPE, iter(()), out)
    headless = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2, class_token=False, global_pool="avg"
    )
    with pytest.raises(UnsupportedHost, match="it reads a class token"):
        correct(headless, RECIPE, iter(()), out)


def test_images_that_are_all_the_same_are_shifted_alone(model, tmp_path):
    model.eval()
    found = correct(model, RECIPE, torch.zeros(20, 3, 32, 32), tmp_path / "c.safetensors", views=2)
    assert found.corrected_divergence <= found.divergence
    weight, bias = fit(torch.ones(6, 3), torch.full((6, 3), 1.5), 0.5)
    assert torch.equal(weight, torch.zeros(3, 3, dtype=torch.float64))
    torch.testing.assert_close(bias, torch.full((3,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_models_of_transformers_are_corrected_on_images_of_their_size(images, tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    torch.manual_seed(1)
    host = transformers.ViTForImageClassification(config)
    for parameter in host.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    host, out = host.to(kind).eval(), tmp_path / "c.safetensors"
    found = correct(host, RECIPE, images[:160], out, views=2)
    plain, fast = (fidelity(sieve(host, recipe), host, [images[160:]]).kl for recipe in (RECIPE, found.recipe))
    assert found.corrected_divergence < found.divergence
    assert fast < plain
    with pytest.raises(InputError, match="reads 32 x 32"):
        correct(host, RECIPE, torch.zeros(20, 3, 48, 48), out)
