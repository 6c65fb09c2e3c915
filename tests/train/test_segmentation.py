"""Training segmenters: what heads say while tokens leave, whom losses reach, resuming, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests import segmentation_sets as made
from tests.methods.test_dtop import CLASSES, FORMS, images_of, middle, seeded, told
from tests.reference import dtop as slow
from tokensieve import sieve
from tokensieve.data import segmentation_set
from tokensieve.errors import InputError, RecipeError
from tokensieve.segmentation import AtmPrediction
from tokensieve.segmentation.plan import SegmenterPlan, open_trained
from tokensieve.train.crops import Augmentation
from tokensieve.train.loop import make_optimizer, read_log, train
from tokensieve.train.segmentation import Segment, SegmentSettings, prepare, prepare_dtop, stages
from tokensieve.train.segmentation_loss import losses

HEADS = {
    "segvit": {"exits": [1, 3, 5], "width": 16, "heads": 2, "layers": 1},
    "setr_naive": {"levels": [1, 3, 5], "channels": 16},
}
SETTINGS = SegmentSettings(
    steps=6, batch_size=2, lr=1e-3, warmup=2, precision="fp32", validate_every=3, checkpoint_every=2, workers=0
)
EXITS = "dtop(threshold=0.34, keep_per_class=1)"
"""Of three classes, half of which is present before anything is learnt."""


STILL = Augmentation(scale=(1, 1), one_class=1, colours=False)


class Stopped(Exception):
    pass


def quiet(row):
    pass


def sieved(name):
    model, images = seeded(FORMS[name]()), images_of(4)
    return sieve(model, f"dtop(threshold={middle(model, images)}, keep_per_class=1)"), model, images


class TestStages:
    @pytest.mark.parametrize("name", FORMS)
    def test_each_head_shows_what_was_said_last_of_tokens_that_had_left(self, name):
        fast, model, images = sieved(name)
        with torch.no_grad():
            said = fast(images, stages=True)
            assert len(said) == len(model.exits)
            thresholds = middle(model, images)
            for upto, block in enumerate(model.exits):
                heads = {each: told(model, each) for each in model.exits[: upto + 1]}
                for image in range(len(images)):
                    tokens = model.embed(images[image : image + 1])
                    blocks = model.backbone.blocks[: block + 1]
                    canvas, _, word, _, _ = slow.forward(
                        tokens.x[0], blocks, heads, thresholds[:upto], 1, fast.host.prefix
                    )
                    if name == "setr":
                        large = torch.nn.functional.interpolate(
                            canvas.view(1, CLASSES, 5, 7), scale_factor=4, mode="bilinear"
                        )
                        torch.testing.assert_close(said[upto][image], large[0], rtol=1e-9, atol=1e-9)
                    else:
                        shown = said[upto].masks[image].flatten(1)
                        torch.testing.assert_close(shown, canvas, rtol=1e-9, atol=1e-9)
                        present = said[upto].classes[image].softmax(-1)[:, 0]
                        torch.testing.assert_close(present, word, rtol=1e-9, atol=1e-9)
            first = model.stages(images)[0]
        left = said[0].masks if isinstance(first, AtmPrediction) else said[0]
        whole = first.masks if isinstance(first, AtmPrediction) else first
        torch.testing.assert_close(left, whole, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("recipe", ["", "dtop(threshold=1)"])
    @pytest.mark.parametrize("name", FORMS)
    def test_without_exits_they_are_the_segmenters_own(self, name, recipe):
        model, images = seeded(FORMS[name]()), images_of(2)
        with torch.no_grad():
            for own, other in zip(model.stages(images), sieve(model, recipe)(images, stages=True), strict=True):
                pairs = (
                    [(own, other)]
                    if not isinstance(own, AtmPrediction)
                    else [(own.masks, other.masks), (own.classes, other.classes)]
                )
                assert all(torch.equal(*pair) for pair in pairs)

    def test_an_exit_that_does_not_act_still_has_a_head(self):
        model, images = seeded(FORMS["segvit"]()), images_of(2)
        with torch.no_grad():
            said = sieve(model, "dtop(layers=(3,), threshold=0.3, keep_per_class=1)")(images, stages=True)
            torch.testing.assert_close(said[0].masks, model.stages(images)[0].masks)
        assert len(said) == 3

    def test_with_merging(self):
        model, images = seeded(FORMS["segvit"]()), images_of(2)
        recipe = f"dtop(threshold={middle(model, images)}, keep_per_class=1) + tome(r=2)"
        with torch.no_grad():
            said = sieve(model, recipe)(images, stages=True)
        assert [each.masks.shape for each in said] == [(2, CLASSES, 5, 7)] * 3


def gradients(model, part):
    return [
        each.grad is not None and bool(each.grad.any())
        for name, each in model.named_parameters()
        if name.startswith(part)
    ]


class TestGradients:
    def test_a_later_loss_reaches_an_earlier_heads_masks_through_tokens_that_left_and_never_its_classes(self):
        fast, model, images = sieved("segvit")
        labels = torch.randint(CLASSES, (4, 40, 56), generator=torch.Generator().manual_seed(0))
        losses(fast(images, stages=True)[-1:], labels)[0].backward()
        early = "auxiliary_head.0."
        assert all(gradients(model, early + "decoder.project"))
        assert any(gradients(model, early + "queries"))
        assert not any(gradients(model, early + "classifier"))
        model.zero_grad()
        losses(model.stages(images)[-1:], labels)[0].backward()
        assert not any(gradients(model, early)), "without exits heads are apart"

    def test_padding_changes_no_statistics(self):
        """A batch of images with unlike numbers of tokens teaches BatchNorm what its real tokens say."""
        fast, model, images = sieved("setr")
        model.train()
        norm = model.auxiliary_head[1].convs[0].bn
        norm.momentum = 1.0
        seen = []
        norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        trace = fast.trace(images)
        lengths = trace.lengths[2]
        assert len(set(lengths.tolist())) > 1, "the images must differ for the test to mean anything"
        assert fast.host.prefix == 1
        assert seen[0].shape[2] == int(lengths.sum()) - len(images), "patches alone, of all images"
        torch.testing.assert_close(norm.running_mean, seen[0].mean(dim=(0, 2, 3)))

    def test_nothing_of_the_decision_has_a_gradient(self):
        fast, _, images = sieved("segvit")
        with torch.no_grad():
            first = [each.masks.clone() for each in fast(images, stages=True)]
        for own, other in zip(first, fast(images, stages=True), strict=True):
            torch.testing.assert_close(own, other.masks.detach())


@pytest.fixture
def sets(tmp_path):
    root = made.plain(tmp_path / "set")

    def opened():
        return segmentation_set(root, classes=3), segmentation_set(root, classes=3, limit=2)

    return opened


def plan_of(head="segvit"):
    return SegmenterPlan("test_vit", ("0", "1", "2"), head, HEADS[head], crop=(32, 48), stride=(16, 24))


def begin(sets, folder, head="segvit", recipe=None, base=None, settings=SETTINGS):
    words = {"pretrained": False, "say": quiet}
    if recipe is None:
        return prepare(plan_of(head), *sets(), folder, settings, **words)
    return prepare_dtop(None if base else plan_of(head), recipe, *sets(), folder, settings, base=base, **words)


@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize("recipe", [None, EXITS], ids=["base", "exits"])
    @pytest.mark.parametrize("head", HEADS)
    def test_interrupted_it_ends_to_the_bit_as_if_nothing_had_been(self, sets, tmp_path, head, recipe):
        whole = load_file(train(*begin(sets, tmp_path / "whole", head, recipe), tmp_path / "whole", report=quiet))
        config, task = begin(sets, tmp_path / "parts", head, recipe)
        loss, calls = task.loss, []

        def dying(module, batch):
            calls.append(batch)
            if len(calls) == 6:
                raise Stopped
            return loss(module, batch)

        task.loss = dying
        with pytest.raises(Stopped):
            train(config, task, tmp_path / "parts", report=quiet)
        config, task = begin(sets, tmp_path / "parts", head, recipe)
        resumed = load_file(train(config, task, tmp_path / "parts", report=quiet))
        assert whole.keys() == resumed.keys()
        for key, value in whole.items():
            assert torch.equal(value, resumed[key]), key
        logs = [read_log(tmp_path / part, task.name) for part in ("whole", "parts")]
        for one, other in zip(*logs, strict=True):
            assert {k: v for k, v in one.items() if k != "seconds"} == {
                k: v for k, v in other.items() if k != "seconds"
            }
        assert logs[0][-1].keys() >= {"loss", "validation_miou", "validation_pixel_accuracy", "gmac"}

    def test_the_three_ways(self, sets, tmp_path):
        """A base; exits that are trained from it, all of it or its heads; exits from the start."""
        base = train(*begin(sets, tmp_path / "base"), tmp_path / "base", report=quiet)
        segmenter, plan = open_trained(base)
        assert plan.crop == (32, 48)
        assert plan.mean is not None
        before = {name: value.clone() for name, value in segmenter.state_dict().items()}
        rows = []
        config, task = begin(sets, tmp_path / "all", recipe=EXITS, base=str(base))
        assert all(torch.equal(value, before[name]) for name, value in task.weights(task.module).items())
        weights = train(config, task, tmp_path / "all", report=rows.append)
        assert weights.name == "segvit_dtop.safetensors"
        assert rows[-1]["gmac"] < read_log(tmp_path / "base", "segvit")[-1]["gmac"] * 1.2
        assert json.loads((tmp_path / "all" / "segvit_dtop.recipe.json").read_text())["methods"]
        settings = SegmentSettings(**{**vars(SETTINGS), "trainable": "heads"})
        config, task = begin(sets, tmp_path / "heads", recipe=EXITS, base=str(base), settings=settings)
        heads = load_file(train(config, task, tmp_path / "heads", report=quiet))
        changed = {name.split(".")[0] for name, value in heads.items() if not torch.equal(value, before[name])}
        assert changed == {"auxiliary_head", "decode_head"}
        changed = {n.split(".")[0] for n, v in load_file(weights).items() if not torch.equal(v, before[n])}
        assert changed == {"backbone", "auxiliary_head", "decode_head"}
        anew = begin(sets, tmp_path / "anew", recipe=EXITS)[1]
        begun = anew.weights(anew.module)
        assert any(not torch.equal(value, before[name]) for name, value in begun.items())

    @pytest.mark.parametrize("recipe", [None, EXITS], ids=["base", "exits"])
    def test_it_learns(self, sets, tmp_path, recipe):
        """Pictures that are as bright as their labels are soon read."""
        for name in "abc":
            with Image.open(tmp_path / "set" / "labels" / f"{name}.png") as labels:
                pixels = np.asarray(labels)
            bright = np.stack([np.minimum(pixels, 2) * 120] * 3, axis=-1).astype(np.uint8)
            Image.fromarray(bright).save(tmp_path / "set" / "images" / f"{name}.jpg")
        changes = {"steps": 60, "lr": 3e-3, "head_lr": 1.0, "validate_every": 20, "augmentation": STILL}
        settings = SegmentSettings(**{**vars(SETTINGS), **changes})
        config, task = begin(sets, tmp_path / "x", "setr_naive", recipe, settings=settings)
        train(config, task, tmp_path / "x", report=quiet)
        log = read_log(tmp_path / "x", task.name)
        assert log[-1]["loss"] < 0.6 * log[0]["loss"]
        assert log[-1]["validation_pixel_accuracy"] > 70

    def test_bf16(self, sets, tmp_path):
        settings = SegmentSettings(**{**vars(SETTINGS), "precision": "bf16"})
        for head in HEADS:
            train(*begin(sets, tmp_path / head, head, EXITS, settings=settings), tmp_path / head, report=quiet)


class TestPreparing:
    def test_heads_learn_ten_times_as_fast_and_all_decays(self, sets, tmp_path):
        config, task = begin(sets, tmp_path / "x")
        assert config.steps(task.samples) == 6
        groups = make_optimizer(task.module, config).param_groups
        assert {group["lr_scale"]: group["weight_decay"] for group in groups} == {1.0: 0.01, 10.0: 0.01}
        names = {id(parameter): name for name, parameter in task.module.named_parameters()}
        for group in groups:
            heads = {names[id(each)].startswith("backbone") for each in group["params"]}
            assert heads == {group["lr_scale"] == 1.0}

    def test_stochastic_depth_is_the_backbones(self, sets, tmp_path):
        _, task = begin(sets, tmp_path / "x")
        rates = [block.drop_path1 for block in task.module.backbone.blocks]
        assert rates[-1].drop_prob == pytest.approx(0.1)
        settings = SegmentSettings(**{**vars(SETTINGS), "trainable": "heads"})
        _, task = begin(sets, tmp_path / "y", settings=settings)
        assert isinstance(task.module.backbone.blocks[-1].drop_path1, torch.nn.Identity)
        assert not any(each.requires_grad for each in task.module.backbone.parameters())

    def test_what_makes_no_sense_is_refused(self, sets, tmp_path):
        with pytest.raises(RecipeError, match=r'"dtop.*" lets no token exit'):
            begin(sets, tmp_path / "x", recipe="dtop(threshold=1)")
        with pytest.raises(RecipeError, match="lets no token exit"):
            begin(sets, tmp_path / "x", recipe="tome(r=2)")
        with pytest.raises(InputError, match="from a trained base, or from a plan: give one of them"):
            prepare_dtop(None, EXITS, *sets(), tmp_path / "x", SETTINGS)
        other = segmentation_set(tmp_path / "set", classes=4)
        with pytest.raises(InputError, match="The segmenter has 3 classes, and the training set has 4"):
            prepare(plan_of(), other, other, tmp_path / "x", SETTINGS, pretrained=False)
        for settings in ({"steps": 0}, {"trainable": "none"}, {"drop_path": 1}):
            with pytest.raises(RecipeError, match=next(iter(settings))):
                SegmentSettings(**settings)

    def test_pictures_that_cannot_be_used_are_named_before_anything_is_written(self, sets, tmp_path):
        (tmp_path / "set" / "labels" / "a.png").unlink()
        with pytest.raises(InputError, match=r"a\.jpg has no label picture .*repair or remove it before training"):
            begin(sets, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_stages_of_both(self):
        fast, model, images = sieved("segvit")
        assert len(stages(fast, images)) == len(stages(model, images)) == 3

    def test_a_task_says_what_it_is(self, sets, tmp_path):
        _, task = begin(sets, tmp_path / "x")
        _, other = begin(sets, tmp_path / "x", recipe=EXITS)
        assert isinstance(task, Segment)
        assert task.identity != other.identity
        assert (task.name, other.name) == ("segvit", "segvit_dtop")
