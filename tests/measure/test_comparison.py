import math

import numpy as np
import pytest
import torch

from tests.reference import comparison as reference
from tokensieve.errors import InputError
from tokensieve.measure.comparison import (
    KINDS,
    check_shapes,
    kind_of,
    kl_divergence,
    nearest_neighbours,
    relative_difference,
)

SHAPES = {
    "classes": (7,), "embeddings": (9,), "tokens": (5, 9), "class-map": (4, 3, 5), "feature-map": (6, 3, 5),
    "depth": (1, 3, 5),
}  # fmt: skip


def outputs(kind, count=6, seed=0):
    """A dense and a sieved output that is near it, as torch and as numpy."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, *SHAPES[kind], generator=generator)
    sieved = dense + 0.4 * torch.randn(dense.shape, generator=generator)
    return dense, sieved, dense.numpy(), sieved.numpy()


def per_token(measure, a, b):
    return float(np.mean([measure(x, y) for x, y in zip(a, b, strict=True)]))


DIVERGENCE = {
    "classes": reference.kl,
    "embeddings": lambda a, b: 1 - reference.cosine(a, b),
    "tokens": lambda a, b: 1 - per_token(reference.cosine, a, b),
    "class-map": lambda a, b: reference.of_pixels(reference.kl, a, b),
    "feature-map": lambda a, b: 1 - reference.of_pixels(reference.cosine, a, b),
    "depth": reference.relative_error,
}
AGREEMENT = {
    "classes": reference.same_class,
    "class-map": lambda a, b: reference.of_pixels(reference.same_class, a, b),
    "depth": reference.within,
}
COSINE = {
    "classes": reference.cosine,
    "embeddings": reference.cosine,
    "tokens": lambda a, b: per_token(reference.cosine, a, b),
    "class-map": lambda a, b: reference.of_pixels(reference.cosine, a, b),
    "feature-map": lambda a, b: reference.of_pixels(reference.cosine, a, b),
    "depth": lambda a, b: reference.cosine(a.ravel(), b.ravel()),
}


def each(measure, dense, sieved):
    return [measure(a, b) for a, b in zip(dense, sieved, strict=True)]


@pytest.mark.parametrize("name", KINDS)
def test_every_image_against_the_reference(name):
    kind, (dense, sieved, a, b) = KINDS[name], outputs(name)
    divergence = kind.divergence(dense, sieved)
    assert divergence.dtype == torch.float64
    assert divergence.tolist() == pytest.approx(each(DIVERGENCE[name], a, b), rel=1e-9)
    assert kind.cosine(dense, sieved).tolist() == pytest.approx(each(COSINE[name], a, b), rel=1e-9)
    if name in AGREEMENT:
        shares = kind.agreement(dense, sieved)
        assert shares.tolist() == pytest.approx(each(AGREEMENT[name], a, b))
        assert 0 < float(shares.mean()) < 1, "outputs that tell apart"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_is_at_no_distance_from_itself(name, dtype):
    kind, dense = KINDS[name], outputs(name)[0].to(dtype)
    assert kind.divergence(dense, dense).abs().max() < 1e-12
    assert kind.cosine(dense, dense).tolist() == pytest.approx([1.0] * len(dense))
    shares = kind.agreement(dense, dense)
    assert (shares is None) == (kind.agreement_name is None)
    assert shares is None or shares.tolist() == [1.0] * len(dense)


def test_embeddings_agree_by_their_neighbours():
    dense, sieved, a, b = outputs("embeddings", count=40)
    near = reference.nearest(a), reference.nearest(b)
    assert nearest_neighbours(dense).tolist() == near[0]
    shares = KINDS["embeddings"].agreement(dense, sieved)
    assert shares.tolist() == [float(x == y) for x, y in zip(*near, strict=True)]
    assert 0 < float(shares.mean()) < 1
    assert KINDS["embeddings"].agreement(dense[:2], sieved[:2]) is None, "two are each other's nearest"


def test_neighbours_of_many_images_come_in_pieces(monkeypatch):
    dense = outputs("embeddings", count=40)[0]
    whole = nearest_neighbours(dense)
    monkeypatch.setattr("tokensieve.measure.comparison.ROWS", 7)
    assert torch.equal(nearest_neighbours(dense), whole)


def test_depths_of_other_signs_and_zeros():
    kind = KINDS["depth"]
    dense = torch.tensor([[[1.0, -1.0, 0.0, 4.0]], [[0.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    sieved = torch.tensor([[[1.25, 1.0, 0.0, 4.9]], [[0.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]]])
    assert kind.agreement(dense, sieved).tolist() == [0.5, 1.0, 0.75], "a factor of exactly 1.25 is too much"
    assert kind.divergence(dense, sieved).tolist() == pytest.approx([(0.25 + 2 + 0.9) / 6, 0.0, math.inf])


def test_excluded_classes_add_nothing():
    dense = torch.tensor([[[[0.0]], [[0.0]], [[-math.inf]]]])
    sieved = torch.tensor([[[[0.0]], [[0.0]], [[1.0]]]])
    expected = math.log(0.5) - math.log(1 / (2 + math.e))
    assert float(KINDS["class-map"].divergence(dense, sieved)) == pytest.approx(expected)
    assert float(kl_divergence(sieved, dense, dim=1)) == math.inf


@pytest.mark.parametrize(
    ("shape", "classes", "field", "name"),
    [
        ((2, 5), True, None, "classes"),
        ((2, 5), False, None, "embeddings"),
        ((2, 1), True, None, "embeddings"),
        ((2, 5), False, "pooler_output", "embeddings"),
        ((2, 5, 8), True, None, "tokens"),
        ((2, 5, 8), False, "predicted_depth", "depth"),
        ((2, 5, 8, 8), True, "logits", "class-map"),
        ((2, 5, 8, 8), False, None, "feature-map"),
        ((2, 1, 8, 8), True, None, "depth"),
        ((2, 5, 3, 8, 8), True, None, "class-map"),
    ],
)
def test_what_an_output_is(shape, classes, field, name):
    assert kind_of(torch.zeros(shape), classes, field).name == name


def test_the_kind_can_be_named():
    assert kind_of(torch.zeros(2, 8, 8), True, kind="depth").name == "depth"
    with pytest.raises(InputError, match="no kind of output 'deph'; the nearest is depth"):
        kind_of(torch.zeros(2, 8, 8), True, kind="deph")
    with pytest.raises(InputError, match=r"shape \(2, 8\) is not of the kind 'class-map'"):
        kind_of(torch.zeros(2, 8), True, kind="class-map")


def test_outputs_of_two_shapes():
    with pytest.raises(InputError, match="9 tokens and the dense one 5"):
        check_shapes(torch.zeros(2, 5, 8), torch.zeros(2, 9, 8))
    with pytest.raises(InputError, match=r"\(2, 5, 4, 4\) and \(2, 5, 8, 8\) cannot be compared"):
        check_shapes(torch.zeros(2, 5, 8, 8), torch.zeros(2, 5, 4, 4))


@pytest.mark.parametrize("name", ["embeddings", "tokens", "feature-map"])
def test_what_labels_cannot_score(name):
    with pytest.raises(InputError, match=f"kind '{name}': use fidelity"):
        KINDS[name].scorer(1, 255)
    assert not KINDS[name].labelled(torch.zeros(2, dtype=torch.int64))


def test_relative_difference():
    assert relative_difference(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0])) == 0.25
