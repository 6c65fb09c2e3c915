"""`heal()`: a recipe's answers brought back to the dense model's by a short training without labels."""

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
from .heal_task import ADAPTER, Heal, HealSettings, likeness, prepare
from .loop import read_log, train
from .views import READ

RECIPE = "best.json"
FEW = 0.1
"""Of a model's classes: pictures of fewer ones teach it that there are no others."""
MOST = 0.9
"""Of the answers, which classes count as those that the pictures are of."""


@dataclass(frozen=True)
class Judged:
    """A recipe on some pictures, before and after healing, each beside the dense model."""

    before: Fidelity
    after: Fidelity


@dataclass(frozen=True)
class Healed:
    """What `heal` made.

    Attributes:
        recipe: file of the recipe, `best.json`.
        weights: file of the healed host's state dict, `model.safetensors`; the adapters are part of it.
        adapter: folder of the adapters alone, where they were what learnt.
        step, steps: of the weights that were kept, and of those planned.
        heldout: on pictures that were not learnt from, of the same source.
        others: on other pictures, where they were given.
        warnings: sentences on what the figures do not show, or show to be wrong.
        mb: megabytes of the healed weights, which stand beside the dense model's where both are used.
        log: the rows of the training.
    """

    recipe: Path
    weights: Path
    adapter: Path | None
    step: int
    steps: int
    heldout: Judged
    others: Judged | None
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
    others: Iterable[Any] | Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
    report: Callable[[dict[str, Any]], object] = lambda _: None,
    say: Callable[[str], object] = lambda _: None,
) -> Healed:
    """Teach a copy of a model to answer under a recipe as the model answers without one; no labels are looked at.

    The model is asked once about each view of every picture; its answers are kept in `out`. Interrupted, the same call
    goes on where it was. The model itself stays as it is.

    Args:
        model: the host, a classifier or what gives features.
        recipe: under which it shall answer.
        pictures: a data set whose items begin with an image (C, H, W) as the model reads it, such as `image_set` gives;
            batches of one (`load_batches`); or one tensor (N, C, H, W). Thousands are better than hundreds.
        out: a folder: `best.json`, `model.safetensors`, the log and what is needed to go on.
        settings: see `HealSettings`.
        others: other pictures to judge on, batches or a tensor; with labels also top-1 is told.
        mean, std, pretrained: as in `sieve`.
        report: gets each row of the log.
        say: gets a sentence on how far it is.

    Raises:
        InputError: pictures that are too few or cannot be read; another healing's files in `out`; accelerate or, for
            adapters, peft is not installed.
        RecipeError: the recipe is empty or makes no sense, or a setting does.
        UnsupportedHost: the model cannot take the recipe.
    """
    folder, settings = check_folder(out), settings or HealSettings()
    found = Recipe.of(recipe).with_hashes()
    words: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
    config, task = prepare(model, found, pictures, folder, settings, **words, say=say)
    weights = train(config, task, folder, report=report)
    found.save(folder / RECIPE)
    say("judging")
    host = copy.deepcopy(model)
    host.load_state_dict(load_file(weights, device=str(next(model.parameters()).device)))
    pair = sieve(model, found, **words), sieve(host, found, **words)
    kind = task.kind.name
    heldout = Judged(*(fidelity(fast, task.dense, load_batches(task.heldout, READ), kind=kind) for fast in pair))
    elsewhere = None if others is None else judged(model, *pair, others, kind)
    log = read_log(folder, task.name)
    best = max(log, key=lambda row: row[config.best or "step"])
    return Healed(
        recipe=folder / RECIPE,
        weights=weights,
        adapter=folder / ADAPTER if task.adapter is not None else None,
        step=int(best["step"]),
        steps=config.steps(task.samples),
        heldout=heldout,
        others=elsewhere,
        mb=sum(value.nbytes for value in host.state_dict().values()) / 1e6,
        warnings=warnings_of(heldout, elsewhere, classes_shown(task)),
        log=log,
    )


def judged(
    model: nn.Module, before: nn.Module, after: nn.Module, loader: Iterable[Any] | Tensor, kind: str | None = None
) -> Judged:
    """Both on the same pictures, with top-1 where all of these have labels.

    Raises:
        InputError: nothing to read.
    """
    batches = loader.split(READ) if isinstance(loader, Tensor) else loader
    batches = list(batches) if isinstance(batches, Iterator) else batches  # it is gone through three times
    dense, known = [], True
    with evaluating(model):
        for answers in forward_batches([model], batches):
            dense.append(answers.outputs[0])
            known = known and answers.kind(kind).labelled(answers.labels)
    if not dense:
        raise nothing_read(batches)
    k = 1 if known and dense[0].ndim == 2 else None
    return Judged(*(fidelity(fast, torch.cat(dense), batches, k=k, kind=kind) for fast in (before, after)))


def classes_shown(task: Heal) -> tuple[int, int] | None:
    """How many classes make up nine tenths of the dense model's answers to the pictures, and how many there are."""
    if not task.kind.classes or task.taught.ndim != 3:
        return None
    counts = task.taught[:, 0].argmax(1).bincount().sort(descending=True).values
    return int((counts.cumsum(0) < MOST * counts.sum()).sum()) + 1, task.taught.shape[2]


def warnings_of(heldout: Judged, others: Judged | None, shown: tuple[int, int] | None) -> tuple[str, ...]:
    """What is to be said of a healing: that it bent the model to the pictures' own classes, or that nobody can tell."""
    said = []
    if likeness(heldout.after) <= likeness(heldout.before):
        said.append(
            "On pictures that were held out the answers are no more alike than before: keep the recipe without these "
            "weights, or heal on more pictures, longer, or at a smaller lr."
        )
    if others is not None:
        before, after = others.before, others.after
        lost = likeness(before) - likeness(after)
        if lost > 0 or after.divergence > before.divergence:
            said.append(
                f"On the other pictures the answers are less alike than before healing ({likeness(before):.1f} to "
                f"{likeness(after):.1f} %, divergence {before.divergence:.4f} to {after.divergence:.4f}): the model "
                "was bent to the pictures that it was healed on. Heal on pictures like those that it will see."
            )
        if after.accuracy is not None and after.changes[1] > 0 and lost > 0:
            said.append(
                f"Top-1 rose above the dense model's ({after.changes[1]:+.1f} points) while agreement fell: that is no "
                "better model, but one that names the classes of its pictures more often."
            )
    elif shown is not None and shown[0] < FEW * shown[1]:
        said.append(
            f"The pictures are of few classes: {shown[0]} of {shown[1]} make up {MOST:.0%} of the dense model's "
            "answers. What was learnt may hold for these alone: judge on other pictures too (others=, --others)."
        )
    return tuple(said)
