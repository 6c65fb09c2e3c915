"""Views: the same whenever and wherever they are made, and each picture in all of them."""

import pytest
import torch
from torch.utils.data import Dataset

from tokensieve.errors import InputError, RecipeError
from tokensieve.train.task import Order
from tokensieve.train.views import ViewBatches, Views, every_batch, fingerprint

COUNT, VIEWS = 7, 4


class Pictures(Dataset):
    """Pictures of noise; `broken` ones cannot be read."""

    def __init__(self, count=COUNT, broken=()):
        self.images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        self.broken = broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        if row in self.broken:
            raise InputError(f"picture {row} is broken.")
        return self.images[row], -1


def test_a_picture_is_seen_whole_mirrored_and_cropped():
    pictures, views = Pictures(), Views(Pictures(), VIEWS)
    assert len(views) == COUNT * VIEWS
    whole, mirrored, crop, mixture = (views[5 * VIEWS + view] for view in range(VIEWS))
    assert torch.equal(whole, pictures.images[5])
    assert torch.equal(mirrored, whole.flip(2))
    assert crop.shape == mixture.shape == whole.shape
    assert not torch.equal(crop, whole)


def test_a_crop_depends_on_seed_picture_and_view_alone():
    views = Views(Pictures(), VIEWS, seed=3)
    torch.manual_seed(1)
    first = [views[item] for item in range(len(views))]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = [views[item] for item in reversed(range(len(views)))][::-1]
    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), before), "the process's own chance is left alone"
    crops = [first[row * VIEWS + 2] for row in range(COUNT)]
    assert not any(torch.equal(crops[0], other) for other in crops[1:])
    assert not torch.equal(Views(Pictures(), VIEWS, seed=4)[2], first[2])


def test_every_other_crop_is_mixed_with_another_picture():
    """Of a picture that is all ones and others that are zeros, the mixture's level is the weight of the first."""
    pictures = Pictures()
    pictures.images[0], pictures.images[1:] = 1.0, 0.0
    levels = [float(Views(pictures, VIEWS, seed=seed)[3].mean()) for seed in range(30)]
    assert all(0.5 - 1e-5 <= level <= 1 + 1e-5 for level in levels)
    assert len({round(level, 3) for level in levels if level < 1}) > 10
    assert all(float(Views(pictures, VIEWS, mixed=False, seed=seed)[3].mean()) > 0.999 for seed in range(5))


def test_batches_bring_every_picture_once_an_epoch_in_its_next_view_with_its_answer():
    views = Views(Pictures(), VIEWS)
    taught = torch.arange(COUNT * VIEWS).view(COUNT, VIEWS, 1).half()
    size = 3
    batches = ViewBatches(views, taught, size, COUNT * VIEWS // size, seed=5)
    order, seen = Order(COUNT, 5), []
    for number in range(len(batches)):
        images, answers = batches[number]
        assert answers.dtype == torch.float32
        for i in range(size):
            item = int(answers[i])
            assert torch.equal(images[i], views[item])
            assert item // VIEWS == order[number * size + i]
            seen.append(item)
    epochs = [seen[start : start + COUNT] for start in range(0, len(seen) - COUNT + 1, COUNT)]
    assert all(sorted(item // VIEWS for item in epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(seen)) == len(seen), "over so many epochs no view comes twice"


def test_one_view_of_all_pictures_in_order():
    views = Views(Pictures(), VIEWS)
    for view in range(VIEWS):
        got = torch.cat([images for (images,) in views.of(view, 3)])
        assert torch.equal(got, torch.stack([views[row * VIEWS + view] for row in range(COUNT)]))


def test_the_fingerprint_is_of_the_pixels():
    one, other = Pictures(), Pictures()
    assert fingerprint(one) == fingerprint(other)
    other.images[6, 0, 0, 0] += 1
    assert fingerprint(one) != fingerprint(other)


def test_what_cannot_be_read_is_named():
    with pytest.raises(InputError, match=r"picture 2 is broken.*repair or remove it"):
        list(every_batch(Pictures(broken=(2,)), 3))
    with pytest.raises(InputError, match="2 of 7 photographs cannot be read"):
        fingerprint(Pictures(broken=(2, 5)))
    with pytest.raises(RecipeError, match="at least 1 view"):
        Views(Pictures(), 0)
