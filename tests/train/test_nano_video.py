"""The training of the bundled models that read video: it learns, and leaves what `create` can load."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tokensieve.errors import RecipeError
from tokensieve.train import loop
from tokensieve.train.loop import read_log
from tokensieve.train.nano import UNSURE, cell_loss
from tokensieve.train.nano_video import WRAPPED, NanoVideoRanker, classes_of, prepare
from tokensieve.zoo import BUNDLED, create


@pytest.mark.parametrize("name", WRAPPED)
def test_they_answer_for_the_clip_and_for_every_patch(name: str) -> None:
    answers = WRAPPED[name]().eval()(torch.randn(2, 8, 3, 64, 64))
    assert answers.clips.shape == (2, 80)
    assert answers.digits.shape == (2, 256, 11)
    assert answers.directions.shape == (2, 256, 9)
    assert (answers.price > 0) == (name == "nano_video_proposal")


@torch.no_grad()
def test_a_single_moment_is_read_at_its_place_in_time() -> None:
    wrapper = WRAPPED["nano_video"]().eval()
    clips = torch.randn(1, 8, 3, 64, 64)
    embedded = wrapper.model.videomae.embeddings(clips, None)
    for moment in (0, 3):
        answers = wrapper(clips[:, 2 * moment : 2 * moment + 2], moment)
        own = embedded[:, 64 * moment : 64 * moment + 64]
        expected = wrapper.patches(wrapper.model.videomae.encoder(own).last_hidden_state)
        torch.testing.assert_close(torch.cat([answers.digits, answers.directions], -1), expected, rtol=1e-4, atol=1e-5)


def test_the_transformer_sees_single_moments_first_then_clips() -> None:
    _, task = prepare("nano_video", scenes=64, validation_scenes=4)
    batches = task.batches(2, 8, 0)
    seen = [(batches[number][0].shape[1], batches[number][3]) for number in range(8)]
    assert seen == [(2, 0), (2, 1), (2, 2), (2, 3), (2, 0), (2, 1), (8, 0), (8, 0)]


@torch.no_grad()
def test_a_cell_of_the_proposal_shares_one_answer_among_digits_and_directions() -> None:
    wrapper = NanoVideoRanker().eval()
    clips = torch.randn(1, 8, 3, 64, 64)
    answers = wrapper(clips)
    cells = wrapper.model.head.fc(wrapper.model.features(clips.transpose(1, 2)).flatten(2).transpose(1, 2))
    powers = torch.cat([cells, torch.zeros(1, 256, 1)], -1).double().exp()
    powers = powers / powers.sum(-1, keepdim=True)
    for digit in (0, 7):
        expected = powers[..., 8 * digit : 8 * digit + 8].sum(-1)
        torch.testing.assert_close(answers.digits[..., digit].double().exp(), expected, rtol=1e-4, atol=1e-6)
    for direction in (0, 5):
        expected = powers[..., direction:80:8].sum(-1)
        torch.testing.assert_close(answers.directions[..., direction].double().exp(), expected, rtol=1e-4, atol=1e-6)
    for parts in (answers.digits, answers.directions):
        torch.testing.assert_close(parts.exp().sum(-1), torch.ones(1, 256))


def test_cells_are_labelled_by_how_much_of_the_digit_they_show() -> None:
    logits = torch.zeros(1, 3, 9, requires_grad=True)
    cell_loss(logits, torch.tensor([3]), torch.tensor([[0.5, 0.1, 0.0]])).backward()
    assert logits.grad is not None
    pushed = logits.grad[0].argmin(-1)
    assert pushed[0] == 3
    assert (logits.grad[0, 1] == 0).all(), "a cell that is neither is left alone"
    assert pushed[2] == 8
    assert UNSURE == -100


def test_the_loss_asks_for_the_class_the_digit_and_the_direction() -> None:
    _, task = prepare("nano_video_proposal", scenes=64, validation_scenes=4)

    class Sure(nn.Module):
        """Says one class of clips, and nothing of patches."""

        def __init__(self, label: int) -> None:
            super().__init__()
            self.label = label

        def forward(self, clips: torch.Tensor, moment: int) -> Any:
            answers = task.module(clips, moment)
            said = nn.functional.one_hot(torch.full((len(clips),), self.label), 80) * 50.0
            return answers._replace(clips=said, price=torch.zeros(()))

    clips, _, masks, moment = task.batches(4, 1, 0)[0]
    labels = torch.full((4,), 8 * 5 + 2)
    task.module.eval()
    losses = {}
    with torch.no_grad():
        for label in (42, 8 * 5 + 3, 8 * 6 + 2, 8 * 6 + 3):
            losses[label] = task.loss(Sure(label), (clips, labels, masks, moment)).value - losses.get(42, 0)
    patches, no_direction, no_digit, neither = losses.values()
    assert patches > 0
    # The class costs 50; a wrong direction as much, less what its ten classes have together, and so the digit.
    ten, eight = math.log(10), math.log(8)
    assert no_direction == pytest.approx(100 - ten, abs=1e-3)
    assert no_digit == pytest.approx(100 - eight, abs=1e-3)
    assert neither == pytest.approx(150 - ten - eight, abs=1e-3)


@pytest.mark.slow
def test_it_learns_and_its_weights_load_into_the_model(tmp_path: Path) -> None:
    config, task = prepare("nano_video_proposal", scenes=16 * 24, validation_scenes=20, workers=0)
    config = replace(config, batch_size=16, validate_every=6, warmup=4)
    file = loop.train(config, task, tmp_path, report=lambda row: None)
    rows = read_log(tmp_path, "nano_video_proposal")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"train_top1", "validation_top1", "validation_digits", "validation_directions"} <= rows[0].keys()
    state = load_file(file)
    assert not any(key.startswith(("patches", "model.")) for key in state)
    model = create("nano_video_proposal", weights=file).model
    assert torch.equal(model.head.fc.weight, state["head.fc.weight"].float())
    assert task._validation is not None
    assert classes_of(task.module, task._validation).shape == (20,)


@pytest.mark.parametrize("name", sorted(set(WRAPPED) & set(BUNDLED)))
def test_by_default_a_bundled_model_is_trained_as_its_log_says(name: str) -> None:
    config, task = prepare(name)
    with (Path(__file__).parents[2] / "results" / f"{name}.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert config.steps(task.samples) == int(last["step"])
    assert config.steps(task.samples) * config.batch_size == int(last["images"])


def test_an_unknown_bundled_model_is_refused() -> None:
    with pytest.raises(RecipeError, match="no bundled video model 'nano_vit', only nano_video, nano_video_proposal"):
        prepare("nano_vit")
