"""`heal()`: self-distillation without labels, so that a model with a recipe answers as the dense model does."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .._files import check_folder
from ..data import load_batches
from ..measure.fidelity import Fidelity, fidelity
from ..measure.outputs import evaluating, forward_batches, nothing_read
from ..methods import BaseMethod
from ..recipe import Recipe
from ..stream import sieve
from .heal_adaptive import ThresholdSetter, is_adaptive
from .heal_task import ADAPTER, Heal, HealSettings, likeness, prepare
from .loop import read_log, train
from .views import READ, set_of

RECIPE = "best.json"
FEW = 0.1
"""Training pictures that show a smaller share of the model's classes may overfit it to these: a warning says so."""
CLASS_COVERAGE = 0.9
"""`classes_shown` counts the most frequent classes that together make up this share of the predictions."""


@dataclass(frozen=True)
class BeforeAfter:
    """Fidelity of a recipe to the dense model on a set of pictures, before and after healing."""

    before: Fidelity
    after: Fidelity


@dataclass(frozen=True)
class Healed:
    """The result of `heal`.

    Attributes:
        recipe: file of the recipe, `best.json`.
        weights: file of the healed host's state dict, `model.safetensors`; adapters are merged into it.
        adapter: folder of the adapters, if these were trained.
        step, steps: the step of the saved weights, and the number of planned steps.
        interpolation: point between the original weights (0) and the trained ones (1) at which the saved ones lie, the
            best of `heal_task.INTERPOLATIONS` on the held-out pictures.
        heldout: fidelity before and after, on held-out pictures of the same source.
        test: the same on the test pictures, if given.
        warnings: that the model was overfitted, or that these measurements could not show it.
        mb: size of the healed weights in megabytes.
        log: the training log: a row for each validation, with its `step` and what was measured.
    """

    recipe: Path
    weights: Path
    adapter: Path | None
    step: int
    steps: int
    interpolation: float
    heldout: BeforeAfter
    test: BeforeAfter | None
    mb: float
    warnings: tuple[str, ...] = ()
    log: list[dict[str, float]] = field(default_factory=list)


def heal(
    model: nn.Module,
    recipe: str | os.PathLike[str] | BaseMethod | Recipe,
    pictures: Any,
    out: str | os.PathLike[str],
    settings: HealSettings | None = None,
    *,
    test_images: Iterable[Any] | Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
    report: Callable[[dict[str, Any]], object] = lambda _: None,
    say: Callable[[str], object] = lambda _: None,
) -> Healed:
    """Train a copy of a model so that its outputs under a recipe match the dense model's; labels are not used.

    The dense model runs once on each view (a crop or mirror image) of every picture; its outputs are saved in `out`.
    After an interruption the same call resumes. The model itself is not changed. For a recipe with `adaptive` the copy
    is trained with the mean number of merges of each block; then thresholds are chosen for it that give the same mean
    MACs, see `heal_adaptive`.

    Args:
        model: the host, a classifier or a feature extractor.
        recipe: the recipe that the copy is trained for.
        pictures: a dataset whose items begin with an image (C, H, W) as the model reads it, such as from `image_set`;
            batches of one (`load_batches`); or one tensor (N, C, H, W). Thousands are better than hundreds.
        out: a folder for `best.json`, `model.safetensors`, the log and the checkpoint.
        settings: see `HealSettings`.
        test_images: further pictures to evaluate on, batches or a tensor; with labels for top-1 accuracy too.
        mean, std, pretrained: as in `sieve`.
        report: called with each row of the log.
        say: called with messages about the progress.

    Raises:
        InputError: too few or unreadable pictures; `out` holds files of a run with another model, recipe or settings;
            accelerate or, for adapters, peft is not installed.
        RecipeError: the recipe is empty or invalid, or a setting is invalid.
        UnsupportedHost: the model does not support the recipe.
    """
    folder, settings = check_folder(out), settings or HealSettings()
    given = Recipe.of(recipe).with_hashes()
    sieve_args: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
    thresholds = ThresholdSetter(model, given, set_of(pictures), sieve_args) if is_adaptive(given) else None
    training_recipe = given if thresholds is None else thresholds.fixed
    config, task = prepare(model, training_recipe, pictures, folder, settings, **sieve_args, say=say)
    weights = train(config, task, folder, report=report)
    say("evaluating the result")
    host = copy.deepcopy(model)
    host.load_state_dict(load_file(weights, device=str(next(model.parameters()).device)))
    healed_recipe = given if thresholds is None else thresholds.recipe_for(host)
    healed_recipe.save(folder / RECIPE)
    before_and_after = sieve(model, given, **sieve_args), sieve(host, healed_recipe, **sieve_args)
    kind = task.kind.name
    heldout = BeforeAfter(
        *(fidelity(fast, task.dense, load_batches(task.heldout, READ), kind=kind) for fast in before_and_after)
    )
    test_fidelity = None if test_images is None else compare(model, *before_and_after, test_images, kind)
    log = read_log(folder, task.name)
    best = max(log, key=lambda row: row[config.best or "step"])
    return Healed(
        recipe=folder / RECIPE,
        weights=weights,
        adapter=folder / ADAPTER if task.adapter is not None else None,
        step=int(best["step"]),
        steps=config.steps(task.samples),
        interpolation=task.interpolation,
        heldout=heldout,
        test=test_fidelity,
        mb=sum(value.nbytes for value in host.state_dict().values()) / 1e6,
        warnings=warnings_of(heldout, test_fidelity, classes_shown(task)),
        log=log,
    )


def compare(
    model: nn.Module, before: nn.Module, after: nn.Module, loader: Iterable[Any] | Tensor, kind: str | None = None
) -> BeforeAfter:
    """Fidelity of both models on the same pictures, with top-1 accuracy if all of these have labels.

    Raises:
        InputError: there are no pictures.
    """
    batches = loader.split(READ) if isinstance(loader, Tensor) else loader
    batches = list(batches) if isinstance(batches, Iterator) else batches  # it is iterated three times
    dense, all_labelled = [], True
    with evaluating(model):
        for batch_outputs in forward_batches([model], batches):
            dense.append(batch_outputs.outputs[0])
            all_labelled = all_labelled and batch_outputs.kind(kind).labelled(batch_outputs.labels)
    if not dense:
        raise nothing_read(batches)
    k = 1 if all_labelled and dense[0].ndim == 2 else None
    return BeforeAfter(*(fidelity(fast, torch.cat(dense), batches, k=k, kind=kind) for fast in (before, after)))


def classes_shown(task: Heal) -> tuple[int, int] | None:
    """Number of classes that make up `CLASS_COVERAGE` of the dense model's predictions, and number of all classes; None
    for other models than classifiers."""
    if not task.kind.classes or task.taught.ndim != 3:
        return None
    counts = task.taught[:, 0].argmax(1).bincount().sort(descending=True).values
    return int((counts.cumsum(0) < CLASS_COVERAGE * counts.sum()).sum()) + 1, task.taught.shape[2]


def warnings_of(heldout: BeforeAfter, test: BeforeAfter | None, shown: tuple[int, int] | None) -> tuple[str, ...]:
    """Warnings that healing overfitted the model to the pictures' classes, or that the measurements cannot show it."""
    warnings = []
    if likeness(heldout.after) <= likeness(heldout.before):
        warnings.append(
            "On held-out pictures the agreement with the dense model is no higher than before: use the recipe without "
            "these weights, or heal on more pictures, for longer, or with a smaller lr."
        )
    if test is not None:
        before, after = test.before, test.after
        agreement_drop = likeness(before) - likeness(after)
        if agreement_drop > 0 or after.divergence > before.divergence:
            warnings.append(
                f"On the test pictures the agreement is lower than before healing ({likeness(before):.1f} to "
                f"{likeness(after):.1f} %, divergence {before.divergence:.4f} to {after.divergence:.4f}): the model "
                "overfitted to its training pictures. Heal on pictures like those that it will read in use."
            )
        if after.accuracy is not None and after.changes[1] > 0 and agreement_drop > 0:
            warnings.append(
                f"Top-1 rose above the dense model's ({after.changes[1]:+.1f} points) while agreement fell: the model "
                "is not better in general, it predicts the classes of its training pictures more often."
            )
    elif shown is not None and shown[0] < FEW * shown[1]:
        warnings.append(
            f"The training pictures show few classes: {shown[0]} of {shown[1]} make up {CLASS_COVERAGE:.0%} of the "
            "dense model's predictions. The healed model may be good for these alone: evaluate it on pictures of other "
            "classes too (test_images=, or --test-data on the command line)."
        )
    return tuple(warnings)
