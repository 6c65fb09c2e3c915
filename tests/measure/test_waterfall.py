"""The waterfall: which row adds what, and to which row before. Nothing here is timed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.reference.hosts import host_forms, host_images
from tokensieve import InputError, PaPr, sieve
from tokensieve.export.packing import packs_bf16
from tokensieve.measure import waterfall as module
from tokensieve.measure.waterfall import Skipped, waterfall

pytestmark = pytest.mark.slow

QUICK = {"seconds": 0, "min_rounds": 2}
PAPR = "papr(keep=0.5, significance=centre)"


@pytest.fixture
def model() -> nn.Module:
    return host_forms()["class-token"]()


COMPILE = torch.compile


@pytest.fixture(autouse=True)
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Each compilation's settings, instead of compiling, which takes minutes."""
    seen: list[dict] = []

    def remember(module: nn.Module, **settings: object) -> nn.Module:
        seen.append(settings)
        return module

    monkeypatch.setattr(torch, "compile", remember)
    return seen


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured as ever, but not built."""

    def capture(module: nn.Module, *, options: dict, **settings: bool) -> object:
        return COMPILE(module, backend="eager", **settings)

    monkeypatch.setattr(torch, "compile", capture)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()  # other tests compile too


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Seconds of each contestant instead of a clock's; those that are not named take 1 s in both rounds."""
    given: dict[str, list[float]] = {}

    def fake(contestants: dict, **_: object) -> dict[str, list[float]]:
        return {name: given.get(name, [1.0, 1.0]) for name in contestants}

    monkeypatch.setattr(module, "interleaved", fake)
    return given


def steps(fall: module.Waterfall) -> list[str]:
    return [row.step for row in fall.rows]


def test_every_row_adds_one_thing(model: nn.Module, compilations: list[dict]) -> None:
    fall = waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=2, **QUICK)
    assert steps(fall) == ["dense", "recipe", "bf16", "compile", "batch"]
    assert [row.dtype for row in fall.rows] == ["fp32", "fp32", "bf16", "bf16", "bf16"]
    assert [row.batch for row in fall.rows] == [2, 2, 2, 2, 4]
    assert compilations == [{"fullgraph": True, "dynamic": False, "options": {}}] * 2  # the model and its limit
    dense, recipe, low, *_ = fall.rows
    assert (dense.ratio, dense.gain, dense.limit, dense.difference) == (1, 1, None, None)
    assert recipe.memory_bytes < dense.memory_bytes
    assert low.memory_bytes < recipe.memory_bytes
    assert all(row.attention == ("flash",) for row in fall.rows)
    assert {row.agreement for row in fall.rows} == {None}


def test_ratios_are_of_the_time_an_image_round_by_round(model: nn.Module, timed: dict) -> None:
    timed |= {
        "dense row": [4.0, 8.0],  # the machine was half as fast in the second round
        "recipe row": [2.0, 4.0],
        "recipe limit": [1.0, 2.0],
        "recipe map": [0.5, 1.0],
        "bf16 row": [2.0, 2.0],
        "bf16 map": [1.0, 1.0],
        "compile row": [1.0, 2.0],
        "batch row": [1.0, 2.0],  # for twice the images
        "batch limit": [0.5, 1.0],
    }
    fall = waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=2)
    _, recipe, low, compiled, batch = fall.rows
    assert (recipe.ratio, recipe.gain, recipe.limit, recipe.of_limit) == (2, 2, 4, 0.5)
    assert recipe.map_share == 0.25
    assert recipe.seconds == {"row": 3, "limit": 1.5, "map": 0.75}
    assert recipe.images_per_second == pytest.approx(2 / 3)
    assert (low.gain, low.gain_low, low.gain_high) == pytest.approx((1.5, 1.1, 1.9))
    assert (low.ratio, low.low, low.high) == pytest.approx((3, 2.2, 3.8))
    assert low.map_share == 0.5
    assert compiled.map_share is None  # it is part of the graph
    assert compiled.gain == 1.5
    assert (batch.ratio, batch.gain, batch.limit, batch.of_limit) == (8, 2, 16, 0.5)
    assert (fall.recipe.ratio, fall.recipe.limit, fall.recipe.proposal_share) == (2, 4, 0.125)
    assert fall.recipe.batch == 2


def test_the_model_stays_as_it_is(model: nn.Module) -> None:
    fast = sieve(model, PAPR)
    before = copy.deepcopy(model.state_dict())
    waterfall(fast, model, host_images(model, 4), batch=2, prepacked=True, **QUICK)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training
    assert type(model.blocks[0].mlp.fc1) is nn.Linear


def test_packing_is_a_row_and_the_compiler_packs_for_itself(model: nn.Module, compilations: list[dict]) -> None:
    fall = waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=2, prepacked=True, **QUICK)
    assert steps(fall) == ["dense", "recipe", "bf16", "prepack", "compile", "batch"]
    if not packs_bf16():
        assert isinstance(fall.rows[3], Skipped)
        assert "no instructions for bf16" in fall.rows[3].reason
        return
    assert not any(isinstance(row, Skipped) for row in fall.rows)
    assert all(settings["options"] == {"freezing": True} for settings in compilations)
    assert fall.rows[3].difference == pytest.approx(fall.rows[2].difference, abs=0.02)


class Breaks(nn.Module):
    """A proposal whose code cannot be one graph."""

    def forward(self, images: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return nn.functional.avg_pool2d(images, 8)


def test_both_sizes_of_a_recipe_compile_as_one_graph_each(model: nn.Module, graphs: None, timed: dict) -> None:
    fast = sieve(model, "random(keep=0.6) + tome(r=3)")
    fall = waterfall(fast, model, host_images(model, 4), batch=2)
    assert not any(isinstance(row, Skipped) for row in fall.rows)
    assert fall.rows[3].difference == pytest.approx(fall.rows[2].difference, abs=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4  # two models, two batches, none compiled again


def test_a_step_that_cannot_run_says_why_and_the_next_adds_to_the_last_that_did(
    model: nn.Module, graphs: None, timed: dict
) -> None:
    timed |= {"bf16 row": [3.0, 3.0], "batch row": [1.0, 1.0]}
    fall = waterfall(sieve(model, PaPr(keep=0.5, proposal=Breaks())), model, host_images(model, 4), batch=2)
    assert steps(fall) == ["dense", "recipe", "bf16", "compile", "batch"]
    *_, skipped, batch = fall.rows
    assert isinstance(skipped, Skipped)
    assert "graph_break" in skipped.reason
    assert "\n" not in skipped.reason
    assert batch.gain == 6  # to bf16: twice the images in a third of the time
    assert batch.map_share == 1  # not compiled: seen alone


def test_a_precision_that_packing_refuses(model: nn.Module, timed: dict) -> None:
    fall = waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=2, dtype=torch.float16, prepacked=True)
    assert steps(fall) == ["dense", "recipe", "fp16", "prepack", "compile", "batch"]
    assert isinstance(fall.rows[3], Skipped)
    assert "fp32 or bf16" in fall.rows[3].reason
    assert [row.dtype for row in fall.rows if row.step in ("fp16", "compile", "batch")] == ["fp16"] * 3


def test_what_cannot_run_at_all_is_an_error(model: nn.Module) -> None:
    def broken(images: Tensor) -> Tensor:
        return images.mean(1) * torch.nan

    with pytest.raises(InputError, match="NaN"):
        waterfall(sieve(model, PaPr(keep=0.5, significance=broken)), model, host_images(model, 4), batch=2)


def test_our_own_mistakes_are_no_row(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(module, "_larger", broken)
    with pytest.raises(TypeError, match="ours"):
        waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=2)


def test_differences_and_agreement_are_of_the_same_images(model: nn.Module, timed: dict) -> None:
    images = host_images(model, 5)
    fast = sieve(model, "tome(r=5)")
    with torch.no_grad():
        dense, ours = model(images[:4]), fast(images[:4])
        low = sieve(copy.deepcopy(model).bfloat16(), "tome(r=5)")(images[:4].bfloat16()).float()
    fall = waterfall(fast, model, images, batch=2, agreement=True)
    assert {row.compared for row in fall.rows} == {4}  # whole batches of the first rows
    agreed = {row.step: row.agreement for row in fall.rows}
    assert agreed["dense"] == 100
    assert agreed["recipe"] == 100 * float((dense.argmax(1) == ours.argmax(1)).double().mean())
    rows = {row.step: row for row in fall.rows}
    assert rows["dense"].difference is rows["recipe"].difference is None
    expected = float((low - ours).abs().max() / ours.abs().max())
    assert rows["bf16"].difference == pytest.approx(expected, rel=1e-3)
    assert rows["batch"].difference == pytest.approx(expected, abs=0.05)


def test_features_agree_on_no_class(timed: dict) -> None:
    model = host_forms()["headless"]()
    fall = waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=2, agreement=True)
    assert {row.agreement for row in fall.rows} == {None}


def test_progress_is_told(model: nn.Module, timed: dict) -> None:
    told: list[str] = []
    waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=2, progress=told.append)
    assert [text.split(":")[0] for text in told[:5]] == ["dense", "recipe", "bf16", "compile", "batch"]
    assert "compiling" in told[3]


@pytest.mark.parametrize("batch", [0, 4, 5])
def test_the_last_batch_must_be_larger(model: nn.Module, batch: int) -> None:
    with pytest.raises(InputError, match="ends with a larger batch"):
        waterfall(sieve(model, PAPR), model, host_images(model, 4), batch=batch)


def test_it_begins_in_fp32(model: nn.Module) -> None:
    low = model.bfloat16()
    with pytest.raises(InputError, match="begins in fp32"):
        waterfall(sieve(low, PAPR), low, host_images(model, 4), batch=2)
