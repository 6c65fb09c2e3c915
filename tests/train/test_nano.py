"""The bundled models' training: it learns, goes on exactly where it was stopped, and leaves what `create` can load."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokensieve.errors import InputError, RecipeError
from tokensieve.train import loop
from tokensieve.train.loop import read_log
from tokensieve.train.nano import (
    BACKGROUND,
    UNSURE,
    NanoHost,
    NanoProposal,
    NanoStages,
    normalise,
    patch_loss,
    prepare,
)
from tokensieve.zoo import create

pytestmark = pytest.mark.slow


class Stopped(Exception):
    pass


def quiet(row):
    pass


def train(folder, scenes=96, report=quiet, **settings):
    """A short training of the nano ConvNet on batches of 16 scenes, alike whenever it is begun."""
    config, task = prepare("nano_convnet", scenes=scenes, validation_scenes=20, workers=0)
    config = replace(config, **{"batch_size": 16, "validate_every": 2, "warmup": 2, **settings})
    return loop.train(config, task, folder, report=report)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    whole = load_file(train(tmp_path / "whole"))

    def stop(row):
        if row["step"] == 4:  # before this row's checkpoint is written
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "parts", report=stop)
    parts = load_file(train(tmp_path / "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    rows = read_log(tmp_path / "parts", "nano_convnet")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_log(tmp_path / "whole", "nano_convnet")]


def test_the_weights_are_small_and_load_into_the_model(tmp_path):
    file = train(tmp_path, scenes=16, validate_every=1)
    state = load_file(file)
    assert {value.dtype for value in state.values()} == {torch.float16, torch.int64}
    assert not any(key.startswith(("patches", "model.")) for key in state)
    model, mean, std = create("nano_convnet", weights=file)
    assert mean == std == (0.5, 0.5, 0.5)
    assert torch.equal(model.fc.weight, state["fc.weight"].float())


def test_another_plan_does_not_go_on_from_the_checkpoint(tmp_path):
    train(tmp_path, scenes=16, validate_every=1)
    with pytest.raises(InputError, match="another training"):
        train(tmp_path, scenes=32, validate_every=1)


def test_the_loss_falls(tmp_path):
    train(tmp_path, scenes=16 * 24, validate_every=6, warmup=4)
    losses = [row["loss"] for row in read_log(tmp_path, "nano_convnet")]
    assert losses[-1] < losses[0] - 0.3


def test_patches_are_labelled_by_how_much_of_the_digit_they_show():
    masks = torch.zeros(1, 112, 112, dtype=torch.bool)
    masks[0, :8, :8] = True  # patch 0 wholly, patch 1 a little, the rest not at all
    masks[0, :8, 8] = masks[0, 0, 9] = False
    masks[0, :4, 8] = True  # 4 of 64 pixels
    logits = torch.zeros(1, 196, 11, requires_grad=True)
    patch_loss(logits, torch.tensor([3]), masks).backward()
    pushed = logits.grad[0].argmin(-1)  # the label's logit alone is pushed up
    assert pushed[0] == 3
    assert (logits.grad[0, 1] == 0).all(), "a patch that is neither is left alone"
    assert (pushed[2:] == BACKGROUND).all()
    weight = logits.grad[0, 0].abs().sum() / logits.grad[0, 2].abs().sum()
    assert weight == pytest.approx(1 / 0.15, rel=1e-4)
    assert UNSURE == -100


@pytest.mark.parametrize(("wrapper", "cells"), [(NanoHost, 196), (NanoProposal, 196), (NanoStages, 49)])
def test_all_answer_for_the_image_and_for_every_patch(wrapper, cells):
    answers, patches, price = wrapper().eval()(normalise(torch.rand(2, 3, 112, 112)))
    assert answers.shape == (2, 10)
    assert patches.shape == (2, cells, 11)
    assert (price > 0) == (wrapper is NanoProposal)


@pytest.mark.parametrize("name", ["nano_convnet", "nano_vit", "nano_convnext"])
def test_by_default_a_bundled_model_is_trained_as_its_log_says(name):
    config, task = prepare(name)
    with (Path(__file__).parents[2] / "results" / f"{name}.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert config.steps(task.samples) == int(last["step"])
    assert config.steps(task.samples) * config.batch_size == int(last["images"])


def test_an_unknown_bundled_model_is_refused():
    with pytest.raises(RecipeError, match="no bundled model 'nano_vitt', only nano_convnet, nano_vit, nano_convnext"):
        prepare("nano_vitt")
