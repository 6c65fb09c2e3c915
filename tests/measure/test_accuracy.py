from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tokensieve.data import Preprocessing, image_set, load_batches
from tokensieve.errors import InputError, RecipeError
from tokensieve.measure.accuracy import TopK, accuracy
from tokensieve.measure.scores import rank_of
from tokensieve.zoo import create


class Scores(nn.Module):
    """Gives its input back: the 'images' are the scores themselves."""

    def forward(self, images):
        return images


def test_hand_count():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    result = accuracy(Scores(), [(scores[:3], torch.tensor([1, 1, 0])), (scores[3:], torch.tensor([2]))], k=(1, 2, 3))
    assert result.top == {1: 50.0, 2: 75.0, 3: 100.0}
    assert (result.count, result.classes, result.failures) == (4, 3, ())


def test_ties_go_to_the_lower_class():
    scores = torch.zeros(3, 3)
    assert rank_of(scores, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert accuracy(Scores(), [(scores, torch.tensor([0, 1, 2]))], k=1).top[1] == pytest.approx(100 / 3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_top_k_is_that_of_a_stable_sort(data):
    classes = data.draw(st.integers(1, 7))
    rows = data.draw(st.lists(st.lists(st.integers(-2, 2), min_size=classes, max_size=classes), min_size=1, max_size=8))
    truth = data.draw(st.lists(st.integers(0, classes - 1), min_size=len(rows), max_size=len(rows)))
    k = data.draw(st.integers(1, classes))
    hits = sum(
        label in sorted(range(classes), key=lambda c, row=row: -row[c])[:k]
        for row, label in zip(rows, truth, strict=True)
    )
    result = accuracy(Scores(), [(torch.tensor(rows, dtype=torch.float32), torch.tensor(truth))], k=k)
    assert result.top[k] == pytest.approx(100 * hits / len(rows))


def test_torchmetrics_agrees():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(64, 10, generator=generator), torch.randint(10, (64,), generator=generator)
    result = accuracy(Scores(), zip(scores.split(10), truth.split(10), strict=True), k=(1, 3, 5))
    for k, percent in result.top.items():
        theirs = metrics.multiclass_accuracy(scores, truth, num_classes=10, average="micro", top_k=k)
        assert percent == pytest.approx(100 * float(theirs))


def test_modes_come_back_and_no_gradient_is_kept():
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.inner = nn.BatchNorm1d(3).eval(), nn.Linear(3, 3)

        def forward(self, images):
            seen.append(
                (self.training, self.inner.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
            )
            return self.inner(images)

    model = Probe()
    accuracy(model, [(torch.randn(2, 3), torch.tensor([0, 1]))], k=1)
    assert seen == [(False, False, False, False)]
    assert (model.training, model.inner.training, model.frozen.training) == (True, True, False)
    with pytest.raises(InputError):
        accuracy(model, [(torch.randn(2, 3), torch.tensor([-1, 1]))], k=1)
    assert model.training


def test_images_follow_the_model_or_the_request():
    seen = []

    class Half(nn.Linear):
        def forward(self, images):
            seen.append((images.dtype, images.device.type))
            return super().forward(images.to(self.weight.dtype))

    batches = [(torch.randn(2, 3), torch.tensor([0, 1]))]
    model = Half(3, 3).to(torch.bfloat16)
    accuracy(model, batches, k=1)
    accuracy(model, batches, k=1, dtype=torch.float64, device="cpu")
    assert seen == [(torch.bfloat16, "cpu"), (torch.float64, "cpu")]
    assert model.weight.dtype == torch.bfloat16


def test_model_output_with_logits():
    class Wrapped(Scores):
        def forward(self, images):
            return SimpleNamespace(logits=images)

    assert accuracy(Wrapped(), [(torch.eye(3), torch.arange(3))], k=1).top == {1: 100.0}


def embedder():
    model = Scores()
    model.num_classes = 0
    return model


class Hidden(Scores):
    def forward(self, images):
        return OrderedDict(last_hidden_state=images)


@pytest.mark.parametrize(
    ("model", "batches", "words"),
    [
        (Scores(), [(torch.eye(3), torch.tensor([0, -1, 1]))], "no labels; use fidelity"),
        (Scores(), [torch.eye(3)], "no labels; use fidelity"),
        (Scores(), [(torch.eye(3), torch.tensor([0, 1, 3]))], "Label 3 is beyond the 3 classes"),
        (Scores(), [(torch.full((1, 3), torch.nan), torch.tensor([0]))], "returns NaN"),
        (Scores(), [(torch.zeros(1, 4, 3), torch.tensor([0]))], r"shape \(1, 4, 3\)"),
        (Scores(), [{"image": 1}], "A batch must be"),
        (Scores(), [], "no images to measure on"),
        (embedder(), [(torch.eye(3), torch.arange(3))], "no classifier"),
        (Hidden(), [(torch.eye(3), torch.arange(3))], "OrderedDict"),
    ],
)
def test_what_cannot_be_scored_is_said(model, batches, words):
    with pytest.raises(InputError, match=words):
        accuracy(model, batches, k=1)


def test_k_within_the_classes():
    with pytest.raises(RecipeError, match="Top-5 makes no sense for a model with 3 classes"):
        accuracy(Scores(), [(torch.eye(3), torch.arange(3))])
    for k in (0, (1, -1), ()):
        with pytest.raises(RecipeError, match="at least 1"):
            TopK(k)


def test_failures_are_passed_on(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "b/2.png").write_text("hello")
    batches = load_batches(image_set(tmp_path, Preprocessing((2, 2), (0, 0, 0), (1, 1, 1))), 2)
    result = accuracy(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), batches, k=1)
    assert result.count == 2
    assert [failure.path for failure in result.failures] == [str(tmp_path / "b/2.png")]

    (tmp_path / "a/1.png").write_text("hello")
    (tmp_path / "b/1.png").write_text("hello")
    with pytest.raises(InputError, match=r"None of 3 pictures could be read; the first: .*1\.png is not a picture"):
        accuracy(nn.Flatten(), batches, k=1)


@pytest.mark.shared
def test_deit_tiny_on_imagenet_photographs(shared):
    model = create("deit_tiny_patch16_224", weights=shared / "weights" / "deit_tiny_patch16_224.safetensors").model
    photographs = image_set(
        shared / "data" / "imagenet_val_a",
        Preprocessing.papers(model),
        classes=shared / "data" / "imagenet_classes.json",
    )
    result = accuracy(model, load_batches(photographs, 25))
    assert (result.count, result.classes, result.failures) == (250, 1000, ())
    assert result.top[1] == pytest.approx(69.2, abs=0.4)
    assert result.top[5] > result.top[1]
