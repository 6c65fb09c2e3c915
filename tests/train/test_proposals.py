"""Learned proposals: losses that rank, targets that turn with their pictures, and a recipe that the host takes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from tests.train.test_healing import quiet, same, tiny
from tokensieve import Recipe, sieve
from tokensieve.errors import InputError, RecipeError
from tokensieve.measure import macs
from tokensieve.train.proposals import (
    LOSSES,
    NAME,
    ProposalSettings,
    listwise,
    normal_scores,
    pairwise,
    prepare,
    regression,
    train_proposal,
)
from tokensieve.zoo import create
from tokensieve.zoo.nano_proposal import NanoProposal

IMAGES = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NORMS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
QUICK = ProposalSettings(epochs=2, batch_size=4, validations=2, precision="fp32", target="attention")


def test_normal_scores_are_of_ranks_alone():
    maps = torch.tensor([[3.0, -1.0, 100.0, 0.5]])
    scores = normal_scores(maps)
    torch.testing.assert_close(scores, normal_scores(maps.exp()))
    assert scores.argsort(1).tolist() == maps.argsort(1).tolist()
    assert float(scores.sum()) == pytest.approx(0, abs=1e-6)
    expected = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([1, 3, 5, 7]) / 8)
    torch.testing.assert_close(scores.sort(1).values[0], expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_least_where_the_order_is_right(loss):
    torch.manual_seed(0)
    wanted = torch.randn(5, 40)
    right = normal_scores(wanted)
    torch.manual_seed(1)
    best = loss(right, wanted)
    for other in (-right, torch.zeros_like(right), right[:, torch.randperm(40)]):
        torch.manual_seed(1)
        assert loss(other, wanted) > best
    scores = torch.zeros(5, 40, requires_grad=True)
    loss(scores, wanted).backward()
    assert ((-scores.grad * (right - right.mean(1, keepdim=True))).sum(1) > 0).all(), "down is towards the order"


def test_losses_in_float64():
    torch.manual_seed(0)
    scores, wanted = torch.randn(3, 9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    target = normal_scores(wanted).double()
    expected = sum((scores[b, p] - scores[b].mean() - target[b, p]) ** 2 for b in range(3) for p in range(9)) / 27
    torch.testing.assert_close(regression(scores, wanted), expected, rtol=1e-6, atol=0)
    expected = sum(
        -(target[b].exp() / target[b].exp().sum() * (scores[b] - scores[b].exp().sum().log())).sum() for b in range(3)
    )
    torch.testing.assert_close(listwise(scores, wanted), expected / 3, rtol=1e-6, atol=0)
    torch.manual_seed(7)
    found = pairwise(scores, wanted)
    torch.manual_seed(7)
    total = weight = 0.0
    for _ in range(8):
        other = torch.randperm(9)
        for b in range(3):
            for i, j in enumerate(other.tolist()):
                more = float(target[b, i] - target[b, j])
                if more:
                    sign = 1 if more > 0 else -1
                    lost = torch.log1p((-sign * (scores[b, i] - scores[b, j])).exp())
                    total, weight = total + abs(more) * float(lost), weight + abs(more)
    assert float(found) == pytest.approx(total / weight, rel=1e-5)


def test_a_mirrored_picture_comes_with_its_mirrored_map(tmp_path):
    _, task = prepare(tiny(), IMAGES, tmp_path, QUICK, **NORMS)
    seen = set()
    for number in range(4):
        images, maps = task.batches(4, 4, 0)[number]
        for image, told in zip(images, maps, strict=True):
            for mirrored in (False, True):
                shown = image.flip(2) if mirrored else image
                rows = [row for row in range(len(task.known)) if torch.equal(task.known[row][0], shown)]
                if rows:
                    own = task.targets[rows[0]].view(4, 4)
                    assert torch.equal(told.view(4, 4), own.flip(1) if mirrored else own)
                    seen.add(mirrored)
    assert seen == {False, True}


@pytest.mark.versions
def test_it_learns_the_order_and_writes_a_recipe_that_uses_it(tmp_path):
    model = tiny()
    pictures = IMAGES.clone()
    found = train_proposal(model, pictures, tmp_path, replace(QUICK, epochs=20, lr=1e-2), keep=0.6, **NORMS)
    assert found.log[-1]["loss"] < found.log[0]["loss"]
    (method,) = Recipe.load(found.recipe)
    assert (method.keep, method.proposal, method.proposal_size) == (0.6, NAME, (64, 64))
    fast = sieve(model, Recipe.load(found.recipe), **NORMS)
    network = NanoProposal()
    network.load_state_dict(load_file(found.weights))
    network.eval()
    shown = torch.nn.functional.interpolate(pictures[:5], (64, 64), mode="bilinear", align_corners=True)
    mean, std = (torch.tensor(network.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    maps = network.features((shown * 0.5 + 0.5 - mean) / std)[:, 0]
    torch.testing.assert_close(fast.trace(pictures[:5]).significance, maps, rtol=1e-3, atol=1e-3)


def test_killed_it_ends_with_the_same_weights(tmp_path):
    whole = train_proposal(tiny(), IMAGES, tmp_path / "whole", QUICK, **NORMS)

    class Killed(BaseException):
        pass

    def report(row):
        raise Killed

    with pytest.raises(Killed):
        train_proposal(tiny(), IMAGES, tmp_path / "parts", replace(QUICK), report=report, **NORMS)
    parts = train_proposal(tiny(), IMAGES, tmp_path / "parts", QUICK, report=quiet, **NORMS)
    same(load_file(whole.weights), load_file(parts.weights))


def test_it_costs_one_percent_of_a_tiny_host():
    model = create(NAME, pretrained=False).model
    assert macs(model, (3, 224, 224)) == pytest.approx(9_439_360, rel=0.01)
    assert model.features(torch.zeros(1, 3, 224, 224)).shape == (1, 1, 14, 14)


def test_what_cannot_be_taught_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="loss must be one of regression, pairwise, listwise, not 'pairs'"):
        ProposalSettings(loss="pairs")
    with pytest.raises(RecipeError, match="target must be one of"):
        ProposalSettings(target="cam")
    with pytest.raises(InputError, match="too few to train on"):
        train_proposal(tiny(), TensorDataset(IMAGES[:5]), tmp_path, QUICK, **NORMS)
