"""Views of a video averaged, beside the sums written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tokensieve.data import Batch
from tokensieve.errors import InputError
from tokensieve.measure import fidelity
from tokensieve.measure.outputs import class_count
from tokensieve.measure.views import AveragedViews


class Sides(nn.Module):
    """Scores of a clip (N, T, C, H, W): linear in its mean colours."""

    def __init__(self, classes: int = 5, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = classes
        self.head = nn.Linear(3, classes or 4)
        self.head.weight.data *= 9 * scale
        self.seen: list[int] = []

    def forward(self, clips: Tensor) -> Tensor:
        self.seen.append(len(clips))
        return self.head(clips.mean((1, 3, 4)))


def videos(count: int = 3, views: int = 6) -> Tensor:
    return torch.randn(count, views, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_probabilities_of_the_views_are_averaged_a_few_clips_at_a_time() -> None:
    model, some = Sides(), videos()
    averaged = AveragedViews(model, 6, at_once=4)(some)
    assert model.seen == [4, 4, 4, 4, 2]
    for video, row in zip(some, averaged, strict=True):
        expected = torch.stack([model(view[None])[0].softmax(0) for view in video]).mean(0)
        torch.testing.assert_close(row.softmax(0), expected)


@torch.no_grad()
def test_embeddings_are_averaged_themselves() -> None:
    model, some = Sides(classes=0), videos()
    expected = torch.stack([model(video).mean(0) for video in some])
    torch.testing.assert_close(AveragedViews(model, 6)(some), expected)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="expected \\(batch, 5 views"):
        AveragedViews(Sides(), 5)(videos())
    tokens = nn.Flatten(2)
    with pytest.raises(InputError, match="one row per clip"):
        AveragedViews(tokens, 6)(videos())


def test_fidelity_compares_whole_videos_and_hands_out_each_batch() -> None:
    dense, fast = Sides(), Sides(scale=0.5)
    batches = [Batch(some, torch.arange(3), ("a", "b", "c")) for some in videos(6).split(3)]
    told = []
    pair = (AveragedViews(model, 6) for model in (fast, dense))
    result = fidelity(*pair, batches, k=1, each=lambda *what: told.append(what))
    assert result.count == 6
    assert [batch is each for batch, (each, _, _) in zip(batches, told, strict=True)] == [True, True]
    for batch, (_, ours, theirs) in zip(batches, told, strict=True):
        assert torch.equal(ours, AveragedViews(dense, 6)(batch.images).detach())
        assert ours.shape == theirs.shape == (3, 5)


def test_how_many_classes_a_model_scores() -> None:
    from torchvision.models import convnext_tiny
    from torchvision.models.video import swin3d_t

    assert class_count(Sides()) == 5
    assert class_count(Sides(classes=0)) == 0
    with torch.device("meta"):
        assert class_count(convnext_tiny(num_classes=7)) == 7
        assert class_count(swin3d_t(num_classes=8)) == 8
    assert class_count(nn.Identity()) == 0
