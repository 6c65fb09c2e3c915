"""What the options make of a recipe, and that variants differ in nothing else."""

import pytest
import timm
import torch

from tokensieve import Recipe, sieve
from tokensieve.errors import InputError, RecipeError
from tokensieve.measure import macs
from tokensieve.show.variants import MAPS, Variants, choose, open_variants, ranking, varied, with_keeps

RECIPE = Recipe.parse(
    "papr(keep=0.5, proposal=test_resnet, layer=1, proposal_weights=w, proposal_norm=shared) + tome(r=2)"
)
MEAN = STD = (0.5, 0.5, 0.5)


@pytest.fixture
def dense():
    return timm.create_model("test_vit", num_classes=4).eval()


class TestChoose:
    def test_nothing_asked_is_the_recipe_itself(self):
        for text in ("", "tome(r=2)", str(RECIPE)):
            assert choose(Recipe.parse(text)) == {"": Recipe.parse(text)}

    def test_keeps_begin_with_the_smallest_so_that_there_is_a_map(self):
        assert choose(RECIPE, keeps=[1, 0.3, 0.8]) == {"test_resnet": varied(RECIPE, keep=0.3)}

    def test_a_control_goes_by_its_own_name(self):
        assert list(choose(Recipe.parse("random(keep=0.5)"), keeps=[0.2])) == ["random"]

    def test_other_proposals_take_over_what_is_not_the_first_ones_alone(self):
        recipes = choose(RECIPE, proposals=["resnet18", "test_resnet"])
        own, other = ranking(recipes["test_resnet"]), ranking(recipes["resnet18"])
        assert own == ranking(RECIPE)
        assert (other.proposal, other.layer, other.proposal_weights) == ("resnet18", None, None)
        assert (other.keep, other.proposal_norm) == (0.5, "shared")
        assert [len(recipe) for recipe in recipes.values()] == [2, 2]

    def test_weights_go_where_they_are_named(self):
        recipes = choose(RECIPE, proposals=["resnet18", "test_resnet"], files={"resnet18": "a"})
        assert [ranking(recipe).proposal_weights for recipe in recipes.values()] == ["a", "w"]
        for files in ({"": "b"}, {"test_resnet": "b"}):
            (recipe,) = choose(RECIPE, files=files).values()
            assert ranking(recipe).proposal_weights == "b"

    def test_maps_are_all_of_the_recipes_proposal(self):
        recipes = choose(RECIPE, keeps=[0.2], maps=list(MAPS), files={"": "b"})
        assert list(recipes) == list(MAPS)
        assert [ranking(recipe).significance for recipe in recipes.values()] == ["mean", *list(MAPS)[1:]]
        assert {ranking(recipe).proposal_weights for recipe in recipes.values()} == {"b"}
        assert {ranking(recipe).keep for recipe in recipes.values()} == {0.2}

    @pytest.mark.parametrize(
        ("recipe", "options", "error", "sentence"),
        [
            ("tome(r=2)", {"keeps": [0.5]}, RecipeError, "keeps no patches by a significance map"),
            ("", {"maps": ["papr"]}, RecipeError, "keeps no patches"),
            ("random(keep=0.5)", {"proposals": ["resnet18"]}, RecipeError, "has no proposal"),
            ("random(keep=0.5)", {"files": {"": "a"}}, RecipeError, "has no proposal"),
            ("papr(keep=0.5)", {"keeps": [0]}, RecipeError, "keep must be a number in"),
            ("papr(keep=0.5)", {"keeps": [1], "maps": ["cam"]}, RecipeError, "below 1"),
            ("papr(keep=0.5)", {"maps": ["grad-camm"]}, RecipeError, "the nearest are grad-cam"),
            ("papr(keep=0.5)", {"files": {"mobileone_s1": "a"}}, InputError, "the nearest is mobileone_s0"),
        ],
    )
    def test_what_makes_no_sense_is_a_sentence(self, recipe, options, error, sentence):
        with pytest.raises(error, match=sentence):
            choose(Recipe.parse(recipe), **options)


def test_random_proposals_are_the_same_network_under_every_map(dense):
    recipe = Recipe.parse("papr(keep=0.5, proposal=test_resnet)")
    fasts = open_variants(dense, choose(recipe, maps=["papr", "cam"]), MEAN, STD, pretrained=False)
    weights = [[*fast.significance.proposal.parameters()] for fast in fasts.values()]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    images = torch.randn(1, 3, 160, 160)
    maps = [fast.trace(images).significance for fast in fasts.values()]
    assert not torch.allclose(*maps)


def test_opening_variants_leaves_the_random_numbers_alone(dense):
    before = torch.get_rng_state()
    open_variants(
        dense, choose(Recipe.parse("papr(keep=0.5, proposal=test_resnet)"), keeps=[0.5]), MEAN, STD, pretrained=False
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_keeps_share_the_map_and_equal_what_is_sieved_anew(dense):
    (fast,) = fasts = [sieve(dense, "papr(keep=0.3, significance=centre) + tome(r=2)", mean=MEAN, std=STD)]
    cells = with_keeps({"centre": fast}, [0.8, 1])
    assert list(cells) == [("centre", 0.8), ("centre", 1)]
    assert cells["centre", 0.8].significance is fast.significance
    images = torch.randn(2, 3, 160, 160)
    for (_, keep), cell in cells.items():
        again = sieve(dense, f"papr(keep={keep}, significance=centre) + tome(r=2)", mean=MEAN, std=STD)
        assert torch.equal(cell(images), again(images))
        assert macs(cell, (3, 160, 160)) == macs(again, (3, 160, 160)), "at 1 no map is made"
    assert list(with_keeps({"centre": fasts[0]}, [])) == [("centre", 0.3)]


def test_variants_remember_what_they_answered(dense):
    dense.head.weight.data.mul_(100)
    fasts = {"all": sieve(dense, ""), "few": sieve(dense, "random(keep=0.05)", mean=MEAN, std=STD)}
    variants = Variants(fasts, dense, None)
    assert variants.summary("all") == {"answers_kept": None, "confidence": None}
    images = torch.randn(8, 3, 160, 160)
    for image in images:
        variants.run(image)
    with torch.no_grad():
        answers = dense(images).argmax(1)
        ours = fasts["few"](images).softmax(-1)
        expected = dense(images).softmax(-1).amax(1).mean()
    assert variants.summary("all")["answers_kept"] == 1
    assert variants.summary("all")["confidence"] == pytest.approx(float(expected), abs=1e-5)
    few = variants.summary("few")
    assert few["answers_kept"] == pytest.approx(float((ours.argmax(1) == answers).float().mean()))
    assert few["confidence"] == pytest.approx(float(ours.gather(1, answers[:, None]).mean()), abs=1e-5)
