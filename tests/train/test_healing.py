"""Healing: what is learnt is the divergence from the dense model, by what may learn, and figures are told as found."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from tokensieve import Recipe, sieve
from tokensieve.errors import InputError, RecipeError
from tokensieve.measure.fidelity import Fidelity
from tokensieve.train import heal_task, healing
from tokensieve.train.heal_task import HealSettings, likeness, prepare
from tokensieve.train.healing import BeforeAfter, heal, warnings_of
from tokensieve.train.loop import train
from tokensieve.train.task import Order
from tokensieve.train.views import Views, set_of, split

pytestmark = pytest.mark.versions

RECIPE = "papr(keep=0.4, significance=centre)"
PLAIN = HealSettings(epochs=8, batch_size=8, lr=1e-3, ema=None, validations=3, precision="fp32", patience=None)
CHANCE = torch.Generator().manual_seed(1)
IMAGES = torch.randn(1, 3, 32, 32, generator=CHANCE) + 0.3 * torch.randn(40, 3, 32, 32, generator=CHANCE)
"""Alike, so that what the recipe does to them is much the same, and can be learnt from few."""
MODES = ("all", "lora", "norms")


def tiny(classes=5):
    """A ViT whose answers depend on the picture: what stands at nothing or at random small in a new one is large."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=3, img_size=32, patch_size=8, num_classes=classes
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def quiet(row):
    pass


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def needs_peft(mode):
    if mode == "lora":
        pytest.importorskip("peft", reason="peft is not installed")


@pytest.mark.parametrize("mode", MODES)
def test_healing_brings_the_answers_back_and_leaves_the_model_alone(tmp_path, mode):
    needs_peft(mode)
    model, before = tiny(), state_of(tiny())
    found = heal(model, RECIPE, IMAGES, tmp_path / "out", replace(PLAIN, trainable=mode, views=1))
    same(state_of(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    told = found.heldout
    assert told.after.divergence < 0.8 * told.before.divergence
    healed = load_file(found.weights)
    assert healed.keys() == before.keys()
    changed = {key for key in healed if not torch.equal(healed[key], before[key])}
    if mode == "all":
        assert changed == set(before)
    if mode == "norms":
        assert changed == {key for key, value in before.items() if value.ndim < 2}
    if mode == "lora":
        linear = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        assert changed == linear - {"head.weight"}
    host = tiny()
    host.load_state_dict(healed)  # strictly, as --weights does
    fast = sieve(host, Recipe.load(found.recipe))
    log_p = model(IMAGES).log_softmax(1)
    log_q = fast(IMAGES).log_softmax(1)
    rows = list(split(set_of(IMAGES), PLAIN.holdout, PLAIN.seed)[1].indices)
    expected = float((log_p.exp() * (log_p - log_q)).sum(1)[rows].mean())
    assert told.after.divergence == pytest.approx(expected, rel=1e-4)
    assert (found.adapter is None) == (mode != "lora")


def test_an_adapter_beside_the_weights_says_the_same_as_they_do(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    found = heal(tiny(), RECIPE, IMAGES, tmp_path, replace(PLAIN, trainable="lora", rank=2, ema=0.9))
    host = tiny()
    host.load_state_dict(load_file(found.weights))
    adapted = peft.PeftModel.from_pretrained(tiny(), found.adapter).eval()
    torch.testing.assert_close(adapted(IMAGES), host(IMAGES), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(host(IMAGES), tiny()(IMAGES), atol=1e-3)


@pytest.mark.parametrize("lr", [0.02, 0.05, 0.5])
def test_the_saved_weights_are_the_best_between_the_original_and_the_trained_ones(tmp_path, monkeypatch, lr):
    model, settings = tiny(), replace(PLAIN, views=1, lr=lr, epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(heal_task, "INTERPOLATIONS", (1.0,))
        trained = load_file(heal(model, RECIPE, IMAGES, tmp_path / "trained", settings).weights)
    found = heal(model, RECIPE, IMAGES, tmp_path / "out", settings)
    original, rows = state_of(model), list(split(set_of(IMAGES), PLAIN.holdout, PLAIN.seed)[1].indices)
    divergences = {}
    for point in (1.0, 0.75, 0.5):
        host = tiny()
        host.load_state_dict({key: value + point * (trained[key] - value) for key, value in original.items()})
        log_p, log_q = model(IMAGES[rows]).log_softmax(1), sieve(host, RECIPE)(IMAGES[rows]).log_softmax(1)
        divergences[point] = float((log_p.exp() * (log_p - log_q)).sum(1).detach().mean())
    assert found.interpolation == min(divergences, key=divergences.__getitem__)
    for key, value in load_file(found.weights).items():
        expected = original[key] + found.interpolation * (trained[key] - original[key])
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert found.heldout.after.divergence == pytest.approx(divergences[found.interpolation], rel=1e-3)


def test_a_step_goes_down_the_divergence_as_float64_computes_it(tmp_path, monkeypatch):
    """Three steps of plain gradient descent, written out: KL(dense || sieved) of each picture in the view that is its
    turn, the mean over the batch."""
    monkeypatch.setattr(heal_task, "INTERPOLATIONS", (1.0,))
    model = tiny()
    config, task = prepare(model, Recipe.parse(RECIPE), IMAGES, tmp_path, PLAIN)
    settings = {"optimizer": "momentum", "optimizer_args": {"momentum": 0.0}, "clip": None, "warmup": 0, "lr": 0.05}
    config = replace(config, epochs=24 / task.samples, schedule="constant", validate_every=9, best=None, **settings)
    state = load_file(train(config, task, tmp_path, report=quiet))

    known = split(set_of(IMAGES), PLAIN.holdout, PLAIN.seed)[0]
    views, order = Views(known, PLAIN.views, seed=PLAIN.seed), Order(len(known), PLAIN.seed)
    dense, pupil = tiny().double(), tiny().double()
    fast = sieve(pupil, RECIPE)
    for step in range(3):
        rows = [order[place] for place in range(8 * step, 8 * step + 8)]
        shown = torch.stack([views[row * PLAIN.views + row % PLAIN.views] for row in rows]).double()
        p, q = dense(shown).softmax(1).detach(), fast(shown).softmax(1)
        (p * (p.log() - q.log())).sum(1).mean().backward()
        with torch.no_grad():
            for parameter in pupil.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None
    begun, learnt = tiny().state_dict(), pupil.state_dict()
    for key in state:
        moved = (learnt[key] - begun[key].double()).abs().max()
        assert (state[key] - learnt[key]).abs().max() < 0.05 * moved + 1e-6, key  # answers are kept in half precision


def test_interrupted_it_ends_with_the_same_weights_and_asks_the_teacher_no_more(tmp_path, monkeypatch):
    settings = replace(PLAIN, ema=0.9)
    whole = heal(tiny(), RECIPE, IMAGES, tmp_path / "whole", settings)

    class Killed(BaseException):
        pass

    seen = []

    def report(row):
        seen.append(row)
        if len(seen) == 2:
            raise Killed

    with pytest.raises(Killed):
        heal(tiny(), RECIPE, IMAGES, tmp_path / "parts", settings, report=report)
    model, read = tiny(), []
    said = []
    model.register_forward_hook(lambda module, given, output: read.append(len(given[0])))
    monkeypatch.setattr("tokensieve.train.teacher.Teacher.predict", lambda self, images: pytest.fail("asked again"))
    parts = heal(tiny(), RECIPE, IMAGES, tmp_path / "parts", settings, say=said.append)
    same(load_file(parts.weights), load_file(whole.weights))
    assert [row["loss"] for row in parts.log] == [row["loss"] for row in whole.log]
    assert not any("running the dense model: " in sentence for sentence in said)


def test_another_recipe_or_other_pictures_are_not_gone_on_with(tmp_path):
    heal(tiny(), RECIPE, IMAGES, tmp_path, replace(PLAIN, epochs=0.5))
    with pytest.raises(InputError, match=r"model\.checkpoint\.pt belongs to another training"):
        heal(tiny(), "tome(r=2)", IMAGES, tmp_path, replace(PLAIN, epochs=0.5))
    with pytest.raises(InputError, match="holds the targets of another teacher"):
        heal(tiny(), RECIPE, IMAGES + 1, tmp_path, replace(PLAIN, epochs=0.5))


def test_embeddings_are_healed_by_their_cosine(tmp_path):
    found = heal(tiny(classes=0), RECIPE, IMAGES, tmp_path, replace(PLAIN, views=1))
    told = found.heldout
    assert told.after.kind == "embeddings"
    assert told.after.kl is None
    assert told.after.divergence < 0.8 * told.before.divergence
    assert told.after.divergence == pytest.approx(1 - told.after.cosine)
    assert [*found.log[0]][-3:] == ["heldout_divergence", "heldout_likeness", "heldout_score"]


def test_other_pictures_judge_it_too_with_their_labels(tmp_path):
    model = tiny()
    test_images = torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    labels = model(test_images).argmax(1)
    loader = DataLoader(TensorDataset(test_images, labels), batch_size=7)
    found = heal(model, RECIPE, DataLoader(TensorDataset(IMAGES), 8), tmp_path, PLAIN, test_images=loader)
    after = found.test.after
    assert after.count == 30
    assert after.dense_accuracy.top[1] == 100
    assert after.accuracy.top[1] == pytest.approx(after.agreement), "where the dense model is always right"
    plain = heal(model, RECIPE, IMAGES, tmp_path, PLAIN, test_images=test_images)
    assert plain.test.after.agreement == after.agreement
    assert plain.test.after.accuracy is None


def fidelity_of(agreement, divergence=0.1, change=None):
    accuracy = None if change is None else object()
    changes = {} if change is None else {1: change}
    return Fidelity(agreement, 0.0, divergence, 1.0, 100, accuracy=accuracy, changes=changes, divergence=divergence)


def test_it_warns_where_the_figures_hide_something():
    fine, better = fidelity_of(90.0), fidelity_of(92.0, 0.05)
    good = BeforeAfter(fine, better)
    assert warnings_of(good, good, (3, 1000)) == ()
    assert warnings_of(good, None, (200, 1000)) == ()
    assert warnings_of(good, None, None) == ()
    (few,) = warnings_of(good, None, (30, 1000))
    assert "few classes: 30 of 1000" in few
    (same_as_before,) = warnings_of(BeforeAfter(fine, fine), good, None)
    assert "no higher than before" in same_as_before
    bent = BeforeAfter(fidelity_of(90.0, 0.1, -1.0), fidelity_of(88.0, 0.2, +0.7))
    lost, rose = warnings_of(good, bent, (30, 1000))
    assert "90.0 to 88.0 %" in lost
    assert "+0.7 points" in rose
    assert len(warnings_of(good, BeforeAfter(fine, fidelity_of(91.0, 0.2)), None)) == 1, "a larger divergence is a loss"
    assert likeness(fine) == 90.0


def test_what_cannot_be_healed_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="recipe is empty"):
        heal(tiny(), "", IMAGES, tmp_path, PLAIN)
    with pytest.raises(InputError, match="19 pictures are too few"):
        heal(tiny(), RECIPE, IMAGES[:19], tmp_path, PLAIN)
    with pytest.raises(InputError, match="generator has no random access"):
        heal(tiny(), RECIPE, (image for image in IMAGES), tmp_path, PLAIN)
    with pytest.raises(RecipeError, match=r"one of all, lora, norms, not 'norm'.*norms"):
        HealSettings(trainable="norm")
    with pytest.raises(RecipeError, match="views must be at least 1"):
        HealSettings(views=0)
    with pytest.raises(RecipeError, match="holdout must lie"):
        HealSettings(holdout=1.0)
    assert not (tmp_path / healing.RECIPE).exists()


def test_the_weights_of_the_best_look_are_kept(tmp_path):
    """At a rate that breaks the model the looks differ widely."""
    found = heal(tiny(), RECIPE, IMAGES, tmp_path, replace(PLAIN, lr=0.1, validations=6, patience=3))
    best = max(found.log, key=lambda row: row["heldout_score"])
    assert found.step == best["step"]
    assert found.steps == 36
    assert found.heldout.after.agreement == pytest.approx(best["heldout_likeness"], rel=1e-4)
    assert found.heldout.after.divergence == pytest.approx(best["heldout_divergence"], rel=1e-4)
