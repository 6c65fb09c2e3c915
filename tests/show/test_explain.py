"""What is said of a picture is what the two models say of it."""

import json

import pytest
import timm
import torch

from tokensieve import sieve
from tokensieve.errors import InputError
from tokensieve.show.explain import Answer, Verdict, class_names, compare_answers, dense_output, explain
from tokensieve.show.pictures import HEIGHT
from tokensieve.show.tables import percent

MEAN = STD = (0.5, 0.5, 0.5)
PAPR = "papr(keep=0.4, proposal=test_resnet)"


def model(**words):
    return timm.create_model("test_vit", **words).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 160, 160)


@pytest.mark.parametrize(
    ("recipe", "captions"),
    [
        ("", ["Input"]),
        ("papr(keep=1)", ["Input"]),
        ("tome(r=8)", ["Input", "Merged patches"]),
        ("random(keep=0.5)", ["Input", "Significance map", "Kept patches"]),
        (PAPR, ["Input", "Significance map", "Kept patches"]),
        (PAPR + " + tome(r=2)", ["Input", "Significance map", "Kept patches", "Merged patches"]),
    ],
)
def test_panels_are_those_that_the_recipe_has(images, recipe, captions):
    dense = model()
    fast = sieve(dense, recipe, mean=MEAN, std=STD, pretrained=False)
    first, *_ = explained = explain(fast, dense, images, MEAN, STD)
    assert len(explained) == 3
    assert [panel.caption for panel in first.panels] == captions
    assert all(panel.image.size == (HEIGHT, HEIGHT) and panel.alt for panel in first.panels)
    assert first.kept == (fast.trace(images).kept.shape[1] if "Kept patches" in captions else None)
    assert list(first.tokens_per_block) == fast.trace(images).tokens_per_block


def test_answers_are_the_models_own(images):
    dense = model(num_classes=5)
    dense.head.weight.data.mul_(50)
    fast = sieve(dense, "random(keep=0.2)", mean=MEAN, std=STD)
    explained = explain(fast, dense, images, MEAN, STD, list("abcde"))
    with torch.no_grad():
        theirs, ours = dense(images).softmax(-1), fast(images).softmax(-1)
    for i, one in enumerate(explained):
        verdict = one.verdict
        assert verdict.dense.index == int(theirs[i].argmax())
        assert verdict.sieved.index == int(ours[i].argmax())
        assert verdict.dense.probability == pytest.approx(float(theirs[i].max()), abs=1e-5)
        assert verdict.confidence == pytest.approx(float(ours[i, verdict.dense.index]), abs=1e-5)
        assert verdict.dense.name == "abcde"[verdict.dense.index]
        record = json.loads(json.dumps(one.record()))
        assert record["same"] == verdict.same == (verdict.dense.index == verdict.sieved.index)
        assert record["sieved"] == vars(verdict.sieved)
        assert [fact.value for fact in one.facts][:2] == [str(verdict.dense), str(verdict.sieved)]
    assert len({one.verdict.dense.probability for one in explained}) == 3


def test_facts_say_whether_the_answer_stays():
    probabilities = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    same, other = compare_answers(probabilities, torch.tensor([[0.0, 3.0], [0.0, 3.0]]), ["cat", "dog"])
    assert (same.same, other.same) == (True, False)
    assert str(same.dense) == "dog 90\u00a0%"
    assert other.confidence == pytest.approx(1 / (1 + torch.e**3), abs=1e-5)


def test_another_answer_is_marked(images):
    dense = model(num_classes=2)
    with torch.no_grad():
        score = dense(images)
    dense.head.bias.data -= score.mean(0)
    dense.head.bias.data[0] += 1e-6
    fast = sieve(dense, "random(keep=0.05)", mean=MEAN, std=STD)
    for one in explain(fast, dense, torch.randn(12, 3, 160, 160), MEAN, STD):
        assert [fact.alert for fact in one.facts] == ([False, False] if one.verdict.same else [False, True, False])


def test_hosts_without_a_classifier_are_compared_by_cosine(images):
    dense = model(num_classes=0)
    for recipe, exact in (("", True), ("random(keep=0.3)", False)):
        one = explain(sieve(dense, recipe, mean=MEAN, std=STD), dense, images, MEAN, STD)[0]
        assert one.verdict is None
        assert (one.cosine == pytest.approx(1, abs=1e-6)) == exact
        assert one.facts[0].value == f"{one.cosine:.3f}"
        assert one.record()["dense"] is None


def test_token_outputs_of_two_lengths_are_not_compared(images):
    dense = model(num_classes=0, global_pool="")
    one = explain(sieve(dense, "random(keep=0.3)", mean=MEAN, std=STD), dense, images, MEAN, STD)[0]
    assert (one.verdict, one.cosine, one.facts) == (None, None, ())
    assert len(one.panels) == 3


def test_training_mode_is_given_back(images):
    dense = model(drop_rate=0.9).train()
    fast = sieve(dense, "tome(r=4)", mean=MEAN, std=STD).train()
    first, again = (explain(fast, dense, images, MEAN, STD)[0].record() for _ in range(2))
    assert first == again, "no dropout"
    assert dense.training
    assert fast.training


def test_other_precisions_and_rectangles():
    dense = model(img_size=(96, 128)).to(torch.bfloat16)
    images = torch.randn(1, 3, 96, 128)
    (one,) = explain(
        sieve(dense, "random(keep=0.5) + tome(r=2)", mean=MEAN, std=STD), dense, images, MEAN, STD, height=48
    )
    assert {panel.image.size for panel in one.panels} == {(64, 48)}


def test_nan_is_a_sentence(images):
    dense = model()
    dense.head.bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        dense_output(dense, images)


class TestClassNames:
    def test_of_imagenet_where_the_count_fits(self):
        names = class_names(model())
        assert len(names) == 1000
        assert (names[0], names[281], names[999]) == ("tench", "tabby", "toilet tissue")

    def test_are_not_guessed(self):
        assert class_names(model(num_classes=10)) is None
        assert class_names(model(num_classes=0)) is None
        assert Answer(7, None, 0.5).label == "class 7"

    def test_come_from_a_file(self, tmp_path):
        file = tmp_path / "names.txt"
        file.write_text("cat\ndog\ncow\n")
        assert class_names(model(num_classes=3), file) == ["cat", "dog", "cow"]
        with pytest.raises(InputError, match=r"names 3 classes, but not class 3 of the model's 4"):
            class_names(model(num_classes=4), file)
        with pytest.raises(InputError, match="has no classifier"):
            class_names(model(num_classes=0), file)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0"),
        (1e-5, "<0.1"),
        (0.004, "0.4"),
        (0.0994, "9.9"),
        (0.0996, "10"),
        (0.834, "83"),
        (1, "100"),
        (142.87, "14287"),
    ],
)
def test_percent(share, text):
    assert percent(share) == f"{text}\u00a0%"


def test_records_are_plain_json():
    verdict = Verdict(Answer(1, "cat", 0.5), Answer(2, None, 0.25), 0.125)
    assert json.loads(json.dumps(verdict.record())) == {
        "dense": {"index": 1, "name": "cat", "probability": 0.5},
        "sieved": {"index": 2, "name": None, "probability": 0.25},
        "confidence": 0.125,
        "same": False,
    }
