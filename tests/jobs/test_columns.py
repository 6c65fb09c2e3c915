"""Columns of each output against the model asked directly."""

from __future__ import annotations

import io

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from tokensieve import ModelSpec
from tokensieve.errors import InputError, SettingError, UnsupportedHost
from tokensieve.jobs.columns import blank, concatenated, open_predictor, without_classifier
from tokensieve.jobs.settings import RowSettings


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pooling", [None, "token", "avg", "max"])
def test_embeddings_are_what_timm_pools(tiny, images, pooling):
    """On the dense model, whose own function says what they are."""
    spec = tiny("")
    _, answers = open_predictor(spec, RowSettings(output="embeddings", pooling=pooling))
    model = spec.open().dense
    with torch.no_grad():
        model.reset_classifier(0, pooling or model.global_pool)
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    assert answers(images)["embedding"] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)


def test_embeddings_of_a_sieved_model_are_what_its_classifier_reads(tiny, images):
    spec = tiny("tome(r=8)")
    _, answers = open_predictor(spec, RowSettings(output="embeddings"))
    opened = spec.open()
    with torch.no_grad():
        logits = opened.fast(images)
        found = opened.dense.head(torch.from_numpy(answers(images)["embedding"]))
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_embeddings_are_normalised_and_stored_as_asked(tiny, images):
    plain = open_predictor(tiny(), RowSettings(output="embeddings"))[1](images)["embedding"]
    asked = RowSettings(output="embeddings", normalize=True, store="fp16")
    found = open_predictor(tiny(), asked)[1](images)["embedding"]
    assert found.dtype == np.float16
    assert found == pytest.approx(plain / np.linalg.norm(plain, axis=1, keepdims=True), abs=2e-3)


def test_a_pooling_that_there_is_not_is_a_sentence(tiny):
    with pytest.raises(SettingError, match="'mean' is not supported by VisionTransformer"):
        open_predictor(tiny(), RowSettings(output="embeddings", pooling="mean"))


@pytest.mark.parametrize(
    ("name", "width"),
    [("convnext_tiny", 768), ("vit_b_16", 768), ("swin_t", 768), ("resnet18", 512)],
)
def test_classifiers_of_torchvision_come_off(name, width):
    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
        without_classifier(model)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, width)


def test_classifiers_of_transformers_come_off():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    model = transformers.ViTForImageClassification(config).eval()
    without_classifier(model)
    assert model(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 32)


def test_a_classifier_that_is_not_known_is_refused():
    class Own(nn.Module):
        num_classes = 10

    with pytest.raises(UnsupportedHost, match="cannot be removed"):
        without_classifier(Own())


def test_features_are_the_whole_grids(tiny, images):
    spec = tiny("papr(keep=0.5, significance=centre)")
    _, answers = open_predictor(spec, RowSettings(output="features"))
    found = answers(images)["features"]
    assert found.shape == (3, 4, 4, 64)
    with torch.no_grad():
        last = spec.open().fast.forward_intermediates(
            images, indices=1, norm=True, restore=True, intermediates_only=True
        )[0]
    assert found == pytest.approx(last.permute(0, 2, 3, 1).numpy(), abs=1e-6)


def test_maps_are_the_classes_of_pixels():
    spec = ModelSpec("nano_segmenter", "")
    opened, answers = open_predictor(spec, RowSettings(output="maps"))
    images = torch.randn(2, *blank(opened).shape[1:])
    columns = answers(images)
    with torch.no_grad():
        expected = opened.dense(images).argmax(1).numpy()
    for i, content in enumerate(columns["map"]):
        assert (np.asarray(Image.open(io.BytesIO(content))) == expected[i]).all()
    assert columns["height"].tolist() == [expected.shape[1]] * 2


def test_an_output_that_the_model_does_not_have_is_a_sentence(tiny, images):
    with pytest.raises(InputError, match="--output maps needs a class or a depth of each pixel"):
        open_predictor(tiny(), RowSettings(output="maps"))[1](images)
    opened, answers = open_predictor(ModelSpec("nano_segmenter", ""), RowSettings(output="classes"))
    with pytest.raises(InputError, match="--output classes needs classes of whole items"):
        answers(blank(opened))


def test_fewer_classes_than_asked_for_are_all_of_them():
    opened, answers = open_predictor(ModelSpec("nano_vit", ""), RowSettings(k=50))
    columns = answers(blank(opened))
    assert len([name for name in columns if name.endswith("_class")]) == 10
    assert sum(columns[f"top{place}_probability"][0] for place in range(1, 11)) == pytest.approx(1)


def test_columns_of_batches_are_put_together():
    parts = [{"n": np.array([1, 2]), "s": ["a", "b"]}, {"n": np.array([3]), "s": ["c"]}]
    found = concatenated(parts)
    assert found["n"].tolist() == [1, 2, 3]
    assert found["s"] == ["a", "b", "c"]


def test_models_without_classifier_stay_as_they_are():
    model = timm.create_model("test_vit", num_classes=0)
    without_classifier(model)
    assert isinstance(model.head, nn.Identity)
