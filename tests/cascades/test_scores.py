"""How sure an answer is, beside plain sums."""

from __future__ import annotations

import pytest
import torch

from tests.reference import cascades as reference
from tokensieve.cascades.scores import read_again, sureness


@pytest.mark.parametrize("score", ["margin", "probability", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_those_of_plain_sums(score: str, dtype: torch.dtype) -> None:
    logits = (torch.randn(6, 5) * torch.tensor([0.0, 0.1, 1, 3, 30, 300])[:, None]).to(dtype)
    found = sureness(logits, score)
    expected = [reference.score_of(row.double(), score) for row in logits]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6


def test_infinite_scores_of_classes_are_sure() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert [float(sureness(logits, name)) for name in ("margin", "probability", "entropy")] == [1.0, 1.0, 1.0]


def test_which_are_read_again() -> None:
    scores = torch.tensor([0.0, 0.3, 0.7, 1.0, torch.nan])
    assert read_again(scores, 0.3).tolist() == [True, False, False, False, True]
    assert read_again(scores, 0.0).tolist() == [False, False, False, False, True]
    assert read_again(scores, 1.0).tolist() == [True] * 5
