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
"""Candidates for the ridge penalty, in mean squares of the features; cross-validation chooses one."""
UNSURE = 2.0
"""Losses that differ by less than this many standard errors count as equal; agreement decides between them."""
WORTH, ROUNDING = 0.99, 1e-7
"""A correction is used if at most this share of the divergence remains, and if the divergence is above rounding."""
FOLDS = 5
LEAST = 2 * FOLDS
"""Minimum number of images for cross-validation."""


@dataclass(frozen=True)
class Correction:
    """The result of `correct`."""

    recipe: Recipe
    """The given recipe followed by `corrected(weights=FILE)`; without a correction if none helps."""
    ridge: float | None
    """The value of `RIDGES` that was chosen; None if no correction helps, and then no file is written."""
    divergence: float
    """Divergence without correction: mean KL(dense || sieved) over the images, 1 - cosine for embeddings."""
    corrected_divergence: float
    """Divergence with correction, for each image with a correction fitted on other images."""
    agreement: float | None
    """Percent of the images with the same class in the sieved and the dense model; None for embeddings."""
    corrected_agreement: float | None
    """Agreement with correction, as `corrected_divergence`."""
    images: int
    """Number of images."""


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
    """Fit a linear map from the head's input under a recipe to its input in the dense model, by ridge regression.

    Each image is used whole, mirrored, and in random crops. The ridge penalty is chosen by five-fold cross-validation
    over images, by divergence and, between equal ones, by agreement; the correction that is written is fitted on all
    images. A correction fitted on images of a few classes works worse on others: use images like those the model will
    see.

    Args:
        model: the host; its head must read a class token. Its modes are restored.
        recipe: the recipe to correct; a correction that it already has is replaced.
        loader: batches of images (B, 3, H, W) normalised as the model reads them, tuples that begin with images, or one
            tensor; labels are not used. A few hundred images are enough.
        out: the weights file to write, .safetensors. Its folder is made if the parent folder exists.
        views: number of augmented versions of each image.
        seed: random seed of the crops.
        mean, std, pretrained: as in `sieve`.
        batch: batch size if `loader` is a tensor.
        report: called with a message about the progress.

    Raises:
        InputError: too few images, or `out` cannot be written.
        RecipeError: the recipe is invalid, or `views` or `batch` is below 1.
        UnsupportedHost: the model cannot be sieved, or its head reads patch tokens.
    """
    out = check_place(out, (".safetensors",), new_folder=True)
    if views < 1 or batch < 1:
        raise RecipeError(f"views={views} and batch={batch} must be at least 1.")
    plain = Recipe(tuple(method for method in Recipe.of(recipe) if not isinstance(method, Corrected)))
    settings: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
    sieve(model, plain + Corrected(), **{**settings, "pretrained": False})  # raises if the model cannot be corrected
    fast, dense = sieve(model, plain, **settings), sieve(model)
    with evaluating(model, fast):
        sieved, targets = _features(fast, dense, loader, views, seed, batch, report or (lambda _: None))
        head = _HeadDivergence(dense, sieved, targets)
        by_ridge = {ridge: head.divergences(_cross_validated(sieved, targets, ridge)) for ridge in RIDGES}
        before, agreement = _means(head.divergences(torch.zeros_like(targets[:, 0, 0])))
    ridge = _chosen(by_ridge)
    after, corrected_agreement = _means(by_ridge[ridge])
    if after > WORTH * before or before < ROUNDING:
        return Correction(plain, None, before, before, agreement, agreement, len(targets))
    weight, bias = fit(sieved[:, :, 0].flatten(0, 1), targets[:, :, 0].flatten(0, 1), ridge)
    make_folder(out.parent)
    with draft(out) as file:
        save_file({"weight": weight.float().contiguous(), "bias": bias.float()}, file, {"recipe": str(plain)})
    corrected = (plain + Corrected(weights=out)).with_hashes()
    return Correction(corrected, ridge, before, after, agreement, corrected_agreement, len(targets))


def fit(sieved: Tensor, dense: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """W (d, d) and b (d,) that minimise the sum over n of |dense - (x + W (x - mean) + b')|^2 + n ridge s |W|^2.

    Args:
        sieved, dense: features x (n, d) and their targets (n, d).
        ridge: the penalty, in units of s, the mean square of x - mean.

    Returns:
        W, and b = b' - W mean, in float64: x + W x + b is the corrected feature.
    """
    from sklearn.linear_model import Ridge

    x = sieved.double().numpy()
    size = max(x.var(axis=0).mean(), np.finfo(x.dtype).tiny)  # if all features are equal, W is 0
    ridge_model = Ridge(ridge * len(x) * size, solver="cholesky").fit(x, dense.double().numpy() - x)
    return torch.from_numpy(ridge_model.coef_), torch.from_numpy(ridge_model.intercept_)


def _cross_validated(sieved: Tensor, dense: Tensor, ridge: float) -> Tensor:
    """The change of each whole image's feature (N, d) by a correction that was fitted without that image."""
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
    """The ridge with the most agreement among those whose divergence is about equal to the smallest."""
    best = min(by_ridge, key=lambda ridge: float(by_ridge[ridge][0].mean()))

    def equal(ridge: float) -> bool:
        more = by_ridge[ridge][0] - by_ridge[best][0]
        return float(more.mean()) <= UNSURE * float(more.std()) / len(more) ** 0.5

    def rank(ridge: float) -> tuple[float, float]:
        divergence, same = by_ridge[ridge]
        return 0.0 if same is None else -float(same.double().mean()), float(divergence.mean())

    return min(filter(equal, by_ridge), key=rank)


class _HeadDivergence:
    """Computes the divergence of corrected features after the host's head."""

    def __init__(self, dense: Sieved, sieved: Tensor, targets: Tensor) -> None:
        self.host, self.tokens = dense.host, sieved[:, 0]
        self.dense, self.kind = self._head(targets[:, 0])

    def divergences(self, change: Tensor) -> tuple[Tensor, Tensor | None]:
        """The divergence of each whole image after adding `change` (N, d) to its class token, and its agreement."""
        first = (self.tokens[:, :1].double() + change[:, None]).to(self.tokens.dtype)
        outputs, _ = self._head(torch.cat([first, self.tokens[:, 1:]], dim=1))
        same = self.kind.agreement(self.dense, outputs) if self.kind.classes else None
        return self.kind.divergence(self.dense, outputs), same

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
            for model, collected in zip((fast, dense), features, strict=True):
                collected.append(model.forward_features(view)[:, :prefix].float().cpu())
        for collected in features:
            collected[-views:] = [torch.stack(collected[-views:], dim=1)]
        count += len(images)
        report(f"{count} images read")
    if not count:
        raise nothing_read(loader)
    if count < LEAST:
        raise InputError(f"{count} images are too few to fit a correction on: give {LEAST} or more, better hundreds.")
    return torch.cat(features[0]), torch.cat(features[1])


def _views(images: Tensor, count: int, seed: int, first: int) -> Iterator[Tensor]:
    """Views of images: whole, mirrored, then random crops of half to all of the area, mirrored or not."""
    yield images
    if count > 1:
        yield images.flip(3)
    crop = v2.RandomResizedCrop(images.shape[-2:], scale=(0.5, 1.0), ratio=(0.8, 1.25), antialias=True)
    change = v2.Compose([crop, v2.RandomHorizontalFlip()])
    for view in range(2, count):
        changed = []
        for number, image in enumerate(
            images, start=first
        ):  # seeded by the image's index, so that batches do not matter
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed((seed * 1_000_003 + number) * 1009 + view)
                changed.append(change(image))
        yield torch.stack(changed)
