"""Patch Slimming: masks against a dense masked computation, what is refused, text and JSON."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from tests.reference.hosts import host_forms, host_images
from tests.reference.slimming import masked_forward
from tokensieve import InputError, PaPr, PatchSlimming, Recipe, RecipeError, ToMe, UnsupportedHost, sieve
from tokensieve.measure import macs
from tokensieve.methods import Readout

FORMS = host_forms()
ALL = tuple(range(25))


def nested(counts: tuple[int, ...], seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Random nested patches of a 5 x 5 grid."""
    order = random.Random(seed).sample(range(25), 25)
    return tuple(tuple(sorted(order[:count])) for count in counts)


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("host", FORMS)
@torch.no_grad()
def test_all_patches_in_every_block_are_bit_equal_to_the_host(host: str, form: str) -> None:
    model = FORMS[host]()
    images = host_images(model)
    count = sieve(model).host.embed(images).x.shape[1] - model.num_prefix_tokens
    fast = sieve(model, PatchSlimming((tuple(range(count)),) * len(model.blocks), form=form))
    assert torch.equal(fast(images), model(images))


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("counts", [(20, 12, 12, 3), (25, 25, 9, 0), (14, 0, 0, 0), (0, 0, 0, 0), (25, 6, 6, 6)])
@pytest.mark.parametrize("host", ["class-token", "qk-norm", "layerscale", "pre-norm"])
@torch.no_grad()
def test_any_masks_equal_a_dense_masked_computation(host: str, counts: tuple[int, ...], form: str) -> None:
    model = FORMS[host]()
    images, patches = host_images(model), nested(counts, sum(counts))
    fast = sieve(copy.deepcopy(model).double(), PatchSlimming(patches, form=form))
    trace = fast.trace(images.double())
    expected = masked_forward(model, images, patches, form)
    assert (trace.output - expected).abs().max() <= 1e-9
    assert trace.tokens_per_block == [1 + count for count in counts]
    assert trace.tokens is not None
    if counts[-1]:
        assert trace.tokens.positions is not None
        assert trace.tokens.positions.tolist() == [list(patches[-1])] * 2


@pytest.mark.parametrize("host", ["registers", "distilled", "eva02", "eva-mixed-rope", "rectangular", "gap", "eva-gqa"])
@torch.no_grad()
def test_form_a_is_form_b_one_block_later(host: str) -> None:
    """What form B gathers in front of the next block, form A does not ask for: other hosts are held to the first."""
    if host not in FORMS:
        pytest.skip("this timm does not have it")
    model = FORMS[host]().double()
    images = host_images(model).double()
    count, depth = sieve(model).host.embed(images).x.shape[1] - model.num_prefix_tokens, len(model.blocks)
    everything = tuple(range(count))
    patches = (everything[::2], *[everything[::4]] * (depth - 2))
    last = () if sieve(model).host.reads_prefix else patches[-1]
    a = sieve(model, PatchSlimming((*patches, last)))(images)
    b = sieve(model, PatchSlimming((everything, *patches), form="B"))(images)
    assert (a - b).abs().max() <= 1e-9


@torch.no_grad()
def test_macs_are_the_formulas() -> None:
    model = FORMS["class-token"]()
    d, counts, patches = 32, (20, 12, 12, 3), nested((20, 12, 12, 3))
    tokens = [count + 1 for count in counts]
    rest = 25 * 3 * 64 * d + d * model.num_classes
    arriving = [26, *tokens[:-1]]
    a = sum(
        2 * n * d * d + 2 * m * d * d + 2 * m * n * d + 4 * m * d * d for n, m in zip(arriving, tokens, strict=True)
    )
    b = sum(8 * m * d * d + 2 * m * m * d for m in tokens)
    size = (3, 40, 40)
    assert macs(sieve(model, PatchSlimming(patches)), size) == rest + a
    assert macs(sieve(model, PatchSlimming(patches, form="B")), size) == rest + b


@pytest.mark.parametrize("form", ["A", "B"])
def test_text_and_json_give_the_recipe_back(form: str) -> None:
    recipe = Recipe.of(PatchSlimming(([3, 1, 2], [2], []), form=form, grid=[2, 2]))
    assert recipe == Recipe.of(PatchSlimming(((1, 2, 3), (2,), ()), form=form, grid=(2, 2)))
    assert Recipe.parse(str(recipe)) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"patches": 3}, "must be a tuple with one tuple of patch indices for each block"),
        ({"patches": ()}, "must be a tuple with one tuple"),
        ({"patches": (1, 2)}, "must be a tuple with one tuple"),
        ({"patches": ((1.5,),)}, "must be a tuple with one tuple"),
        ({"patches": ((-1,),)}, "must be a tuple with one tuple"),
        ({"patches": ((True,),)}, "must be a tuple with one tuple"),
        ({"patches": ((1, 1),)}, "block 0 has a patch twice"),
        ({"patches": ((1, 2), (2, 5))}, "block 1 keeps patch 5, which block 0 has dropped"),
        ({"patches": ((1,),), "form": "C"}, "form must be A or B, not 'C'"),
        ({"patches": ((1,),), "grid": 14}, "grid must be a tuple of integers"),
        ({"patches": ((4,),), "grid": (2, 2)}, "a grid of 2 x 2 has no patch 4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        PatchSlimming(**settings)


def test_another_number_of_blocks_is_refused() -> None:
    with pytest.raises(RecipeError, match="has the patches of 2 blocks and this model has 4"):
        sieve(FORMS["class-token"](), PatchSlimming(((1,), (1,))))


@pytest.mark.parametrize("form", ["A", "B"])
def test_other_images_than_those_of_the_search_are_refused(form: str) -> None:
    model = FORMS["dynamic-size"]()
    images = torch.zeros(1, 3, 32, 32)
    patches = (tuple(range(12)),) * 4
    sieve(model, PatchSlimming(patches, form=form, grid=(4, 4)))(images)
    with pytest.raises(InputError, match="searched on images of 4 x 4 patches and these have 5 x 4"):
        sieve(model, PatchSlimming(patches, form=form, grid=(4, 4)))(torch.zeros(1, 3, 40, 32))
    sieve(model, PatchSlimming(patches, form=form))(torch.zeros(1, 3, 40, 32))
    with pytest.raises(InputError, match="keeps patch 11; these images have 9 patches"):
        sieve(model, PatchSlimming(patches, form=form))(torch.zeros(1, 3, 24, 24))


@pytest.mark.parametrize("host", ["mae", "gap", "siglip", "no-pool"])
def test_a_head_that_reads_patches_needs_some(host: str) -> None:
    with pytest.raises(UnsupportedHost, match="its head reads patches too, and none is kept in the last block"):
        sieve(FORMS[host](), PatchSlimming((ALL, ALL, ALL, ())))


def test_no_other_method_may_move_the_patches() -> None:
    model, slimmed = FORMS["class-token"](), PatchSlimming((ALL, ALL, ALL, ALL[:9]))
    for other in (ToMe(r=2), PaPr(keep=0.5, significance="centre"), slimmed):
        with pytest.raises(
            RecipeError, match=f"identifies patches by their position in the image, which {other.name} would"
        ):
            sieve(model, slimmed + other if other is not slimmed else Recipe((slimmed, PatchSlimming((ALL[:3],) * 4))))


@torch.no_grad()
def test_readout_after_it_changes_rounding_alone() -> None:
    model = FORMS["class-token"]().double()
    images, slimmed = host_images(model).double(), PatchSlimming(nested((20, 12, 9, 9)))
    expected = sieve(model, slimmed)(images)
    for recipe in (slimmed + Readout(), Readout() + slimmed):
        assert (sieve(model, recipe)(images) - expected).abs().max() <= 1e-9


@pytest.mark.versions
@pytest.mark.parametrize("form", ["A", "B"])
@torch.no_grad()
def test_it_compiles_into_one_graph_without_sorting(form: str) -> None:
    model = FORMS["class-token"]()
    images = host_images(model)
    fast = sieve(model, PatchSlimming(nested((20, 12, 9, 4)), form=form, grid=(5, 5)))
    program = torch.export.export(fast, (images,), strict=True)
    names = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in names if "sort" in name or "topk" in name]
    assert (program.module()(images) - fast(images)).abs().max() <= 1e-6


def test_its_indices_are_not_in_the_state() -> None:
    model = FORMS["class-token"]()
    fast = sieve(model, PatchSlimming(nested((20, 12, 9, 4))))
    assert list(fast.state_dict()) == list(model.state_dict())
    fast.load_state_dict(model.state_dict())
