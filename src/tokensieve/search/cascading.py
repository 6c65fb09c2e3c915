"""`cascade()`: from readings of rising cost and unlabelled images to a cascade that keeps a promise."""

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
    """Make a model that reads every image as cheaply as its answer allows, and agrees with the dense model as promised.

    Each image is read by the first member; where the answer is not sure enough, by the next one, and at last by the
    dense model. How sure is enough is found on `images`: the lowest thresholds for which the share of answers that are
    the dense model's is at least `agree`, with that confidence, by an exact bound (Clopper and Pearson's, over a fixed
    sequence of thresholds: "learn then test"). The promise is about images drawn like these and says nothing about
    others: of a thousand calibrations on images like these, at `confidence` 0.95, fifty may miss it.

    Args:
        members: from cheap to dense: what `sieve` returned, and last the dense model, or `sieve(model, "readout()")`,
            which answers alike but for rounding. Members of one host share its weights and what they compute alike.
        images: batches (B, 3, H, W) as the models read them, or tuples that begin with them, or one tensor. No labels
            are needed. The more, the closer to `agree` the thresholds come: 500 images certify 0.98 where 99.2 % agree,
            6,500 images certify 0.99 there.
        agree: the share of images, between 0 and 1, to which both give the same class.
        confidence: with which that is promised.
        score: how sure an answer is: "margin", "probability" or "entropy", see `CascadeRecipe`; or a function of what
            the host returns -> (B, K) scores of classes, for hosts without a classifier, such as the products of image
            embeddings with those of texts.
        towards: of three members or more, thresholds found on other images, whose proportions are kept; by default
            all have the same one.
        batch: how many images of one tensor go through together.

    Returns:
        A module that is called like the dense model and returns what it returns, in the images' order, with
        `thresholds`, `shares`, `certificate` and `trace(images)`. Where the images cannot certify the promise, it
        warns, says how many would, and reads everything by the dense model.

    Raises:
        RecipeError: fewer than two members, settings that make no sense.
        UnsupportedHost: a host without a classifier, where `score` is no function.
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
    if towards is not None and (len(towards) != len(sieved) - 1 or not all(0 < each < 1 for each in towards)):
        raise RecipeError(f"towards is {len(sieved) - 1} thresholds between 0 and 1 here, not {towards!r}.")
    plain = CascadeRecipe(tuple(each.recipe for each in sieved), (0.0,) * (len(sieved) - 1), score)
    Cascade(sieved, plain)  # refuses what cannot be one before anything slow begins
    scores, same = answers_of(sieved, images, score, batch)
    certificate = certify(scores, same, agree, confidence, towards)
    exact = bool(same[-1].all())
    if not certificate.certified and not exact and certificate.images >= (images_needed(agree, confidence) or 0):
        raise RecipeError(
            f"The last member agrees with the dense model on {100 * same[-1].mean():.1f} % of these "
            f"{certificate.images} images, which is not enough for {100 * agree:g} %: let the dense model itself "
            "be the last."
        )
    if (why := shortfall(certificate, agree, confidence)) is not None:
        warnings.warn(why, stacklevel=2)
    promise: dict[str, Any] = {"agree": agree, "confidence": confidence} if certificate.certified or exact else {}
    recipe = CascadeRecipe(
        plain.recipes, certificate.thresholds, score, images=certificate.images, shares=certificate.shares, **promise
    )
    return Cascade(sieved, recipe, certificate)


def answers_of(
    members: Sequence[Sieved], images: Iterable[Any] | Tensor, score: str | Callable[[Any], Tensor], batch: int = 32
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How sure each member but the last is of each image, (M - 1, N), and whether each one's answer is the dense
    model's, (M, N). Raises as `cascade` does."""
    dense = members[-1].model
    exact = not members[-1].plan.methods
    models = [_Scored(member, score) for member in (*members[:-1], *(() if exact else members[-1:]), dense)]
    scores: list[list[Tensor]] = [[] for _ in members[:-1]]
    same: list[list[Tensor]] = [[] for _ in members]
    with evaluating(*models):
        for answers in forward_batches(models, images.split(batch) if isinstance(images, Tensor) else images):
            dense_classes = answers.outputs[-1].argmax(1)
            for index in range(len(members)):
                output = answers.outputs[min(index, len(models) - 1)]
                same[index].append(output.argmax(1) == dense_classes)
                if index < len(scores):
                    scores[index].append(sureness(output, score))
    if not same[0]:
        raise nothing_read(images)
    return (
        np.stack([torch.cat(each).double().numpy() for each in scores]),
        np.stack([torch.cat(each).numpy() for each in same]),
    )


class _Scored(nn.Module):
    """A model that returns the logits by which a cascade decides."""

    def __init__(self, model: nn.Module, score: object) -> None:
        super().__init__()
        self.model, self.score = model, score

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images), self.model, self.score, len(images))


def shortfall(certificate: Certified, agree: float, confidence: float) -> str | None:
    """Why every image is read by the last member, as a sentence; None where a threshold could be certified."""
    promise = f"{100 * agree:g} % the same answers with confidence {confidence:g}"
    least = images_needed(agree, confidence)
    if not certificate.certified and least is not None and certificate.images < least:
        return (
            f"{certificate.images} images cannot certify {promise}, however many of them agree: {least} at least can. "
            "Until then everything is read by the last member."
        )
    if all(threshold >= 1 for threshold in certificate.thresholds):
        needed = None if certificate.refused is None else images_needed(agree, confidence, certificate.refused)
        would = "no number of images would" if needed is None else f"about {needed} images would"
        return (
            f"No threshold certifies {promise} on these {certificate.images} images: of the surest answers "
            f"{100 * (certificate.refused or 0):.1f} % are the same, where {would}. Everything is read by "
            "the last member."
        )
    return None
