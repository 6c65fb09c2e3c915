"""The sentences that a speed measurement is turned into."""

import pytest

from tokensieve.measure import Speed
from tokensieve.measure.decoding import Decoding
from tokensieve.show.verdict import verdict


def measured(ratio, limit=2.0, *, spread=0.03, proposal=0.0, batch=8):
    """What a run would give whose sieved time is dense time over `ratio`."""
    return Speed(
        ratio=ratio,
        low=ratio - spread,
        high=ratio + spread,
        limit=limit,
        of_limit=ratio / limit,
        of_limit_low=(ratio - spread) / limit,
        of_limit_high=(ratio + spread) / limit,
        proposal_share=proposal,
        seconds={"dense": 1.0, "sieved": 1 / ratio, "limit": 1 / limit},
        batch=batch,
        threads=2,
        rounds=7,
    )


def said(speed, macs_ratio=2.0, dtype="fp32", device="cpu", **settings):
    return verdict(speed, macs_ratio=macs_ratio, dtype=dtype, device=device, **settings)


def test_faster_and_near_the_limit_needs_no_reason():
    assert said(measured(1.87, 1.93), 1.956) == [
        "1.87x faster than the dense model (spread 1.84-1.90), 97% of what slicing alone gives."
    ]


def test_no_more_than_all_of_the_limit_is_claimed():
    (sentence,) = said(measured(2.02, 2.0))
    assert sentence.endswith("all that slicing alone gives.")


@pytest.mark.parametrize(("ratio", "spread"), [(1.02, 0.05), (0.98, 0.05), (1.0, 0.0), (1.03, 0.03), (1.004, 0.001)])
def test_a_spread_that_includes_one_is_never_faster(ratio, spread):
    result, *reasons = said(measured(ratio, spread=spread))
    assert result.startswith("Not measurably faster")
    assert "includes 1" in result
    assert reasons


def test_slower_says_so_and_why():
    result, *reasons = said(measured(0.83, 1.2, proposal=0.3), 1.2)
    assert result.startswith("Slower than the dense model: 0.83x its speed (spread 0.80-0.86)")
    assert "1.20x" in result
    assert reasons


def test_a_heavy_proposal_is_named_beside_what_is_saved():
    _, reason = said(measured(1.0, 2.0, proposal=0.5))
    assert "fewer tokens save 50%" in reason
    assert "the proposal takes 50%, too heavy for this host" in reason
    assert "a larger host" in reason
    assert "choosing" not in reason.lower()


def test_a_bearable_proposal_is_not_called_too_heavy():
    _, reason = said(measured(1 / 0.6, 2.0, proposal=0.1))
    assert "fewer tokens save 50%; the proposal takes 10%." in reason
    assert "too heavy" not in reason


def test_in_bf16_on_a_cpu_the_proposal_may_run_in_bf16():
    assert "proposal_dtype=bfloat16" in said(measured(1.0, 2.0, proposal=0.5), dtype="bf16")[-1]


def test_selection_is_named_where_it_weighs():
    _, reason = said(measured(1 / 0.6, 2.0))
    assert "choosing tokens" in reason
    assert "takes 10%." in reason
    assert "proposal" not in reason
    _, reason = said(measured(1 / 0.7, 2.0, proposal=0.1, batch=1))
    assert "the proposal takes 10%; choosing tokens" in reason
    assert "many small operations" in reason


def test_minor_costs_have_no_remedy():
    assert said(measured(1 / 0.53, 2.0, proposal=0.02)) == [
        "1.89x faster than the dense model (spread 1.86-1.92), 94% of what slicing alone gives."
    ]


def test_nothing_saved_is_said_in_words():
    reason = said(measured(0.5, 0.95, batch=1))[-1]
    assert "fewer tokens save nothing" in reason


def test_bf16_on_a_cpu_names_the_remedy_for_packing():
    _, reason = said(measured(1.3, 1.31), 1.956, dtype="bf16")
    assert "1.31x where the MACs promise 1.96x" in reason
    assert "re-packed at each call" in reason
    assert "batch of 8" in reason
    assert "tokensieve.prepack(model)" in reason
    assert "--prepack" in reason


@pytest.mark.parametrize(
    "settings", [{"dtype": "bf16", "prepacked": True}, {"dtype": "fp32"}, {"dtype": "bf16", "device": "cuda:0"}]
)
def test_packing_is_blamed_nowhere_else(settings):
    _, reason = said(measured(1.3, 1.31), 1.956, **settings)
    assert "pack" not in reason
    assert "larger batch" in reason
    assert ("GPU" in reason) == (settings.get("device") == "cuda:0")


def test_a_large_batch_is_not_told_to_grow():
    assert "larger batch" not in " ".join(said(measured(1.3, 1.31, batch=64), 1.956))


def test_the_limit_is_held_against_the_macs_without_the_proposal():
    speed = measured(1.65, 1.7, proposal=0.01)
    assert len(said(speed, 1.4)) == 1
    assert "promise 2.10x" in said(speed, 1.4, host_macs_ratio=2.1)[-1]


def test_an_empty_recipe_is_called_that():
    (sentence,) = said(measured(1.01, 1.0), 1.0)
    assert "drops and merges nothing" in sentence


def test_little_to_gain():
    assert "saves only 4.8% of the MACs" in said(measured(1.02, 1.03, spread=0.05), 1.05)[1]
    assert "saves no MACs" in said(measured(0.9, 1.5, proposal=0.4), 0.97)[1]


def test_a_noisy_machine_is_named():
    assert said(measured(1.9, spread=0.3))[1].startswith("The spread is wide")


def test_not_faster_never_stands_without_a_reason():
    for limit in (1.0, 1.2, 1.6, 2.0):
        for ratio in (0.7, 0.96, 1.0, 1.02):
            for proposal in (0.0, 0.05, 0.4):
                for dtype, device in (("fp32", "cpu"), ("bf16", "cpu"), ("fp16", "cuda")):
                    sentences = said(measured(ratio, limit, proposal=proposal), 1.2, dtype, device)
                    assert len(sentences) > 1
                    assert all(sentence.endswith(".") for sentence in sentences)


def test_a_map_without_a_network_is_not_called_a_proposal():
    _, reason = said(measured(1.0, 2.0, proposal=0.5), network=False)
    assert "the significance map takes 50%, too heavy for this host." in reason
    assert "proposal" not in reason


def test_a_lost_attention_kernel_is_named_wherever_it_is_lost():
    kernels = {"dense": ("flash",), "sieved": ("flash", "math")}
    for ratio in (0.9, 1.9):
        reason = " ".join(said(measured(ratio), attention=kernels)[1:])
        assert "attention kernel was lost: the dense model uses a fused one (flash)" in reason
        assert "proportional=False" in reason
    assert len(said(measured(1.95), attention={"dense": ("flash",), "sieved": ("efficient",)})) == 1


@pytest.mark.parametrize(
    ("workers", "who"),
    [(0, "one process, in turn with the model, prepares"), (1, "1 worker prepares"), (3, "3 workers prepare")],
)
def test_decoding_is_the_limit_where_the_sieved_model_outruns_it(workers, who):
    speed = measured(1.95)  # the sieved model takes 8 images in 1 / 1.95 s: 15.6 a second
    *_, reason = said(speed, decoded=Decoding(12.34, 100, workers))
    assert reason.startswith(f"Decoding is the limit: {who} 12.34 pictures a second, where the sieved model alone ")
    assert "reads 15.6." in reason
    assert "--workers" in reason
    assert len(said(speed, decoded=Decoding(15.7, 100, workers))) == 1
    assert "Decoding" in said(measured(1.0, 1.0), 1.0, decoded=Decoding(7.9, 100, workers))[-1]  # the empty recipe
