"""The bundled hosts read scenes that no training saw, and keep reading them under the bundled proposal."""

import pytest
import torch

from tokensieve import sieve
from tokensieve.data import Scenes
from tokensieve.zoo import create

pytestmark = pytest.mark.slow

COUNT = 200


@pytest.fixture(scope="module")
def scenes():
    return Scenes("validation", COUNT, seed=5).batch(range(COUNT))


def right(model, images, labels):
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(
    ("name", "keep", "dense", "sieved"), [("nano_vit", 0.4, 90, 88), ("nano_convnext", 0.5, 90, 82)]
)
def test_they_read_digits(scenes, name, keep, dense, sieved):
    model, mean, std = create(name)
    images = (scenes.images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    words = {"mean": mean, "std": std}
    assert right(model, images, scenes.labels) >= dense
    assert right(sieve(model, f"papr(keep={keep}, proposal=nano_convnet)", **words), images, scenes.labels) >= sieved
    assert right(sieve(model, f"random(keep={keep})", **words), images, scenes.labels) < 75
