"""Merging to a budget: it fits, and one merge fewer would not."""

import pytest
import timm

from tokensieve import sieve
from tokensieve.errors import RecipeError
from tokensieve.measure import macs
from tokensieve.measure.budget import STEPS, drop_to, merge_to

SIZE = (3, 160, 160)


@pytest.fixture(scope="module")
def model():
    return timm.create_model("test_vit").eval()


def host_macs(model, recipe):
    return macs(sieve(model, recipe, pretrained=False), SIZE, proposal=False)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("before", ["", "papr(keep=0.8, significance=centre)"])
def test_the_budget_is_met_and_one_merge_fewer_would_miss_it(model, share, before):
    target = share * host_macs(model, before)
    recipe = merge_to(model, target, SIZE, before)
    *first, merge = recipe
    assert [str(method) for method in first] == ([before] if before else [])
    assert max(merge.r) - min(merge.r) <= 1, "spread evenly"
    assert host_macs(model, recipe) <= target
    fewer = list(merge.r)
    fewer[fewer.index(max(fewer))] -= 1
    lighter = f"{before + ' + ' if before else ''}tome(r={fewer})"
    assert host_macs(model, lighter) > 0.985 * target


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_dropping_meets_the_budget_and_one_step_more_would_miss_it(model, share):
    target = share * host_macs(model, "")
    (method,) = recipe = drop_to(model, target, SIZE)
    assert host_macs(model, recipe) <= target
    one_patch_more = method.keep + 4 / STEPS  # of 100 patches
    assert host_macs(model, f"random(keep={one_patch_more})") > target
    (centre,) = drop_to(model, target, SIZE, significance="centre")
    assert (centre.significance, centre.keep) == ("centre", method.keep)


def test_more_than_dropping_can_save_is_refused(model):
    with pytest.raises(RecipeError, match="cannot bring"):
        drop_to(model, 0.001 * host_macs(model, ""), SIZE)


def test_more_than_merging_can_save_is_refused(model):
    with pytest.raises(RecipeError, match="cannot bring"):
        merge_to(model, 0.05 * host_macs(model, ""), SIZE)
