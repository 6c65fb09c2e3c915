import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tokensieve.data import Preprocessing, image_set, load_batches
from tokensieve.errors import InputError
from tokensieve.measure.accuracy import score
from tokensieve.measure.comparison import kl_divergence, nearest_neighbours
from tokensieve.measure.fidelity import fidelity
from tokensieve.measure.intervals import change_interval, mean_interval, share_interval
from tokensieve.measure.outputs import collect_outputs, evaluating, forward_batches


class Part(nn.Module):
    """Answers with one of the two halves of its 'images' (B, 2, ...)."""

    def __init__(self, half, classes=None):
        super().__init__()
        self.half = half
        if classes is not None:
            self.num_classes = classes

    def forward(self, images):
        return images[:, self.half]


def pairs(count=20, classes=6, seed=0):
    return torch.randn(count, 2, classes, generator=torch.Generator().manual_seed(seed))


def test_against_torch():
    both = pairs()
    ours, theirs = both[:, 0], both[:, 1]
    result = fidelity(Part(0), Part(1), both.split(7))
    share = float((ours.argmax(1) == theirs.argmax(1)).float().mean())
    assert result.count == 20
    assert result.agreement == pytest.approx(100 * share)
    assert result.agreement_stderr == pytest.approx(100 * math.sqrt(share * (1 - share) / 20))
    kl = F.kl_div(ours.double().log_softmax(1), theirs.double().softmax(1), reduction="batchmean")
    assert result.kl == pytest.approx(float(kl), rel=1e-12)
    assert result.agreement_interval == share_interval(round(20 * share), 20)
    each = F.kl_div(ours.double().log_softmax(1), theirs.double().softmax(1), reduction="none").sum(1)
    assert result.kl_interval == pytest.approx(mean_interval(each), rel=1e-9)
    assert result.kl_interval.low < result.kl < result.kl_interval.high
    assert result.cosine_interval.low < result.cosine < result.cosine_interval.high
    assert result.cosine == pytest.approx(float(F.cosine_similarity(ours, theirs).mean()), rel=1e-5)
    assert (result.accuracy, result.dense_accuracy, result.failures) == (None, None, ())


def test_a_model_agrees_with_itself():
    result = fidelity(Part(0), Part(0), [pairs()])
    assert (result.agreement, result.agreement_stderr, result.kl) == (100.0, 0.0, 0.0)
    assert result.cosine == pytest.approx(1.0)
    assert result.agreement_interval == pytest.approx((83.9, 100), abs=0.1), "twenty equal answers are no certainty"


def test_kl_is_dense_to_sieved_and_excluded_classes_add_nothing():
    dense = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    sieved = torch.tensor([[math.log(3), 0.0, 5.0]], dtype=torch.float64)
    q = sieved.softmax(1)[0]
    expected = sum(0.5 * (math.log(0.5) - math.log(float(q[i]))) for i in range(2))
    assert float(kl_divergence(dense, sieved)) == pytest.approx(expected)
    assert float(kl_divergence(sieved, dense)) == math.inf


def test_cached_dense_outputs_give_the_same():
    both = pairs()
    cached = collect_outputs(Part(1), both.split(6))
    assert torch.equal(cached, both[:, 1])
    assert fidelity(Part(0), cached, both.split(7)) == fidelity(Part(0), Part(1), both.split(7))


@pytest.mark.parametrize("rows", [13, 26])
def test_cached_outputs_of_other_images(rows):
    with pytest.raises(InputError, match=rf"dense outputs are of {rows} images, but the loader gives .*20"):
        fidelity(Part(0), torch.zeros(rows, 6), pairs().split(10))


def test_embeddings_have_a_cosine_alone():
    for fast, dense in ((Part(0, 0), Part(1, 0)), (Part(0, 0), pairs()[:, 1])):
        result = fidelity(fast, dense, [pairs()])
        assert (result.agreement, result.agreement_stderr, result.kl) == (None, None, None)
        assert -1 < result.cosine < 1


def test_sieved_embedder_is_known_by_its_host():
    fast = Part(0)
    fast.model = Part(1, 0)
    assert fidelity(fast, pairs()[:, 1], [pairs()]).agreement is None


def test_one_class_is_no_agreement():
    assert fidelity(Part(0), Part(1), [pairs(classes=1)]).agreement is None


def test_transformers_outputs():
    class Hidden(Part):
        def forward(self, images):
            return SimpleNamespace(last_hidden_state=images[:, self.half, None], pooler_output=images[:, self.half])

    class Logits(Part):
        def forward(self, images):
            return SimpleNamespace(logits=images[:, self.half])

    assert fidelity(Hidden(0), Hidden(1), [pairs()]).kl is None
    assert fidelity(Logits(0), Logits(1), [pairs()]) == fidelity(Part(0), Part(1), [pairs()])


def test_token_outputs():
    both = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    result = fidelity(Part(0), Part(1), [both])
    assert result.agreement is None
    assert result.cosine == pytest.approx(float(F.cosine_similarity(both[:, 0], both[:, 1], dim=-1).mean()), rel=1e-5)
    with pytest.raises(InputError, match=r"5 tokens and the dense one 9: .*restore"):
        fidelity(Part(0), torch.zeros(3, 9, 8), [both])


def test_shapes_that_do_not_match():
    with pytest.raises(InputError, match=r"\(20, 6\) and \(20, 7\) cannot be compared"):
        fidelity(Part(0), torch.zeros(20, 7), [pairs()])


def test_accuracy_of_both_in_the_same_pass():
    both, truth = pairs(), torch.arange(20) % 6
    result = fidelity(Part(0), Part(1), [(both, truth)], k=(1, 2))
    assert result.accuracy.top[1] == pytest.approx(100 * float((both[:, 0].argmax(1) == truth).float().mean()))
    assert result.dense_accuracy.top[1] == pytest.approx(100 * float((both[:, 1].argmax(1) == truth).float().mean()))
    first = result.accuracy.top[1] - result.dense_accuracy.top[1]
    assert result.changes[1] == pytest.approx(first)
    right = [both[:, half].argmax(1) == truth for half in (1, 0)]
    assert result.change_intervals[1] == change_interval(*right)
    assert result.accuracy.intervals[1] == share_interval(int(right[1].sum()), 20)
    with pytest.raises(InputError, match="no labels"):
        fidelity(Part(0), Part(1), [(both, torch.full((20,), -1))], k=1)


def test_labels_are_not_needed():
    both = pairs()
    assert fidelity(Part(0), Part(1), [(both, torch.full((20,), -1))]) == fidelity(Part(0), Part(1), [both])


@pytest.mark.parametrize(
    ("loader", "words"),
    [([], "no images"), ([pairs() * torch.nan], "returns NaN"), (["text"], "A batch must be")],
)
def test_what_cannot_be_compared_is_said(loader, words):
    with pytest.raises(InputError, match=words):
        fidelity(Part(0), Part(1), loader)


def test_rows_and_images_must_match():
    with pytest.raises(InputError, match=r"returns shape \(40, 3\) for 20 images"):
        list(forward_batches([nn.Flatten(0, 1)], [torch.zeros(20, 2, 3)]))


def test_failures_are_passed_on(tmp_path):
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("hello")
    batches = load_batches(image_set(tmp_path, Preprocessing((2, 2), (0, 0, 0), (1, 1, 1))), 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    result = fidelity(model, model, batches)
    assert (result.count, result.agreement) == (1, 100.0)
    assert [failure.path for failure in result.failures] == [str(tmp_path / "bad.png")]
    (tmp_path / "good.png").write_text("hello")
    with pytest.raises(InputError, match="None of 2 pictures could be read"):
        collect_outputs(model, batches)


def test_shared_modules_get_their_modes_back():
    inner = nn.Dropout(0.5)
    dense, fast = nn.Sequential(inner), nn.Sequential(inner)
    fast.eval()
    inner.train()
    with evaluating(fast, dense):
        assert not inner.training
        assert not dense.training
    assert (inner.training, dense.training, fast.training) == (True, True, False)


def test_gradients_may_be_switched_on_inside():
    class ByGradient(nn.Module):
        def forward(self, images):
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                return torch.autograd.grad((images**2).sum(), images)[0].flatten(1)

    (answers,) = forward_batches([ByGradient()], [torch.ones(2, 3)])
    assert torch.equal(answers.outputs[0], torch.full((2, 3), 2.0))


def maps(classes=4, count=9, size=(5, 6), seed=0):
    """Two outputs that are near each other, stacked as `Part` takes them."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, classes, *size, generator=generator)
    return torch.stack([dense + 0.3 * torch.randn(dense.shape, generator=generator), dense], dim=1)


def test_class_maps():
    both = maps()
    ours, theirs = both[:, 0], both[:, 1]
    result = fidelity(Part(0), Part(1), both.split(4))
    shares = (ours.argmax(1) == theirs.argmax(1)).double().mean((1, 2))
    kl = F.kl_div(ours.double().log_softmax(1), theirs.double().softmax(1), reduction="none").sum(1).mean((1, 2))
    assert result.kind == "class-map"
    assert result.agreement == pytest.approx(100 * float(shares.mean()))
    assert result.agreement_stderr == pytest.approx(100 * float(shares.std(correction=0)) / 3)
    assert result.agreement_interval == mean_interval(100 * shares)
    assert result.kl == result.divergence == pytest.approx(float(kl.mean()))
    assert result.kl_interval == result.divergence_interval == pytest.approx(mean_interval(kl))
    assert result.cosine == pytest.approx(float(F.cosine_similarity(ours, theirs).mean()), rel=1e-5)
    assert result.neighbours is None
    cached = fidelity(Part(0), collect_outputs(Part(1), both.split(2)), both.split(4))
    assert cached == result


def test_maps_that_agree_in_every_pixel_are_no_certainty():
    result = fidelity(Part(0), Part(0), [maps()])
    assert (result.agreement, result.kl) == (100.0, 0.0)
    assert result.agreement_interval == share_interval(9, 9)


def test_class_maps_are_scored_against_labels_of_pixels():
    both = maps()
    truth = both[:, 1].argmax(1)
    truth[:, 0] = 255
    batches = list(zip(both.split(4), truth.split(4), strict=True))
    result = fidelity(Part(0), Part(1), batches, labels=True)
    assert result.accuracy == score(Part(0), batches)
    assert result.dense_accuracy.figures == {"miou": 100.0, "pixel_accuracy": 100.0}
    assert result.changes == {name: value - 100 for name, value in result.accuracy.figures.items()}
    assert result.change_intervals["miou"].low < result.changes["miou"] < result.change_intervals["miou"].high < 0
    truth[:, 0] = -1
    ignoring = fidelity(Part(0), Part(1), batches, labels=True, ignore_index=int(truth[0, 1, 0]))
    assert ignoring.accuracy != result.accuracy


def test_label_of_ignored_pixels_must_be_named():
    both = maps()
    with pytest.raises(InputError, match="Label 255 is beyond the 4 classes"):
        fidelity(Part(0), Part(1), [(both, torch.full((9, 5, 6), 255))], labels=True, ignore_index=None)


def test_transformers_maps():
    class Depth(Part):
        def forward(self, images):
            return SimpleNamespace(predicted_depth=images[:, self.half, 0].exp())

    class Segmenter(Part):
        def forward(self, images):
            return SimpleNamespace(logits=images[:, self.half])

    both = maps()
    assert fidelity(Segmenter(0), Segmenter(1), [both]) == fidelity(Part(0), Part(1), [both])
    result = fidelity(Depth(0), Depth(1), both.split(4))
    ours, theirs = both[:, 0, 0].double().exp(), both[:, 1, 0].double().exp()
    assert (result.kind, result.kl) == ("depth", None)
    errors = (ours - theirs).abs().sum((1, 2)) / theirs.sum((1, 2))
    assert result.divergence == pytest.approx(float(errors.mean()), rel=1e-5)
    within = (torch.maximum(ours / theirs, theirs / ours) < 1.25).double().mean()
    assert result.agreement == pytest.approx(100 * float(within))
    named = fidelity(Part(0), Part(1), [both[:, :, 0].exp()], kind="depth")
    assert named.divergence == pytest.approx(result.divergence, rel=1e-5)
    assert fidelity(Part(0), Part(1), [both[:, :, 0].exp()]).kind == "tokens"


def test_embeddings_have_neighbours():
    both = maps(classes=8, size=(1, 1), count=30)[:, :, :, 0, 0]
    result = fidelity(Part(0, 0), Part(1, 0), both.split(7))
    same = nearest_neighbours(both[:, 0]) == nearest_neighbours(both[:, 1])
    assert (result.kind, result.agreement) == ("embeddings", None)
    assert result.neighbours == pytest.approx(100 * float(same.double().mean()))
    assert 0 < result.neighbours < 100
    assert result.neighbours_interval == share_interval(int(same.sum()), 30)


def test_channels_last_maps_are_read_by_channel():
    class Last(Part):
        output_fmt = "NHWC"

        def forward(self, images):
            return images[:, self.half].movedim(1, 3)

    assert fidelity(Last(0), Last(1), [maps()]) == fidelity(Part(0), Part(1), [maps()])
