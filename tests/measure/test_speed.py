"""Speed: how rounds become ratios, and that the limit does the recipe's work and no more. Nothing here is timed."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.reference.hosts import host_forms, host_images
from tokensieve import InputError, sieve
from tokensieve.measure import SlicingLimit, accuracy, fidelity, macs, peak_memory, speed
from tokensieve.measure.attention import attention_kernels
from tokensieve.measure.speed import interleaved, summarise
from tokensieve.measure.waterfall import waterfall

FORMS = host_forms()


def test_ratios_are_taken_round_by_round() -> None:
    times = {
        "dense": [1.0, 2.0, 1.0],  # the machine was half as fast in the second round
        "sieved": [0.5, 1.0, 0.4],
        "limit": [0.4, 0.8, 0.4],
        "proposal": [0.1, 0.2, 0.1],
    }
    result = summarise(times, batch=8)
    assert result.ratio == 2.0
    assert result.limit == 2.5
    assert result.of_limit == pytest.approx(0.8)
    assert result.low == pytest.approx(2.0)
    assert result.high == pytest.approx(2.4)
    assert result.proposal_share == pytest.approx(0.1)
    assert result.without_proposal() == pytest.approx(1.0)
    assert result.rounds == 3


def test_every_round_runs_everybody_in_turns() -> None:
    calls: list[str] = []

    def contestant(name: str) -> object:
        return lambda: calls.append(name)

    times = interleaved(
        {name: contestant(name) for name in "ab"},
        seconds=0,
        min_rounds=3,
        max_rounds=3,  # type: ignore[misc]
    )
    assert [len(values) for values in times.values()] == [3, 3]
    order = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert order[-4:] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@torch.no_grad()
def test_the_limit_runs_on_every_host_with_the_recipes_token_counts(form: object) -> None:
    model = form()  # type: ignore[operator]
    images = host_images(model)
    for recipe in ("", "random(keep=0.5)", "tome(r=3)", "random(keep=0.6) + tome(r=3)"):
        fast = sieve(model, recipe)
        output = SlicingLimit(fast)(images)
        assert output.shape == fast(images).shape
        if not recipe:
            assert torch.equal(output, model(images))


def test_speed_measures_all_contestants() -> None:
    model = FORMS["class-token"]()
    fast = sieve(model, "papr(keep=0.5, proposal=resnet18)", mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    result = speed(fast, model, host_images(model), seconds=0, min_rounds=2)
    assert set(result.seconds) == {"dense", "sieved", "limit", "proposal"}
    assert result.rounds == 2
    assert result.batch == 2
    assert result.low <= result.ratio <= result.high


def test_models_in_each_others_place_are_a_sentence() -> None:
    model = FORMS["class-token"]()
    fast, images = sieve(model, "tome(r=3)"), host_images(model)
    for swapped in (lambda: speed(model, fast, images), lambda: waterfall(model, fast, images, batch=1)):
        with pytest.raises(InputError, match=r"models are swapped: call (speed|waterfall)\(fast, dense, \.\.\.\)"):
            swapped()
    for dense in (lambda: speed(model, model, images), lambda: waterfall(model, model, images, batch=1)):
        with pytest.raises(InputError, match=r"is a model returned by sieve\(\), not VisionTransformer"):
            dense()
    with pytest.raises(InputError, match=r"takes a model returned by sieve\(\), not VisionTransformer"):
        SlicingLimit(model)
    with pytest.raises(InputError, match="models are swapped: call fidelity"):
        fidelity(model, fast, [images])
    with pytest.raises(InputError, match="models are swapped"):
        fidelity(model, torch.compile(fast), [images])
    assert fidelity(model, model, [images]).agreement == 100  # such as one model in two precisions


def test_images_that_are_none_are_a_sentence() -> None:
    model = FORMS["class-token"]()
    fast, images = sieve(model, "tome(r=3)"), host_images(model)
    for wrong in (images[0], images.byte(), [images], (3, 40, 40)):
        with pytest.raises(InputError, match="Images must be one tensor"):
            speed(fast, model, wrong, seconds=0, min_rounds=2)
        with pytest.raises(InputError, match="Images must be one tensor"):
            waterfall(fast, model, wrong, batch=1)
    with pytest.raises(InputError, match=r"Images must be one tensor .* not uint8 of shape"):
        fidelity(fast, model, [images.byte()])
    with pytest.raises(InputError, match=r"Images must be one tensor .* not uint8 of shape"):
        accuracy(fast, [(images.byte(), torch.zeros(2).long())])
    with pytest.raises(InputError, match=r"VisionTransformer does not run on images of shape \(3, 40, 40\)"):
        accuracy(model, [(images[0], torch.zeros(2).long())])
    with pytest.raises(InputError, match=r"VisionTransformer does not run on images of shape \(2, 3, 48, 48\)"):
        speed(fast, model, torch.randn(2, 3, 48, 48), seconds=0, min_rounds=2)


@pytest.mark.parametrize("measured", [peak_memory, attention_kernels])
def test_a_model_is_no_call(measured) -> None:
    with pytest.raises(InputError, match=rf"{measured.__name__} takes a function without arguments, such as"):
        measured(FORMS["class-token"]())


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channels_than_three_are_measured(channels: int) -> None:
    model = VisionTransformer(32, 8, channels, embed_dim=16, depth=1, num_heads=2).eval()
    images = torch.randn(2, channels, 32, 32)
    result = speed(sieve(model, "tome(r=3)"), model, images, seconds=0, min_rounds=2)
    assert result.batch == 2


def test_the_limit_costs_what_the_host_costs_on_as_many_tokens() -> None:
    model = FORMS["class-token"]()
    fast = sieve(model, "random(keep=0.6) + tome(r=3)")
    assert macs(SlicingLimit(fast), (3, 40, 40)) == macs(fast, (3, 40, 40))


def test_peak_memory_is_the_most_held_at_one_time() -> None:
    x = torch.randn(256, 1024)  # 1 MiB

    def chain() -> torch.Tensor:
        return x.add(1).add(1).add(1)  # two are alive at a time

    assert peak_memory(chain) == pytest.approx(2 * x.nbytes, abs=4096)  # beside a few scalars
    assert peak_memory(lambda: [x.add(1) for _ in range(3)]) == pytest.approx(3 * x.nbytes, abs=4096)


def test_fewer_tokens_hold_less_memory() -> None:
    model: nn.Module = FORMS["class-token"]()
    images = host_images(model, 8)
    dense = peak_memory(lambda: model(images))
    assert peak_memory(lambda: sieve(model, "papr(keep=0.5, significance=centre)")(images)) < dense
    assert peak_memory(lambda: sieve(model, "tome(r=5)")(images)) < dense
