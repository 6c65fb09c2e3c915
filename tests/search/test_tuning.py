"""`tune()` on a small random model: budgets met, searches that repeat and go on, fronts that can be used."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import tokensieve.search.evaluator as evaluator_module
import tokensieve.search.results as results
import tokensieve.search.timing as timing
import tokensieve.search.tuning as tuning
from tests.reference.hosts import host_forms, host_images
from tokensieve import InputError, PaPr, Recipe, RecipeError, ToMe, UnsupportedHost, sieve, tune
from tokensieve.measure import fidelity, macs
from tokensieve.search.budget_search import OutOfTime, TimeLimit, neighbouring_budgets
from tokensieve.search.costs import Costs
from tokensieve.search.evaluator import Evaluator
from tokensieve.search.families import SINGLES, Scheduled
from tokensieve.search.family_study import FamilyStudy
from tokensieve.search.fit import Fit

pytestmark = pytest.mark.slow

FEW = ("scheduled-guarded", "tome", "evit")


def vit(**settings):
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 7}
    torch.manual_seed(0)
    model = VisionTransformer(**{**sizes, "mlp_ratio": 2.0, **settings}).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture(scope="module")
def model():
    return vit()


@pytest.fixture(scope="module")
def images():
    return torch.randn(20, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quick(brief_timing, monkeypatch):
    brief_timing(monkeypatch)


def search(model, images, **settings):
    return tune(model, images, **{"families": FEW, "proposals": (), "trials": 12, **settings})


@pytest.fixture(scope="module")
def front(model, images, brief_timing):
    with pytest.MonkeyPatch.context() as patch:
        brief_timing(patch)
        return search(model, images, macs=1.5)


def texts(front):
    return [(str(point.recipe), point.search, point.heldout) for point in front.points]


@pytest.mark.parametrize(
    "name", ["class-token", "registers", "gap", "siglip", "rms-swiglu", "dinov3", "eva-gqa", "mae"]
)
def test_the_arithmetic_is_what_macs_counts(name):
    host = host_forms()[name]()
    size = tuple(host_images(host).shape[1:])
    fast = sieve(host)
    costs = Costs(fast, size)
    assert costs.dense == round(macs(host, size))
    recipes = ["", "papr(keep=0.5, significance=random)"]
    if host_takes(host, "tome(r=3)"):
        recipes.append("papr(keep=0.7, significance=centre) + tome(r=2)")
    if host_takes(host, "readout()"):
        recipes += ["readout()", "evit(keep=0.6) + readout()", "ats(tokens=9, adaptive=False) + tome(r=1)"]
    for text in recipes:
        assert costs.of(Recipe.parse(text)) == round(macs(sieve(host, text), size, proposal=False)), text


def host_takes(host, text):
    try:
        sieve(host, text)
    except (UnsupportedHost, RecipeError):
        return False
    return True


def test_every_budget_is_met_and_not_overshot(front):
    for point in front.points:
        assert point.ratio >= point.budget * (1 - 1e-9)
        if point.family != "evit":  # it acts in three blocks only, which is too coarse here
            assert point.ratio <= 1.02 * point.budget
        fast = sieve(vit(), point.recipe)
        assert point.macs == macs(fast, (3, 64, 64))


def test_the_front_says_what_it_measured(front, model, images):
    assert front.best.ratio >= 1.5
    assert front.reached
    assert front.best.divergence == min(point.divergence for point in front.points if point.ratio >= 1.5)
    assert {point.family for point in front.points} == set(FEW)
    assert {point.budget for point in front.points} == set(neighbouring_budgets(1.5))
    found = fidelity(sieve(model, front.best.recipe), model, [images])
    searched, held = front.best.search, front.best.heldout
    total = (searched.divergence * searched.images + held.divergence * held.images) / len(images)
    assert found.kl == pytest.approx(total, rel=1e-4)
    agreed = (searched.agreement * searched.images + held.agreement * held.images) / len(images)
    assert found.agreement == pytest.approx(agreed)
    assert front.best.kl == searched.divergence
    assert front.best.speed.low <= front.best.speed.ratio <= front.best.speed.high
    assert str(front.finalists[0].recipe) == str(front.best.recipe)


def test_points_are_in_order_and_the_beaten_are_marked(front):
    costs = [point.macs for point in front.points]
    assert costs == sorted(costs)
    for one, other in itertools.combinations(front.pareto, 2):
        assert one.macs <= other.macs
        assert one.divergence > other.divergence
    for point in front.points:
        better = [p for p in front.points if p.macs <= point.macs and p.divergence < point.divergence]
        assert point.dominated or not better


def test_the_held_out_images_are_others(model, images):
    evaluator = make_evaluator(model, images)
    search_rows, held = (set(rows.tolist()) for rows in evaluator.parts.values())
    assert not search_rows & held
    assert search_rows | held == set(range(20))
    assert len(held) == 6


def make_evaluator(model, images, **settings):
    defaults = {"holdout": 0.3, "seed": 0, "batch": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "pretrained": False}
    return Evaluator(model, images, check=lambda: None, **{**defaults, **settings})


def test_the_same_seed_finds_the_same(front, model, images):
    assert texts(search(model, images, macs=1.5)) == texts(front)


def test_a_search_that_was_ended_goes_on_as_if_it_had_not_been(front, model, images, tmp_path, monkeypatch):
    whole, calls = Evaluator.figures_by_step, itertools.count()

    def interrupted(self, *arguments, **settings):
        if next(calls) == 13:
            raise KeyboardInterrupt
        return whole(self, *arguments, **settings)

    monkeypatch.setattr(Evaluator, "figures_by_step", interrupted)
    first = search(model, images, macs=1.5, storage=tmp_path / "trials.db")
    assert first.stopped == "interrupted"
    assert first.trials < front.trials
    monkeypatch.setattr(Evaluator, "figures_by_step", whole)
    again = search(model, images, macs=1.5, storage=tmp_path / "trials.db")
    assert again.stopped is None
    assert texts(again) == texts(front)
    more = search(model, images, macs=1.5, storage=tmp_path / "trials.db", trials=20)
    assert more.trials > again.trials


def test_another_search_in_the_same_file_is_refused(model, images, tmp_path):
    file = tmp_path / "trials.db"
    search(model, images, macs=1.5, storage=file, trials=0)
    with pytest.raises(InputError, match=r"holds another search \(macs was 1.5 and is 1.6\)"):
        search(model, images, macs=1.6, storage=file, trials=0)
    with pytest.raises(InputError, match="images was"):
        search(model, images + 1, macs=1.5, storage=file, trials=0)
    (tmp_path / "text.db").write_text("this is no data base, and it is longer than a header of one would be. " * 20)
    with pytest.raises(InputError, match="it is not a search's storage"):
        search(model, images, macs=1.5, storage=tmp_path / "text.db", trials=0)
    with pytest.raises(InputError, match="there is no folder"):
        search(model, images, macs=1.5, storage=tmp_path / "nowhere" / "trials.db")


def test_time_ends_the_search(model, images, monkeypatch):
    counts = itertools.count()

    def over(self):
        if next(counts) > 40:
            raise OutOfTime

    monkeypatch.setattr(TimeLimit, "__call__", over)
    front = search(model, images, macs=1.5, timeout=1.0, trials=10**6)
    assert front.stopped == "timeout"
    assert "ended early (timeout)" in front.summary
    assert front.best.ratio >= 1.5
    counts = itertools.count(100)
    with pytest.raises(InputError, match="timeout ended before the first"):
        search(model, images, macs=1.5, timeout=1.0)


def test_a_failing_trial_does_not_end_the_search(model, images, monkeypatch):
    whole, calls = Evaluator.figures_by_step, itertools.count()

    def failing(self, *arguments, **settings):
        if next(calls) in (1, 7, 9):
            raise RuntimeError("this one is broken")
        return whole(self, *arguments, **settings)

    monkeypatch.setattr(Evaluator, "figures_by_step", failing)
    front = search(model, images, macs=1.5)
    assert front.best.ratio >= 1.5
    assert [failed.reason for failed in front.failures] == ["this one is broken"] * 3


def test_a_proposal_is_tried_beside_none_and_its_macs_count(images):
    wide = vit(embed_dim=128)
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "pretrained": False}
    front = tune(
        wide, images, macs=1.3, families=("scheduled-tome", "papr"), proposals=("test_resnet",), trials=8, **settings
    )
    titles = {point.title for point in front.points if point.budget == 1.3}
    assert titles == {"scheduled-tome", "scheduled-tome with test_resnet", "papr with test_resnet"}
    assert "roposal paid" in front.summary
    point = next(point for point in front.points if point.title == "papr with test_resnet")
    fast = sieve(wide, point.recipe, **settings)
    assert point.macs == macs(fast, (3, 64, 64)) > macs(fast, (3, 64, 64), proposal=False)
    assert point.ratio >= 1.3
    hidden = tune(
        wide,
        images,
        macs=1.3,
        families=("papr",),
        proposals=("test_resnet",),
        trials=0,
        include_proposal=False,
        **settings,
    )
    kept = [next(p for p in each.points if p.budget == 1.3).recipe.methods[0].keep for each in (front, hidden)]
    assert kept[0] < kept[1]


def test_recalled_maps_are_those_of_the_proposal(images):
    evaluator = make_evaluator(vit(), images)
    recipe = Recipe.parse("papr(keep=0.5, proposal=test_resnet) + tome(r=3)")
    rows = evaluator.parts["search"]
    torch.manual_seed(0)
    recalled = evaluator.evaluate(recipe, "search")
    ((maps, _),) = evaluator._maps.values()
    fast = sieve(evaluator.model, PaPr(keep=0.5, significance=maps[rows]) + ToMe(r=3))
    with torch.inference_mode():
        divergence = evaluator.kind.divergence(evaluator.dense[rows], fast(evaluator.images[rows]))
    assert recalled.divergence == pytest.approx(float(divergence.mean()), rel=1e-5)


def test_a_proposal_that_cannot_be_had_is_left_out_and_named(model, images):
    norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    front = search(model, images, macs=1.5, proposals={"resnet5000": None}, trials=0, **norm)
    assert "resnet5000 was left out: Neither timm nor torchvision knows" in front.summary


def test_bad_trials_stop_at_a_rung(model, images, monkeypatch):
    monkeypatch.setattr(evaluator_module, "STEPS", (4,))
    seen = []
    told = FamilyStudy.run

    def watched(self, until):
        told(self, until)
        seen.append(self)

    monkeypatch.setattr(FamilyStudy, "run", watched)
    search(model, images, macs=1.5, families=("scheduled-guarded",), trials=40)
    trials = [trial for study in seen for trial in study._trials() if "figures" in trial.user_attrs]
    counts = {trial.user_attrs["figures"]["images"] for trial in trials}
    assert counts == {4, 14}
    assert all(trial.value is not None for trial in trials)


def test_an_allowed_loss_is_kept_to(model, images):
    front = search(model, images, divergence=0.004, trials=12)
    assert front.reached
    assert front.best.divergence <= 0.004
    assert front.best.ratio == max(point.ratio for point in front.points if point.divergence <= 0.004)


def test_a_wanted_time_moves_the_budget(model, images, monkeypatch):
    """With a clock of our own: time falls with MACs, but by half as much."""

    def clock(calls, **_):
        dense = macs(model, (3, 64, 64))
        times = {"dense": [1.0, 1.0]}
        for text in list(calls)[1:]:
            times[text] = [0.5 + 0.5 * macs(sieve(model, text), (3, 64, 64)) / dense] * 2
        return times

    monkeypatch.setattr(timing, "interleaved", clock)
    front = search(model, images, time=1.25, trials=18)
    assert front.reached
    assert front.best.speed.ratio >= 1.25
    assert front.best.ratio > 1.6
    assert front.best.speed.ratio < 1.32


def test_embeddings_are_compared_by_cosine(images):
    front = search(vit(num_classes=0), images, macs=1.5, trials=0)
    assert front.objective == "1 - cosine"
    assert front.best.kl is None
    assert front.best.agreement is None
    assert 0 < front.best.divergence < 1
    assert "1 - cosine" in front.summary


def test_labels_give_accuracy(model, images):
    labels = model(images).argmax(1)
    front = search(model, [(images[:12], labels[:12]), (images[12:], labels[12:])], macs=1.5, trials=0)
    assert front.dense_accuracy == {"search": 100.0, "heldout": 100.0}
    for point in front.points:
        assert point.search.accuracy == point.search.agreement


def test_hosts_without_a_class_token_take_what_they_can(images):
    front = tune(vit(class_token=False, global_pool="avg"), images, macs=1.4, proposals=(), trials=4)
    assert {"scheduled-tome", "tome"} <= {point.family for point in front.points}
    assert "class token" in front.left_out["evit"]
    with pytest.raises(UnsupportedHost, match="class token"):
        search(vit(class_token=False, global_pool="avg"), images, macs=1.4, families=("evit",))


def test_files_of_a_front(front, tmp_path):
    folder = front.save(tmp_path / "found")
    assert Recipe.load(folder / "best.json") == front.best.recipe
    recipes = [path for path in folder.glob("*.json") if path.name not in ("front.json", "best.json")]
    assert {str(Recipe.load(path)) for path in recipes} == {str(point.recipe) for point in front.pareto}
    record = json.loads((folder / "front.json").read_text())
    assert record == json.loads(front.to_json())
    assert len(record["points"]) == len(front.points) == len((folder / "front.csv").read_text().splitlines()) - 1
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="cannot be made"):
        front.save(tmp_path / "nowhere" / "found")


def test_the_model_keeps_its_mode(model, images):
    model.train()
    model.blocks[1].eval()
    search(model, images, macs=1.5, trials=0, families=("tome",))
    assert model.training
    assert not model.blocks[1].training
    model.eval()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "exactly one budget, macs=, time=, divergence= or agree=; it was given none"),
        ({"macs": 2.0, "divergence": 0.1}, "it was given macs and divergence"),
        ({"macs": 0.9}, "macs=0.9 makes no sense: it must be larger than 1"),
        ({"divergence": 0.0}, "divergence=0 makes no sense"),
        ({"macs": 2.0, "families": ("tomme",)}, "no family 'tomme'; the nearest"),
        ({"macs": 2.0, "families": ()}, "families is empty"),
        ({"macs": 2.0, "holdout": 1.0}, "holdout=1 in"),
        ({"macs": 2.0, "proposals": {"resnet18": "missing.pt"}}, "no weights file missing.pt"),
        ({"macs": 500.0, "trials": 0}, "No recipe could be evaluated"),
    ],
)
def test_what_makes_no_sense_is_refused(model, images, settings, sentence):
    with pytest.raises((RecipeError, InputError), match=sentence.replace("(", r"\(")):
        search(model, images, **settings)


def test_loaders_that_cannot_be_used(model, images):
    with pytest.raises(InputError, match="no images"):
        search(model, [], macs=1.5)
    with pytest.raises(InputError, match="different sizes"):
        search(vit(dynamic_img_size=True), [images, images[..., :32]], macs=1.5)
    with pytest.raises(InputError, match="cannot be divided"):
        search(model, images[:2], macs=1.5)
    with pytest.raises(InputError, match="pool the tokens"):
        search(vit(global_pool="", num_classes=0), images, macs=1.5)


def test_images_that_would_not_fit_are_refused(model, images, monkeypatch):
    monkeypatch.setattr(evaluator_module, "_free_memory", lambda: 100_000.0)
    with pytest.raises(InputError, match="fill the memory"):
        search(model, images, macs=1.5)


def test_schedules_spend_the_whole_budget(model):
    costs = Costs(sieve(model), (3, 64, 64))
    for ratio in (1.1, 1.4, 1.9):
        fit = Fit(costs, costs.dense / ratio, readout=True)
        for family in (Scheduled("guarded"), Scheduled("tome"), SINGLES["tome"]):
            recipe = family.recipe({}, {}, fit)
            assert 0.98 * fit.target <= costs.of(recipe) <= fit.target
    with pytest.raises(RecipeError, match="times the MACs of the budget"):
        SINGLES["tome"].recipe({}, {}, Fit(costs, costs.dense / 100))


def test_the_recommended_recipe_is_corrected_within_its_budget(images, tmp_path):
    host, more = vit(), torch.cat([images, images.flip(2), images.flip(3), images.roll(9, 3), images.roll(20, 2)])
    file = tmp_path / "correction.safetensors"
    front = search(host, more, macs=1.6, trials=4, families=("tome", "evit"), correction=file, holdout=0.4)
    point, best = front.corrected, front.best
    assert point.kind == "corrected"
    assert str(point.recipe) == f"{best.recipe} + corrected(weights='{file}')"
    assert point.macs == best.macs + host.embed_dim**2 == macs(sieve(host, point.recipe), (3, 64, 64))
    assert point.ratio >= 1.6
    assert point.heldout.divergence == pytest.approx(
        fidelity(sieve(host, point.recipe), host, [more[held_out(100, 0.4)]]).kl, rel=1e-4
    )
    better = point.heldout.divergence < best.heldout.divergence
    assert front.recommended is (point if better else best)
    assert ("is no better" in front.summary) == (not better)
    assert "Corrected: a KL of" in front.summary
    folder = front.save(tmp_path / "front")
    assert Recipe.load(folder / "best.json") == front.recommended.recipe
    assert json.loads((folder / "front.json").read_text())["corrected"]["recipe"] == str(
        point.recipe.relative_to(folder)
    )


def test_a_front_and_its_correction_are_one_folder_that_can_be_moved(images, there, monkeypatch):
    host, more = vit(), torch.cat([images, images.flip(2), images.flip(3), images.roll(9, 3), images.roll(20, 2)])
    settings = {"macs": 1.6, "trials": 0, "families": ("tome",), "holdout": 0.0}
    front = search(host, more, correction="found/correction.safetensors", **settings)
    assert front.recommended is front.corrected
    front.save("found")
    assert str(there) not in "".join(path.read_text() for path in (there / "found").glob("front.[cj]s*"))
    wanted = sieve(host, front.recommended.recipe)(more[:2])
    shutil.move("found", "moved")
    (there / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert torch.equal(sieve(host, "../moved/best.json")(more[:2]), wanted)
    told = json.loads(Path("../moved/front.json").read_text())["corrected"]["recipe_json"]
    assert torch.equal(sieve(host, Recipe.from_json(json.dumps(told), there / "moved"))(more[:2]), wanted)
    again = search(host, more, **settings)
    again.save(there / "moved")
    assert not (there / "moved" / "correction.safetensors").exists()


def test_an_interrupted_correction_does_not_lose_the_front(images, tmp_path, monkeypatch):
    """Ctrl-C while the corrected recipe is judged, when its weights are written."""
    more = torch.cat([images, images.flip(2)])
    evaluate = Evaluator.evaluate

    def interrupted(self, recipe, part):
        if "corrected" in str(recipe):
            raise KeyboardInterrupt
        return evaluate(self, recipe, part)

    monkeypatch.setattr(Evaluator, "evaluate", interrupted)
    folder = tmp_path / "found"
    settings = {"macs": 1.6, "trials": 0, "families": ("tome",)}
    front = search(vit(), more, correction=folder / "correction.safetensors", **settings)
    assert "interrupted" in front.left_out["correction"]
    assert (folder / "correction.safetensors").is_file()
    front.save(folder)
    assert not (folder / "correction.safetensors").exists()


def held_out(count, share, seed=0):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[count - round(count * share) :]


def test_what_cannot_be_corrected_is_tuned_all_the_same(images, tmp_path, monkeypatch):
    file = tmp_path / "c.safetensors"
    pooled = vit(class_token=False, global_pool="avg")
    front = search(pooled, images, macs=1.4, trials=0, families=("tome",), correction=file)
    assert front.corrected is None
    assert front.recommended is front.best
    assert "class token" in front.left_out["correction"]
    few = search(vit(), images[:8], macs=1.4, trials=0, families=("tome",), correction=file)
    assert "10 search images" in few.left_out["correction"]
    assert not file.exists()
    for error, why in ((KeyboardInterrupt(), "interrupted"), (InputError("The disk is full."), "The disk is full")):
        with monkeypatch.context() as patch:
            patch.setattr(results, "correct", Mock(side_effect=error))
            front = search(vit(), images, macs=1.4, trials=0, families=("tome",), correction=file)
        assert why in front.left_out["correction"]
        assert why in front.summary
        assert front.recommended is front.best
    with pytest.raises(InputError, match="must end in"):
        search(vit(), images, macs=1.4, correction=tmp_path / "c.json")


class Others:
    """Other processes that use so many cores in one measurement after the other."""

    seen: list[float]

    def cores(self):
        return self.seen.pop(0)


def steady(calls, **_):
    return {name: [0.2 if name == "dense" else 0.1] * 5 for name in calls}


@pytest.mark.parametrize(
    ("cores", "attempts", "said"),
    [
        ([0.0], 1, "The machine was quiet during the measurement."),
        ([99.0, 0.0], 2, "The machine was quiet during the measurement, after measuring 2 times."),
        (
            [99.0, 99.0, 99.0],
            3,
            "was busy during the measurement, after measuring 3 times, so do not rely on it: other",
        ),
    ],
)
def test_a_busy_machine_is_said_and_measured_again(model, images, monkeypatch, cores, attempts, said):
    monkeypatch.setattr(timing, "interleaved", steady)
    monkeypatch.setattr(timing, "OtherWork", Others)
    monkeypatch.setattr(timing, "ATTEMPTS", 3)
    monkeypatch.setattr(Others, "seen", list(cores), raising=False)
    front = search(model, images, macs=1.5, trials=0)
    assert front.best.speed.attempts == attempts
    assert front.best.speed.ratio == 2
    assert said in front.summary
    assert "Measured here at batch 14: 2.00x the dense speed [2.00-2.00], where it has 1.5" in front.summary
    assert "To search for a speed instead of MACs: --time X, in Python time=X." in front.summary


def test_rounds_that_differ_are_no_quiet_machine(model, images, monkeypatch):
    def uneven(calls, **_):
        return {name: [0.2, 0.1, 0.3, 0.2, 0.4] if name == "dense" else [0.1] * 5 for name in calls}

    monkeypatch.setattr(timing, "interleaved", uneven)
    monkeypatch.setattr(timing, "OtherWork", Others)
    monkeypatch.setattr(timing, "ATTEMPTS", 3)
    monkeypatch.setattr(Others, "seen", [0.0] * 3, raising=False)
    front = search(model, images, macs=1.5, trials=0)
    assert front.best.speed.attempts == 3
    assert "the rounds differ by" in front.summary


def test_what_was_found_is_kept_before_it_is_measured_and_corrected(model, images, monkeypatch):
    """Whoever is ended in between has it all the same."""
    kept = []

    def ended(*_arguments, **_settings):
        raise RuntimeError("the machine was switched off")

    monkeypatch.setattr(tuning, "timed", ended)
    with pytest.raises(RuntimeError):
        search(model, images, macs=1.5, trials=0, keep=kept.append)
    (front,) = kept
    assert front.best.ratio >= 1.5
    assert front.best.heldout is not None
    assert "Its speed was not measured." in front.summary


def test_agreement_has_its_interval(front):
    record = front.record()["best"]["heldout"]
    assert record["agreement_low"] <= record["agreement"] <= record["agreement_high"]
    assert record["agreement_high"] - record["agreement_low"] > 10, "six images tell little"
    assert f"{record['agreement']:.1f}% [{record['agreement_low']:.1f}-" in front.summary
