"""The losses of segmenters against slow ones, and whom their gradients reach."""

from __future__ import annotations

import pytest
import torch

from tests.reference import segmentation_loss as slow
from tokensieve.segmentation import AtmPrediction
from tokensieve.train.segmentation_loss import atm_loss, losses, pixel_loss

VOID = 255


def made(choices: int, classes: int = 4, seed: int = 0) -> tuple[AtmPrediction, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 2, VOID])[torch.randint(3, (2, 7, 5), generator=generator)].to(torch.uint8)
    labels[1, :3] = 3
    prediction = AtmPrediction(
        torch.randn(2, classes, choices, generator=generator, dtype=torch.float64),
        2 * torch.randn(2, classes, 3, 2, generator=generator, dtype=torch.float64),
    )
    return prediction, labels


@pytest.mark.parametrize("choices", [2, 5], ids=["present or absent", "any class or none"])
def test_an_atm_heads_losses_are_the_slow_ones(choices: int) -> None:
    prediction, labels = made(choices)
    expected = [
        slow.presence(prediction.classes, labels),
        slow.focal(prediction.masks, labels),
        slow.dice(prediction.masks, labels),
    ]
    torch.testing.assert_close(torch.stack(atm_loss(prediction, labels)), torch.tensor(expected).double())


def test_pixels_that_count_nowhere_belong_to_no_mask_and_are_still_compared() -> None:
    prediction, labels = made(2)
    other = labels.masked_fill(labels == VOID, 1)
    assert not torch.equal(torch.stack(atm_loss(prediction, labels)), torch.stack(atm_loss(prediction, other)))
    masks = prediction.masks.clone().requires_grad_()
    corner = torch.full_like(labels, VOID)
    corner[:, 0, 0] = 0
    atm_loss(AtmPrediction(prediction.classes, masks), corner)[1].backward()
    assert bool((masks.grad[:, 0, -1, -1] > 0).all()), "where no class counts the mask must go down"
    assert not masks.grad[:, 1:].any(), "classes that are not there have no mask loss"


def test_an_image_without_any_class_has_no_mask_loss() -> None:
    prediction, labels = made(2)
    _, focal, dice = atm_loss(prediction, torch.full_like(labels, VOID))
    assert float(focal) == float(dice) == 0
    assert float(pixel_loss(prediction.masks, torch.full_like(labels, VOID))) == 0


def test_cross_entropy_of_pixels_is_the_slow_one() -> None:
    prediction, labels = made(2)
    expected = slow.as_tensor(slow.pixels(prediction.masks, labels))
    torch.testing.assert_close(pixel_loss(prediction.masks, labels), expected)


def test_heads_are_weighed() -> None:
    stages = [made(2, seed=seed)[0] for seed in range(3)]
    labels = made(2)[1]
    parts = [atm_loss(stage, labels) for stage in stages]
    total, logged = losses(stages, labels)
    torch.testing.assert_close(total, sum(a + 20 * b + c for a, b, c in parts))
    assert logged == dict(zip(("presence", "focal", "dice"), parts[-1], strict=True))
    maps = [stage.masks for stage in stages]
    each = [pixel_loss(logits, labels) for logits in maps]
    total, logged = losses(maps, labels)
    torch.testing.assert_close(total, 0.4 * each[0] + 0.4 * each[1] + each[2])
    assert logged == {"cross_entropy": each[-1]}


def test_half_precision_is_summed_up_in_full() -> None:
    prediction, labels = made(2)
    half = AtmPrediction(prediction.classes.bfloat16(), prediction.masks.bfloat16())
    assert all(part.dtype == torch.float32 for part in atm_loss(half, labels))
