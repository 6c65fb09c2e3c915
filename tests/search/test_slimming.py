"""The search of Patch Slimming: its score against all head paths, its loop, its budget, and what it refuses."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.reference.hosts import host_forms, host_images
from tests.reference.slimming import block_error, mean_scores, path_scores
from tokensieve import InputError, RecipeError, UnsupportedHost, sieve
from tokensieve.measure import macs
from tokensieve.search.path_scores import significance_scores
from tokensieve.search.slimming import slim

pytestmark = pytest.mark.versions

FORMS = host_forms()


@pytest.fixture(scope="module")
def small() -> VisionTransformer:
    """Nine patches, three blocks of three heads: 39 paths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = VisionTransformer(
            img_size=24, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5, mlp_ratio=2.0
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return model.double().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(11, 3, 24, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


MASKS = [None, ((0, 2, 3, 5, 7, 8), (0, 3, 7), ()), (tuple(range(9)), (1, 2), (2,)), ((4,), (), ())]


@pytest.mark.parametrize("masks", MASKS)
def test_the_recursion_is_the_sum_over_all_head_paths(small: VisionTransformer, images: Tensor, masks: tuple) -> None:
    scores = significance_scores(small, [images[:5], images[5:]], masks)  # in chunks of several sizes
    expected = path_scores(small, images, masks or (range(9), range(9), ()))
    assert scores.shape == (3, 9)
    assert ((scores - expected).abs() / expected.abs().clamp(min=1e-12)).max() <= 1e-9


@pytest.mark.parametrize("masks", MASKS)
def test_averaged_heads_are_the_product_of_means(small: VisionTransformer, images: Tensor, masks: tuple) -> None:
    scores = significance_scores(small, [images], masks, approx="head_mean")
    expected = mean_scores(small, images, masks or (range(9), range(9), ()))
    assert ((scores - expected).abs() / expected.abs().clamp(min=1e-12)).max() <= 1e-9


def test_the_limit_counts_images(small: VisionTransformer, images: Tensor) -> None:
    some = significance_scores(small, [images[:2], images[2:]], limit=3)
    assert torch.allclose(some, significance_scores(small, [images[:3]]), rtol=1e-12)


def test_fp32_ranks_as_float64(small: VisionTransformer, images: Tensor) -> None:
    exact = significance_scores(small, [images])
    single = significance_scores(small.float(), [images.float()])
    small.double()
    assert torch.allclose(single, exact, rtol=1e-4)


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.4])
def test_the_search_is_the_papers_loop(small: VisionTransformer, images: Tensor, tolerance: float, form: str) -> None:
    found = slim(small, [images], tolerance=tolerance, granularity=2, form=form, limit=None)
    patches, depth = found.method.patches, 3
    # In form A a block's patches are what the next one reads, in form B what it reads itself.
    read = {b: patches[b - 1] for b in range(1, depth)} if form == "A" else dict(enumerate(patches))
    rows = {b: read.get(b + 1, ()) for b in read}
    masks: tuple = ((),)
    for b in sorted(read, reverse=True):
        if b:  # before block 0 nothing has attended: the reference knows no score there
            deeper = (*[tuple(range(9))] * (depth - len(masks)), *masks[::-1])
            order = path_scores(small, images, deeper)[b - 1].argsort(descending=True, stable=True).tolist()
            order = [patch for patch in order if patch not in rows[b]]
            chain = [tuple(sorted([*rows[b], *order[:more]])) for more in range(0, len(order), 2)]
            errors = [block_error(small, images, b, kept, rows[b]) for kept in chain]
            good = [kept for kept, error in zip(chain, errors, strict=True) if error <= tolerance]
            assert read[b] == (good[0] if good else tuple(range(9)))
        error = block_error(small, images, b, read[b], rows[b])
        assert error <= tolerance
        assert found.errors[b - 1 if form == "A" else b] == pytest.approx(error, abs=1e-9)
        masks += (read[b],)
    assert found.counts == tuple(map(len, patches))
    assert found.images == 11
    if form == "A":
        assert (patches[-1], found.errors[-1]) == ((), 0.0)


def test_a_tolerance_of_nothing_keeps_the_answer(small: VisionTransformer, images: Tensor) -> None:
    found = slim(small, [images], tolerance=0)
    assert found.counts == (9, 9, 0)
    assert (sieve(small, found.recipe)(images) - small(images)).abs().max() <= 1e-12


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if sieve(form()).host.reads_prefix])
def test_every_host_whose_head_reads_a_class_token_can_be_slimmed(name: str) -> None:
    model = FORMS[name]()
    images = host_images(model, 3)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    found = slim(model, [(images, torch.zeros(3))], tolerance=0.1, granularity=4)
    assert model.training, "modes are put back"
    model.eval()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(a >= b for a, b in pairwise(found.counts))
    fast = sieve(model, found.recipe)
    size = tuple(images.shape[1:])
    assert found.saving == pytest.approx(1 - macs(fast, size) / macs(model, size))
    with torch.no_grad():
        dense, sieved = model(images), fast(images)
    assert (dense - sieved).norm() <= 0.5 * dense.norm()


@pytest.mark.parametrize("form", ["A", "B"])
def test_a_budget_is_met_by_the_smallest_tolerance(small: VisionTransformer, images: Tensor, form: str) -> None:
    lines: list[str] = []
    found = slim(small, [images], saving=0.4, granularity=1, form=form, report=lines.append)
    assert 0.4 <= found.saving < 0.6
    assert slim(small, [images], tolerance=found.tolerance, granularity=1, form=form).counts == found.counts
    assert slim(small, [images], tolerance=0.97 * found.tolerance, granularity=1, form=form).saving < found.saving
    assert any("saves" in line for line in lines)


def test_a_budget_that_cannot_be_had(small: VisionTransformer, images: Tensor) -> None:
    with pytest.raises(RecipeError, match=r"in form A cannot save 99 % of the MACs of VisionTransformer: \d+ % at"):
        slim(small, [images], saving=0.99)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tolerance": 0.1, "saving": 0.3}, "a tolerance or a saving to reach, not both"),
        ({"tolerance": -1}, "must be a number from 0 up"),
        ({"tolerance": float("nan")}, "must be a number from 0 up"),
        ({"saving": 25}, "share of the MACs in"),
        ({"granularity": 0}, "at least 1 patch"),
        ({"form": "C"}, "must be A or B"),
        ({"approx": "mean"}, 'approx must be "head_mean" or None'),
        ({"limit": 0}, "limit on images must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    small: VisionTransformer, images: Tensor, settings: dict, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        slim(small, [images], **settings)


@pytest.mark.parametrize(("host", "reason"), [("mae", "its head reads patch tokens too"), ("gap", "no class token")])
def test_hosts_without_a_class_token_at_the_head_are_refused(host: str, reason: str) -> None:
    model = FORMS[host]()
    for search in (partial(slim, tolerance=0.1), significance_scores):
        with pytest.raises(UnsupportedHost, match=f"cannot be slimmed: .*{reason}"):
            search(model, [host_images(model)])


def test_images_of_several_sizes_or_none_are_refused() -> None:
    model: nn.Module = FORMS["dynamic-size"]()
    with pytest.raises(InputError, match="images of one size"):
        slim(model, [torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 40, 32)])
    with pytest.raises(InputError, match="loader is empty"):
        slim(model, [])


def test_masks_of_another_model_are_refused(small: VisionTransformer, images: Tensor) -> None:
    with pytest.raises(RecipeError, match="has 2 blocks and this model has 3"):
        significance_scores(small, [images], ((1,), ()))
