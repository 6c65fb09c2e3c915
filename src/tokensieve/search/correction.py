"""`correct()`: a linear map that undoes the part of a recipe's divergence that is the same for all images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from .._files import check_place, draft, make_folder
from ..errors import InputError, RecipeError
from ..measure.comparison import OutputKind, kind_of
from ..measure.outputs import as_tensor, classifies, evaluating, field_of, nothing_read, unpack
from ..methods import Corrected
from ..methods.base import BaseMethod
from ..recipe import Recipe
from ..stream import Sieved, sieve
from ..tokens import Tokens

RIDGES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""What a large correction costs beside what it mends, in mean squares of the features: the images choose."""
UNSURE = 2.0
"""Losses that differ by so many standard errors count as equal; agreement decides between them."""
WORTH, ROUNDING = 0.99, 1e-7
"""A correction is kept if it leaves so much of the divergence at most, and where the divergence is more than
rounding."""
FOLDS = 5
LEAST = 2 * FOLDS
"""Images without which nothing can be chosen."""


@dataclass(frozen=True)
class Correction:
    """The result of `correct`."""

    recipe: Recipe
    """The given one with `corrected(weights=FILE)` behind it; without any correction where none helps."""
    ridge: float | None
    """The one of `RIDGES` that was chosen; None where no correction helps, and no file was written."""
    divergence: float
    """Of the recipe without correction: mean KL(dense || sieved) over the images, 1 - cosine for embeddings."""
    corrected_divergence: float
    """With correction, of each image by a correction that was fitted without it."""
    agreement: float | None
    """Percent of the images to which recipe and dense model give the same class; None for embeddings."""
    corrected_agreement: float | None
    """With correction, as `corrected_divergence`."""
    images: int


@torch.no_grad()
def correct(
    model: nn.Module,
    recipe: str | os.PathLike[str] | BaseMethod | Recipe,
    loader: Iterable[Any] | Tensor,
    out: str | os.PathLike[str],
    *,
    views: int = 8,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
    batch: int = 32,
    report: Callable[[str], object] | None = None,
) -> Correction:
    """Fit what the head reads under a recipe to what it reads in the dense model, by ridge regression.

    Each image is seen whole, mirrored, and in random crops. How large the correction may be is decided by five-fold
    cross-validation over images, by divergence and, where that cannot tell, agreement; the correction that is written
    is fitted on all of them. Images that are all of a few classes also teach it that there are no others: fit on images
    like those the model will see.

    Args:
        model: the host, one whose head reads a class token. Its modes are restored.
        recipe: what is corrected; a correction that it already has is replaced.
        loader: batches of images (B, 3, H, W) normalised as the model reads them, or tuples that begin with images, or
            one tensor; labels are not looked at. A few hundred images are enough.
        out: the file of weights to write, .safetensors. Its folder is made if the one above is there.
        views: ways in which each image is seen.
        seed: of the crops.
        mean, std, pretrained: as in `sieve`.
        batch: images that go through together, where `loader` is a tensor.
        report: called with a sentence on how far it is.

    Raises:
        InputError: too few images, or `out` cannot be written.
        RecipeError: the recipe makes no sense, or `views` or `batch` is below 1.
        UnsupportedHost: the model cannot be sieved, or its head reads patch tokens.
    """
    out = check_place(out, (".safetensors",), new_folder=True)
    if views < 1 or batch < 1:
        raise RecipeError(f"views={views} and batch={batch} must be at least 1.")
    plain = Recipe(tuple(method for method in Recipe.of(recipe) if not isinstance(method, Corrected)))
    settings: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
    sieve(model, plain + Corrected(), **{**settings, "pretrained": False})  # refuses what cannot be corrected
    fast, dense = sieve(model, plain, **settings), sieve(model)
    with evaluating(model, fast):
        sieved, targets = _features(fast, dense, loader, views, seed, batch, report or (lambda _: None))
        answers = _Answers(dense, sieved, targets)
        by_ridge = {ridge: answers.divergences(_left_out(sieved, targets, ridge)) for ridge in RIDGES}
        before, same = _means(answers.divergences(torch.zeros_like(targets[:, 0, 0])))
    ridge = _chosen(by_ridge)
    after, then_same = _means(by_ridge[ridge])
    if after > WORTH * before or before < ROUNDING:
        return Correction(plain, None, before, before, same, same, len(targets))
    weight, bias = fit(sieved[:, :, 0].flatten(0, 1), targets[:, :, 0].flatten(0, 1), ridge)
    make_folder(out.parent)
    with draft(out) as file:
        save_file({"weight": weight.float().contiguous(), "bias": bias.float()}, file, {"recipe": str(plain)})
    corrected = (plain + Corrected(weights=out)).with_hashes()
    return Correction(corrected, ridge, before, after, same, then_same, len(targets))


def fit(sieved: Tensor, dense: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """W (d, d) and b (d,) that make the sum over n of |dense - (x + W (x - mean) + b')|^2 + n ridge s |W|^2 least.

    Args:
        sieved, dense: features x (n, d) and what they should be (n, d).
        ridge: its price, where s is the mean square of x - mean.

    Returns:
        W, and b = b' - W mean, in float64: x + W x + b is the corrected feature.
    """
    from sklearn.linear_model import Ridge

    x = sieved.double().numpy()
    size = max(x.var(axis=0).mean(), np.finfo(x.dtype).tiny)  # of features that are all the same W is 0
    ridge_model = Ridge(ridge * len(x) * size, solver="cholesky").fit(x, dense.double().numpy() - x)
    return torch.from_numpy(ridge_model.coef_), torch.from_numpy(ridge_model.intercept_)


def _left_out(sieved: Tensor, dense: Tensor, ridge: float) -> Tensor:
    """What is added to each whole image's feature (N, d) by a correction that was fitted without that image."""
    from sklearn.model_selection import PredefinedSplit

    change = torch.zeros_like(sieved[:, 0, 0], dtype=torch.float64)
    for training, held_out in PredefinedSplit(np.arange(len(sieved)) % FOLDS).split():
        weight, bias = fit(sieved[training][:, :, 0].flatten(0, 1), dense[training][:, :, 0].flatten(0, 1), ridge)
        change[held_out] = sieved[held_out][:, 0, 0].double() @ weight.T + bias
    return change


def _means(divergences: tuple[Tensor, Tensor | None]) -> tuple[float, float | None]:
    """Mean divergence, and agreement in percent."""
    divergence, same = divergences
    return float(divergence.mean()), None if same is None else 100 * float(same.double().mean())


def _chosen(by_ridge: dict[float, tuple[Tensor, Tensor | None]]) -> float:
    """The ridge of the least divergence, or of those that lose hardly more the one of the most agreement."""
    best = min(by_ridge, key=lambda ridge: float(by_ridge[ridge][0].mean()))

    def equal(ridge: float) -> bool:
        more = by_ridge[ridge][0] - by_ridge[best][0]
        return float(more.mean()) <= UNSURE * float(more.std()) / len(more) ** 0.5

    def rank(ridge: float) -> tuple[float, float]:
        divergence, same = by_ridge[ridge]
        return 0.0 if same is None else -float(same.double().mean()), float(divergence.mean())

    return min(filter(equal, by_ridge), key=rank)


class _Answers:
    """The divergences of corrected features, by the host's own head."""

    def __init__(self, dense: Sieved, sieved: Tensor, targets: Tensor) -> None:
        self.host, self.tokens = dense.host, sieved[:, 0]
        self.dense, self.kind = self._head(targets[:, 0])

    def divergences(self, change: Tensor) -> tuple[Tensor, Tensor | None]:
        """The divergence of each whole image, to whose class token `change` (N, d) is added, and if its class stays."""
        first = (self.tokens[:, :1].double() + change[:, None]).to(self.tokens.dtype)
        answers, _ = self._head(torch.cat([first, self.tokens[:, 1:]], dim=1))
        same = self.kind.agreement(self.dense, answers) if self.kind.classes else None
        return self.kind.divergence(self.dense, answers), same

    def _head(self, x: Tensor) -> tuple[Tensor, OutputKind]:
        model = self.host.model
        parameter = next(model.parameters())
        x = x.to(parameter.device, parameter.dtype)
        output = self.host.head(Tokens(x, x.shape[1], (0, 0)))
        output_tensor = as_tensor(output, model, len(x))
        return output_tensor, kind_of(output_tensor, classifies(model, output), field_of(output))


def _features(
    fast: Sieved, dense: Sieved, loader: Any, views: int, seed: int, batch: int, report: Callable[[str], object]
) -> tuple[Tensor, Tensor]:
    """Prefix tokens after the final norm (N, views, prefix, d), sieved and dense."""
    parameter, prefix = next(dense.model.parameters()), dense.host.prefix
    features: tuple[list[Tensor], list[Tensor]] = ([], [])
    count = 0
    for batch_of_loader in loader.split(batch) if isinstance(loader, Tensor) else loader:
        images, _ = dense.host.arguments(unpack(batch_of_loader)[0], {})
        images = images.to(parameter.device, parameter.dtype)
        for view in _views(images, views, seed, count):
            for model, kept in zip((fast, dense), features, strict=True):
                kept.append(model.forward_features(view)[:, :prefix].float().cpu())
        for kept in features:
            kept[-views:] = [torch.stack(kept[-views:], dim=1)]
        count += len(images)
        report(f"{count} images seen")
    if not count:
        raise nothing_read(loader)
    if count < LEAST:
        raise InputError(f"{count} images are too few to fit a correction on: give {LEAST} or more, better hundreds.")
    return torch.cat(features[0]), torch.cat(features[1])


def _views(images: Tensor, count: int, seed: int, first: int) -> Iterator[Tensor]:
    """Whole, mirrored, then cropped at random: half to all of the area, mirrored or not."""
    yield images
    if count > 1:
        yield images.flip(3)
    crop = v2.RandomResizedCrop(images.shape[-2:], scale=(0.5, 1.0), ratio=(0.8, 1.25), antialias=True)
    change = v2.Compose([crop, v2.RandomHorizontalFlip()])
    for view in range(2, count):
        changed = []
        for number, image in enumerate(images, start=first):  # by an image's number, in whatever batch it comes
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed((seed * 1_000_003 + number) * 1009 + view)
                changed.append(change(image))
        yield torch.stack(changed)
