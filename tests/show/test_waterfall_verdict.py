"""What is said of the rows of a waterfall."""

import pytest
import torch

from tokensieve._devices import lacks_units
from tokensieve.measure.decoding import Decoding
from tokensieve.measure.speed import summarise
from tokensieve.measure.waterfall import Row, Skipped, Waterfall
from tokensieve.show.waterfall_verdict import waterfall_verdicts

X86 = {"architecture": "x86_64"}


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    """A processor with units for bf16 and none for fp16; tests change it."""
    found = {**X86, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    return found


def row(step, gain=2.0, *, spread=0.03, dtype="bf16", batch=8, share=None, attention=("flash",), rate=100.0):
    return Row(
        step=step,
        batch=batch,
        dtype=dtype,
        ratio=gain,
        low=gain - spread,
        high=gain + spread,
        gain=gain,
        gain_low=gain - spread,
        gain_high=gain + spread,
        limit=2.0,
        of_limit=0.9,
        map_share=share,
        images_per_second=rate,
        seconds={"row": batch / rate},
        memory_bytes=0,
        attention=attention,
        difference=None,
        agreement=None,
        compared=8,
    )


def said(*rows, device="cpu", **settings):
    recipe = summarise({"dense": [1.0, 1.0], "sieved": [0.5, 0.5], "limit": [0.5, 0.5]}, 8)
    rows = [row("dense", 1.0, spread=0, dtype="fp32"), row("recipe", dtype="fp32"), *rows]
    return waterfall_verdicts(Waterfall(rows, recipe), macs_ratio=2.0, host_macs_ratio=2.0, device=device, **settings)


def last(*rows, **settings):
    return " ".join(said(*rows, **settings)[-1])


def test_faster_rows_need_no_words_but_the_recipes():
    dense, recipe, *others = said(row("bf16"), row("compile", 1.05), row("batch", 1.1, batch=32))
    assert dense == []
    assert recipe == ["2.00x faster than the dense model (spread 2.00-2.00), all that slicing alone gives."]
    assert others == [[], [], []]


@pytest.mark.parametrize("gain", [1.0, 1.03, 1.034])
def test_a_spread_that_includes_one_is_not_faster(gain):
    assert last(row("compile", gain)).startswith(f"Not measurably faster than the row before: {gain:.2f}x (spread ")


def test_slower_is_called_slower():
    assert last(row("compile", 0.9)).startswith("Slower than the row before: 0.90x (spread 0.87-0.93).")


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("step", ["bf16", "fp16", "prepack", "compile", "batch"])
def test_not_faster_never_stands_without_a_reason(monkeypatch, step, device):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    dtype = step if step in ("bf16", "fp16") else "bf16"
    for gain in (0.8, 1.0):
        sentences = said(row(step, gain, dtype=dtype, batch=32 if step == "batch" else 8), device=device)[-1]
        assert len(sentences) > 1
        assert all(sentence.endswith(".") for sentence in sentences)


def test_bf16_on_a_cpu_packs_at_each_call():
    reason = last(row("bf16", 1.0))
    assert "re-packed at each call" in reason
    assert "batch of 8" in reason
    assert "--prepack" in reason
    assert "tokensieve.prepack(model)" in reason


def test_a_processor_without_units_is_the_whole_reason(processor):
    del processor["avx512_bf16"]
    reason = last(row("bf16", 0.5))
    assert "no units for bf16 (avx512_bf16 or amx_bf16)" in reason
    assert "packed" not in reason
    assert "no units for fp16" in last(row("fp16", 0.5, dtype="fp16"))


def test_a_heavy_proposal_hides_what_the_precision_gives():
    assert "proposal keeps its own precision (proposal_dtype) and takes 40% of this row" in last(
        row("bf16", 1.0, share=0.4)
    )
    assert "proposal" not in last(row("bf16", 1.0, share=0.4), network=False)
    assert "proposal" not in last(row("bf16", 1.0, share=0.1))


def test_a_kernel_lost_with_the_precision_is_named():
    assert "attention kernel was lost: the row before uses a fused one (flash), this row" in last(
        row("bf16", 1.0, attention=("math",))
    )


def test_a_kernel_lost_with_the_recipe_is_named():
    fall = Waterfall(
        [row("dense", 1.0, dtype="fp32"), row("recipe", dtype="fp32", attention=("math",))],
        summarise({"dense": [1.0, 1.0], "sieved": [0.5, 0.5], "limit": [0.5, 0.5]}, 8),
    )
    _, recipe = waterfall_verdicts(fall, macs_ratio=2.0, host_macs_ratio=2.0, device="cpu")
    assert "the dense model uses a fused one (flash), the sieved one" in recipe[-1]


def test_each_step_has_its_own_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert "does not fill the GPU" in last(row("bf16", 1.0), device="cuda")
    assert "it is already small" in last(row("prepack", 1.0))
    assert "othing left to fuse" in last(row("compile", 1.0))
    assert "A batch of 8 keeps the machine busy already" in last(row("bf16"), row("batch", 1.0, batch=32))


def test_noise_is_named_before_the_reasons():
    assert said(row("compile", 1.0, spread=0.2))[-1][1].startswith("The spread is wide")


def test_a_step_that_cannot_run_says_why_and_the_next_is_held_against_the_last_that_did():
    *_, skipped, batch = said(row("bf16", batch=8), Skipped("compile", "no compiler."), row("batch", 1.0, batch=32))
    assert skipped == ["Cannot run here: no compiler. The next row adds to the last that can."]
    assert "A batch of 8 keeps" in batch[-1]


def test_decoding_is_named_at_the_first_row_that_outruns_it():
    rows = row("bf16", rate=250.0), row("compile", rate=300.0)
    dense, recipe, low, compiled = said(*rows, decoded=Decoding(200.0, 64, 2))
    assert dense == compiled == []
    assert len(recipe) == 1
    assert low == [
        "Decoding is the limit: 2 workers prepare 200 pictures a second, where this row alone reads 250. End to end no "
        "recipe gets faster than that: give more --workers, or store smaller pictures."
    ]


def test_units_are_not_claimed_to_be_missing_where_nothing_is_known(monkeypatch, processor):
    assert not lacks_units("bf16", "cpu")
    assert lacks_units("fp16", "cpu")
    processor["architecture"] = "aarch64"
    assert not lacks_units("fp16", "cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not lacks_units("fp16", "cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert lacks_units("bf16", "cuda:0")
    assert not lacks_units("fp16", "cuda:0")
