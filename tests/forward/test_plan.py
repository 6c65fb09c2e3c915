"""What is known before the first image: counts, and what is refused."""

from __future__ import annotations

import pytest
from timm.models.vision_transformer import VisionTransformer

from tokensieve import Recipe, RecipeError, UnsupportedHost, sieve
from tokensieve.forward.plan import Plan, Reads


def vit(**settings: object) -> VisionTransformer:
    return VisionTransformer(img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2, **settings).eval()


def test_counts_of_every_place() -> None:
    recipe = Recipe.parse(
        "papr(keep=0.5, significance=centre) + dynamicvit(keep=(0.4,), layers=(1,)) + tome(r=4, layers=1:3) + readout()"
    )
    assert Plan(recipe, 4, 1).reads(64) == [
        Reads(33, 33, 33, 33),
        Reads(26, 26, 26, 22),  # int(64 * 0.4) patches before the block, 4 merged within
        Reads(22, 22, 22, 18),
        Reads(18, 1, 1, 1),
    ]
    # the attention of an ATS block is looked at before anyone asks
    assert Plan(Recipe.parse("ats(tokens=20, layers=(1,))"), 2, 1).reads(64)[1] == Reads(65, 65, 20, 20)


def test_idle_methods_are_not_in_the_plan() -> None:
    plan = Plan(Recipe.parse("papr(keep=1) + tome(r=0) + evit(keep=1) + tome(r=4, layers=0:0)"), 4, 1)
    assert plan.methods == []
    assert not plan.opens(0, 65, 64)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("random(keep=0.5) + papr(keep=0.5)", "both drop patches before block 0"),
        ("gtp(r=2) + gtp(r=2, layers=2:4)", "would both select the queries or compute the attention of block 2"),
        ("gtp(r=2) + ats(tokens=20, layers=(1,), adaptive=False)", "ats and gtp would both select"),
        ("tome(r=2, layers=0:2) + patch_slimming(patches=((0, 1), (0, 1), (0,), (0,)))", "patch_slimming"),
    ],
)
def test_what_makes_no_sense_is_refused(recipe: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        sieve(vit(), recipe, pretrained=False)


def test_what_a_host_lacks_is_refused() -> None:
    bare = vit(class_token=False, global_pool="avg")
    for recipe in ("evit(keep=0.5)", "ats(tokens=9)", "diffrate(drop=1)", "guarded(r=1)"):
        with pytest.raises(UnsupportedHost, match=r"VisionTransformer cannot take .* has none"):
            sieve(bare, recipe)
    for host in (bare, vit(global_pool="avg")):
        with pytest.raises(UnsupportedHost, match="readout: its head reads patch tokens"):
            sieve(host, "readout()")


def test_methods_that_share_blocks_go_on() -> None:
    sieve(vit(), "tome(r=2, layers=0:1) + ats(tokens=20, layers=(1, 2)) + readout()")
    sieve(vit(), "ats(tokens=20, layers=(1,), adaptive=False) + tome(r=2)")
    sieve(vit(), "ats(tokens=20, layers=(1,)) + tome(r=2)")
