"""A teacher: frozen, asked once about each view of each sample, its answers kept."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tokensieve.errors import InputError
from tokensieve.train.teacher import Teacher, log_probabilities, remember


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout(0.5))


def views(log=None):
    """Seven samples in batches of three, each as it is and mirrored."""
    images = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    for batch in images.split(3):
        if log is not None:
            log.append(len(batch))
        yield batch, batch.flip(3)


def test_answers_are_found_by_sample_and_view(model):
    answers = remember(Teacher(model, "small"), views(), "seven images")
    images = torch.cat([batch for batch, _ in views()])
    assert answers.shape == (7, 2, 5)
    for view, seen in enumerate((images, images.flip(3))):
        with torch.no_grad():
            torch.testing.assert_close(answers[:, view], log_probabilities(model.eval()(seen)))


def test_it_stays_as_it_is_while_its_model_is_trained_and_the_model_stays_trainable(model):
    teacher = Teacher(model.train(), "small")
    before = teacher.predict(torch.ones(1, 3, 2, 2))
    with torch.no_grad():
        model[1].weight += 1
    assert torch.equal(teacher.predict(torch.ones(1, 3, 2, 2)), before)
    assert not before.requires_grad
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_may_answer_with_something_else_than_log_probabilities(model):
    answers = remember(Teacher(model, "small", answer=lambda output: output[:, :2]), views(), "seven images")
    assert answers.shape == (7, 2, 2)


def test_with_a_file_it_is_asked_once(model, tmp_path):
    log = []
    file = tmp_path / "new" / "answers.safetensors"
    first = remember(Teacher(model, "small"), views(log), "seven images", file)
    assert log == [3, 3, 1]
    second = remember(Teacher(model, "small"), views(log), "seven images", file)
    assert log == [3, 3, 1]
    assert torch.equal(first, second)
    assert torch.equal(first, remember(Teacher(model, "small"), views(), "seven images"))


@pytest.mark.parametrize("other", ["teacher", "name", "images", "file", "cut"])
def test_other_answers_are_refused_and_stay(model, tmp_path, other):
    file = tmp_path / "answers.safetensors"
    remember(Teacher(model, "small"), views(), "seven images", file)
    if other == "teacher":
        with torch.no_grad():
            model[1].bias[0] += 1
    if other == "file":
        save_file(load_file(file), file)
    if other == "cut":
        file.write_bytes(file.read_bytes()[:30])
    before = file.read_bytes()
    about = "six images" if other == "images" else "seven images"
    with pytest.raises(InputError, match="the targets of another teacher, or of other photographs: delete it"):
        remember(Teacher(model, "other" if other == "name" else "small"), views(), about, file)
    assert file.read_bytes() == before
