"""Parity: what is said of two runtimes that answer otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tokensieve import ExportError
from tokensieve.export.parity import largest_difference

IMAGES = torch.rand(5, 3, 8, 8)


class Mean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(2)


class NearTie(nn.Module):
    """Chooses between two values by a number that rounding decides for the last image, and for no other."""

    def forward(self, images: Tensor) -> Tensor:
        left, right = images[..., :4].sum((1, 2, 3)), images[..., 4:].sum((1, 2, 3))
        return torch.where(left > right, 0.0, 1.0)[:, None]


def test_the_largest_difference_of_all_images_is_measured() -> None:
    def run(images: Tensor) -> Tensor:
        return Mean()(images) + torch.tensor([0, 0, -3e-5, 1e-5, 0])[:, None]

    assert largest_difference(Mean(), run, IMAGES, 1e-4) == pytest.approx(3e-5, rel=0.01)
    assert largest_difference(Mean(), Mean(), IMAGES, 1e-4) == 0


def test_a_file_that_is_wrong_is_told_so() -> None:
    def run(images: Tensor) -> Tensor:
        return Mean()(images) + torch.tensor([0, 0, 2e-3, 0, 0.5])[:, None]

    with pytest.raises(ExportError, match=r"on 2 of 5 random images, by up to 0\.5 \(allowed: 0\.0001\)") as error:
        largest_difference(Mean(), run, IMAGES, 1e-4)
    assert "On 2 of them PyTorch's own output stays" in str(error.value)
    assert "the file is wrong" in str(error.value)


def test_a_choice_that_rounding_decides_is_told_apart() -> None:
    images = IMAGES.clone()
    images[-1, ..., 4:] = images[-1, ..., :4].flip(1)  # equal sums, in another order

    def run(images: Tensor) -> Tensor:
        answer = NearTie()(images)
        answer[-1] = 1 - answer[-1]
        return answer

    with pytest.raises(ExportError, match="on 1 of 5 random images") as error:
        largest_difference(NearTie(), run, images, 1e-4)
    assert "equal up to rounding" in str(error.value)
    assert "Try another seed" in str(error.value)
    assert "wrong" not in str(error.value)


def test_one_wrong_image_among_near_ties_is_enough() -> None:
    images = IMAGES.clone()
    images[-1, ..., 4:] = images[-1, ..., :4].flip(1)
    with pytest.raises(ExportError, match=r"on 2 of 2 random images.*On 1 of them PyTorch's own output stays"):
        largest_difference(NearTie(), lambda images: 1 - NearTie()(images), images[[4, 0]], 1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_a_difference(value: float) -> None:
    with pytest.raises(ExportError, match="on 5 of 5"):
        largest_difference(Mean(), lambda images: Mean()(images) * value, IMAGES, 1e-4)


def test_another_shape_is_a_difference() -> None:
    with pytest.raises(ExportError, match=r"returns shape \(5, 3, 1\) where PyTorch returns \(5, 3\)"):
        largest_difference(Mean(), lambda images: Mean()(images)[..., None], IMAGES, 1e-4)


def test_half_precision_changes_in_its_own_last_bits() -> None:
    images = IMAGES.bfloat16()
    images[-1, ..., 4:] = images[-1, ..., :4].flip(1)
    with pytest.raises(ExportError, match="equal up to rounding"):
        largest_difference(NearTie(), lambda images: 1 - NearTie()(images), images[-1:], 1e-4)
