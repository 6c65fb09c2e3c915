"""`cascade()`: calibrates a cascade of models of rising cost on unlabelled images, so that it keeps a promise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..cascade_recipe import CascadeRecipe, check_score, check_share
from ..cascades.cascade import Cascade, logits_of
from ..cascades.certifying import Certified, certify, images_needed
from ..cascades.scores import sureness
from ..errors import RecipeError
from ..measure.outputs import evaluating, forward_batches, nothing_read
from ..stream import Sieved, sieve


def cascade(
    members: Sequence[nn.Module],
    images: Iterable[Any] | Tensor,
    *,
    agree: float = 0.98,
    confidence: float = 0.95,
    score: str | Callable[[Any], Tensor] = "margin",
    towards: Sequence[float] | None = None,
    batch: int = 32,
) -> Cascade:
    """Make a cascade that runs cheap models first and agrees with the dense model on a promised share of images.

    Each image is read by the first member; if the prediction is not confident enough, by the next one, and finally by
    the dense model. The thresholds on the confidence are calibrated on `images`: they are the lowest for which the
    share of predictions equal to the dense model's is at least `agree` with probability `confidence`, by an exact bound
    (Clopper and Pearson's, over a fixed sequence of thresholds: "learn then test"). The promise holds for images from
    the same distribution as these, and not for others; at `confidence` 0.95, 5 % of calibrations may miss it.

    Args:
        members: models from cheap to dense: sieved models, and last the dense model, or `sieve(model, "readout()")`,
            which gives the same outputs up to rounding. Members of one host share weights and common computation.
        images: batches (B, 3, H, W) as the models read them, tuples that begin with such batches, or one tensor. No
            labels are needed. With more images the thresholds come closer to `agree`: 500 images certify 0.98 if 99.2 %
            agree, 6,500 images certify 0.99 in that case.
        agree: the share of images, between 0 and 1, for which both predict the same class.
        confidence: the probability with which the promise holds.
        score: confidence of a prediction: "margin", "probability" or "entropy", see `CascadeRecipe`; or a function from
            the host's output to class scores (B, K), for hosts without a classifier, such as the products of image
            embeddings and text embeddings.
        towards: for three or more members, thresholds found on other images, whose proportions are kept; by default all
            thresholds are equal.
        batch: batch size if `images` is one tensor.

    Returns:
        A module that is called like the dense model and returns the same kind of output, in the order of the images,
        with `thresholds`, `shares`, `certificate` and `trace(images)`. If the images cannot certify the promise, it
        warns, with the number of images that could, and all images go to the dense model.

    Raises:
        RecipeError: fewer than two members, or invalid settings.
        UnsupportedHost: a host without a classifier, and `score` is not a function.
        InputError: there are no images.
    """
    check_share("agree", agree)
    check_share("confidence", confidence)
    check_score(score)
    if isinstance(members, nn.Module | str) or len(members) < 2 or not all(isinstance(m, nn.Module) for m in members):
        raise RecipeError(
            "A cascade has two members or more, from cheap to dense: cascade([sieve(model, recipe), model], images)."
        )
    sieved = [member if isinstance(member, Sieved) else sieve(member) for member in members]
    if towards is not None and (len(towards) != len(sieved) - 1 or not all(0 < threshold < 1 for threshold in towards)):
        raise RecipeError(f"towards must be {len(sieved) - 1} thresholds between 0 and 1, not {towards!r}.")
    plain = CascadeRecipe(tuple(member.recipe for member in sieved), (0.0,) * (len(sieved) - 1), score)
    Cascade(sieved, plain)  # raises for invalid members before anything slow begins
    scores, same = answers_of(sieved, images, score, batch)
    certificate = certify(scores, same, agree, confidence, towards)
    exact = bool(same[-1].all())
    if not certificate.certified and not exact and certificate.images >= (images_needed(agree, confidence) or 0):
        raise RecipeError(
            f"The last member agrees with the dense model on {100 * same[-1].mean():.1f} % of these "
            f"{certificate.images} images, which is not enough for {100 * agree:g} %: use the dense model itself as "
            "the last member."
        )
    if (reason := shortfall(certificate, agree, confidence)) is not None:
        warnings.warn(reason, stacklevel=2)
    promise: dict[str, Any] = {"agree": agree, "confidence": confidence} if certificate.certified or exact else {}
    recipe = CascadeRecipe(
        plain.recipes, certificate.thresholds, score, images=certificate.images, shares=certificate.shares, **promise
    )
    return Cascade(sieved, recipe, certificate)


def answers_of(
    members: Sequence[Sieved], images: Iterable[Any] | Tensor, score: str | Callable[[Any], Tensor], batch: int = 32
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The confidence of each member but the last for each image, (M - 1, N), and whether each member's prediction
    equals the dense model's, (M, N). Raises as `cascade` does."""
    dense = members[-1].model
    exact = not members[-1].plan.methods
    models = [_Scored(member, score) for member in (*members[:-1], *(() if exact else members[-1:]), dense)]
    scores: list[list[Tensor]] = [[] for _ in members[:-1]]
    same: list[list[Tensor]] = [[] for _ in members]
    with evaluating(*models):
        for batch_outputs in forward_batches(models, images.split(batch) if isinstance(images, Tensor) else images):
            outputs = batch_outputs.outputs
            dense_classes = outputs[-1].argmax(1)
            for index in range(len(members)):
                output = outputs[min(index, len(models) - 1)]
                same[index].append(output.argmax(1) == dense_classes)
                if index < len(scores):
                    scores[index].append(sureness(output, score))
    if not same[0]:
        raise nothing_read(images)
    return (
        np.stack([torch.cat(member_scores).double().numpy() for member_scores in scores]),
        np.stack([torch.cat(member_same).numpy() for member_same in same]),
    )


class _Scored(nn.Module):
    """A model that returns the logits from which a cascade computes its score."""

    def __init__(self, model: nn.Module, score: object) -> None:
        super().__init__()
        self.model, self.score = model, score

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images), self.model, self.score, len(images))


def shortfall(certificate: Certified, agree: float, confidence: float) -> str | None:
    """The reason why every image goes to the last member; None if a threshold could be certified."""
    promise = f"{100 * agree:g} % equal predictions with confidence {confidence:g}"
    least = images_needed(agree, confidence)
    if not certificate.certified and least is not None and certificate.images < least:
        return (
            f"{certificate.images} images cannot certify {promise}, even if all of them agree: at least {least} are "
            "needed. Until then every image goes to the last member."
        )
    if all(threshold >= 1 for threshold in certificate.thresholds):
        needed = None if certificate.refused is None else images_needed(agree, confidence, certificate.refused)
        would = "no number of images is enough" if needed is None else f"about {needed} images are needed"
        return (
            f"No threshold certifies {promise} on these {certificate.images} images: of the most confident predictions "
            f"{100 * (certificate.refused or 0):.1f} % are equal, for which {would}. Every image goes to the last "
            "member."
        )
    return None
