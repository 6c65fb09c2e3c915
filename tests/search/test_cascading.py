"""`cascade()`: thresholds that keep a promise, found on unlabelled images."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tests.cascades.small import HALF, THIRD, classifier, pictures
from tests.reference import cascades as reference
from tokensieve import RecipeError, UnsupportedHost, cascade, sieve
from tokensieve.cascades.certifying import STEPS, certify
from tokensieve.errors import InputError
from tokensieve.search.cascading import answers_of, shortfall

COUNT = 200


def told(model: nn.Module, recipes: list[str], score: str = "margin") -> tuple[list, list]:
    """Scores and answers of each reading by itself, of the reference."""
    images = pictures(COUNT).double()
    with torch.no_grad():
        outputs = [sieve(model, recipe)(images) for recipe in recipes]
        dense = model(images).argmax(1)
    scores = [[reference.score_of(row, score) for row in output] for output in outputs[:-1]]
    return scores, [(output.argmax(1) == dense).tolist() for output in outputs]


@pytest.mark.parametrize("recipes", [[HALF, ""], [THIRD, HALF, ""], [THIRD, "readout()"]])
def test_thresholds_are_the_references(recipes: list[str]) -> None:
    model = classifier().double()
    scores, same = told(model, recipes)
    assert not all(same[0])
    agree = 0.5 * (sum(same[0]) / COUNT + 1)  # more than the first reading has
    expected = reference.certified(scores, same, agree, 0.9, STEPS)
    assert expected is not None
    assert 0 < expected < 1
    members = [sieve(model, recipe) if recipe else model for recipe in recipes]
    batches = [(images, torch.zeros(len(images))) for images in pictures(COUNT).double().split(64)]
    for images in (pictures(COUNT).double(), batches):
        fast = cascade(members, images, agree=agree, confidence=0.9)
        assert fast.thresholds == (expected,) * (len(recipes) - 1)
        assert fast.recipe.images == COUNT
        assert (fast.recipe.agree, fast.recipe.confidence) == (agree, 0.9)
        trace = fast.trace(pictures(COUNT).double())
        assert fast.shares == pytest.approx(trace.shares)
        with torch.no_grad():
            dense = model(pictures(COUNT).double())
        agreement = (trace.output.argmax(1) == dense.argmax(1)).double().mean()
        assert fast.certificate is not None
        assert fast.certificate.agreement == pytest.approx(float(agreement))
        assert fast.certificate.bound >= agree


def test_too_few_images_say_how_many_would_do() -> None:
    model = classifier()
    with pytest.warns(UserWarning, match="50 images cannot certify 98 % .* at least 149 are needed"):
        fast = cascade([sieve(model, HALF), model], pictures(50))
    assert fast.thresholds == (1.0,)
    assert fast.shares == (0.0, 1.0)
    with torch.no_grad():
        assert torch.equal(fast(pictures(50)), model(pictures(50)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cascade([sieve(model, HALF), model], pictures(COUNT), agree=0.5)


def test_a_reading_that_is_sure_and_wrong_is_left_out() -> None:
    scores = np.ones((1, COUNT))
    same = np.stack([np.zeros(COUNT, dtype=bool), np.ones(COUNT, dtype=bool)])
    certificate = certify(scores, same, 0.9, 0.9)
    assert certificate.thresholds == (1.0,)
    assert "no number of images is enough" in (shortfall(certificate, 0.9, 0.9) or "")


def test_a_last_reading_that_is_not_dense_must_keep_the_promise_itself() -> None:
    model = classifier()
    with pytest.raises(RecipeError, match="use the dense model itself as the last member"):
        cascade([sieve(model, THIRD), sieve(model, "papr(keep=0.1, significance=centre)")], pictures(COUNT), agree=0.98)


def test_a_function_makes_scores_of_embeddings() -> None:
    host = classifier(num_classes=0)
    members = [sieve(host, THIRD), host]
    with pytest.raises(UnsupportedHost, match="a model with a classifier, or pass as score="):
        cascade(members, pictures(COUNT))
    texts = torch.randn(24, 5)
    fast = cascade(members, pictures(COUNT), agree=0.9, score=lambda embedding: embedding @ texts)
    scores, same = answers_of(fast.members, pictures(COUNT), lambda embedding: embedding @ texts)
    assert scores.shape == (1, COUNT)
    with torch.no_grad():
        output = fast(pictures(COUNT))
        agreement = ((output @ texts).argmax(1) == (host(pictures(COUNT)) @ texts).argmax(1)).double().mean()
    assert output.shape == (COUNT, 24)
    assert float(agreement) >= 0.9
    assert not same[0].all()


def test_training_modes_are_as_before() -> None:
    model = classifier().train()
    cascade([sieve(model, HALF), model], pictures(COUNT), agree=0.5)
    assert model.training


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"agree": 98}, "agree is a share"),
        ({"confidence": 1}, "confidence is a share"),
        ({"score": "sure"}, "score is one of margin"),
        ({"towards": (0.3, 0.4)}, "towards must be 1 thresholds"),
    ],
)
def test_settings_that_make_no_sense(changed: dict, why: str) -> None:
    model = classifier()
    with pytest.raises(RecipeError, match=why):
        cascade([sieve(model, HALF), model], pictures(4), **changed)


def test_members_and_images_that_are_none() -> None:
    model = classifier()
    for members in (model, [model], [HALF, ""]):
        with pytest.raises(RecipeError, match="two members or more"):
            cascade(members, pictures(4))
    with pytest.raises(InputError, match="no images"):
        cascade([sieve(model, HALF), model], [])
