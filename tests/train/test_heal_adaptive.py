"""Healing of adaptive recipes: learnt under fixed numbers, with thresholds set for the healed host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from tests import contrasts
from tokensieve import HealSettings, Recipe, heal, sieve
from tokensieve.measure import macs
from tokensieve.train.heal_adaptive import ThresholdSetter

ADAPTIVE = "adaptive(bars=(1, 0.5, 0.45), drop=(0, 0, 0.2), source_guard=0.1) + readout()"
PLAIN = HealSettings(epochs=2, batch_size=8, views=2, holdout=0.2, validations=2, workers=0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return contrasts.classifier()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return contrasts.images(40)


def test_fixed_numbers_are_the_means_over_the_pictures(model: nn.Module, images: torch.Tensor) -> None:
    setter = ThresholdSetter(model, Recipe.parse(ADAPTIVE), TensorDataset(images), {})
    fast = sieve(model, ADAPTIVE)
    left = torch.tensor([[fast.trace(image[None]).lengths[block].item() for block in range(3)] for image in images])
    means = [64, *(left.double().mean(0) - 1).tolist()]
    guarded, readout = setter.fixed.methods
    assert str(readout) == "readout()"
    assert (guarded.source_guard, guarded.r[0], guarded.r[3], guarded.drop[:2]) == (0.1, 0, 0, (0, 0))
    assert guarded.drop[2] == round(means[3] * 0.2 / 0.8)
    assert abs(sum(guarded.r) + sum(guarded.drop) - (means[0] - means[3])) <= 1
    assert abs(guarded.r[1] - (means[1] - means[2])) <= 0.5
    trace = sieve(model, setter.fixed).trace(images[:1])
    assert all(abs(count - 1 - mean) <= 1 for count, mean in zip(trace.tokens_per_block[:3], means[1:], strict=True))


def test_thresholds_are_set_for_the_host_they_are_used_with(model: nn.Module, images: torch.Tensor) -> None:
    setter = ThresholdSetter(model, Recipe.parse(ADAPTIVE), TensorDataset(images), {})
    other = contrasts.classifier(seed=5)
    cost = macs(sieve(model, ADAPTIVE), images=images)
    ours, drifted = (macs(sieve(other, recipe), images=images) for recipe in (setter.recipe_for(other), ADAPTIVE))
    assert 0.98 * cost <= ours <= cost
    assert abs(drifted - cost) > abs(ours - cost)


@pytest.mark.slow
def test_healing_gives_an_adaptive_recipe_of_the_same_cost(
    model: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    healed = heal(model, ADAPTIVE, TensorDataset(images), tmp_path / "healed", PLAIN)
    recipe = Recipe.load(healed.recipe)
    assert [method.name for method in recipe] == ["adaptive", "readout"]
    assert recipe != Recipe.parse(ADAPTIVE)
    host = contrasts.classifier()
    host.load_state_dict(load_file(healed.weights))
    assert macs(sieve(host, recipe), images=images) == pytest.approx(
        macs(sieve(model, ADAPTIVE), images=images), rel=0.02
    )
