"""Trains a small proposal to rank patches by their importance for a host, on pictures without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from .._files import check_folder
from ..errors import InputError, RecipeError, UnsupportedHost, nearest
from ..measure.fidelity import fidelity
from ..measure.outputs import collect_outputs
from ..methods import PaPr
from ..recipe import Recipe
from ..significance.feature_map import renormalisation
from ..significance.proposal import Proposal
from ..stream import sieve
from ..zoo.nano_proposal import STRIDE, NanoProposal
from .config import TrainConfig
from .heal_task import SCORE, likeness
from .loop import computes_in_bf16, devices, read_log, train
from .rankings import TARGETS, ranking
from .task import Loss, Order, batch_seed
from .teacher import Teacher, remember
from .views import READ, counted, every_batch, fingerprint, set_of, split

NAME = "nano_proposal"
RECIPE = "proposal.json"
VALIDATION_KEEP = 0.5
"""Keep ratio of the recipe with which the maps are validated."""
PAIRS = 8
"""Number of random partners of every patch in `pairwise`."""


@dataclass(frozen=True)
class ProposalSettings:
    """Settings of the training of a proposal.

    Attributes:
        target: measure of importance: "gradient", "attention" or "hidden", see `rankings`.
        loss: "regression" of the normal scores of the target's ranks, "pairwise" order, or "listwise" cross-entropy.
        epochs: passes over the pictures, each mirrored at random.
        batch_size, lr, weight_decay, seed, workers, precision: as in `TrainConfig`.
        holdout: share of the pictures for validation, at most 500 pictures.
        validations: number of validations.
    """

    target: str = "gradient"
    loss: str = "listwise"
    epochs: float = 20
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.02
    seed: int = 0
    workers: int = 0
    precision: str = "auto"
    holdout: float = 0.05
    validations: int = 10

    def __post_init__(self) -> None:
        for name, known in (("target", TARGETS), ("loss", LOSSES)):
            value = getattr(self, name)
            if value not in known:
                raise RecipeError(f"{name} must be one of {', '.join(known)}, not {value!r}{nearest(value, known)}.")

    def config(self, samples: int) -> TrainConfig:
        """Settings of the loop for `samples` pictures."""
        steps = max(1, round(self.epochs * samples) // self.batch_size)
        return TrainConfig(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=self.weight_decay,
            warmup=min(50, steps // 10), ema=0.99, precision="fp32", seed=self.seed,
            validate_every=max(1, -(-steps // self.validations)), best=SCORE, workers=self.workers,
        )  # fmt: skip


def normal_scores(maps: Tensor) -> Tensor:
    """Maps (B, P) -> the normal quantiles of their ranks (B, P), so that outliers do not dominate the gradient."""
    ranks = maps.argsort(1).argsort(1).float()
    return torch.special.ndtri((ranks + 0.5) / maps.shape[1])


def regression(scores: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of scores (B, P), centred, to the normal scores of the target (B, P)."""
    return F.mse_loss(scores - scores.mean(1, keepdim=True), normal_scores(target))


def pairwise(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the order of pairs of patches (Burges et al., RankNet, 2005), weighted by the difference."""
    target, total, weight = normal_scores(target), scores.new_zeros(()), scores.new_zeros(())
    for _ in range(PAIRS):
        partner = torch.randperm(scores.shape[1], device=scores.device)
        difference = target - target[:, partner]
        total = total + (difference.abs() * F.softplus(-(scores - scores[:, partner]) * difference.sign())).sum()
        weight = weight + difference.abs().sum()
    return total / weight


def listwise(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the softmax over the patches of a picture (Cao et al., ListNet, 2007)."""
    return -(normal_scores(target).softmax(1) * scores.log_softmax(1)).sum(1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "regression": regression,
    "pairwise": pairwise,
    "listwise": listwise,
}


class Ranker(Teacher):
    """A host as a teacher; its targets are the importance of each patch for its output, (B, P)."""

    def __init__(self, model: nn.Module, target: str, device: Any, bf16: bool, seed: int) -> None:
        super().__init__(model, type(model).__name__, device=device, bf16=bf16)
        self.ranked = ranking(target, sieve(self.model), seed)
        self.identity += f", {target} of seed {seed}"

    def predict(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.ranked(images.to(self.device)).float().cpu()


class RankPatches:
    """The task: rank a picture's patches by their importance for the host.

    Args:
        model: the host.
        known, heldout: pictures for training and for validation, as the host reads them.
        targets: (N, P) for the training pictures.
        grid: height and width of the grid of P patches.
        norms: mean and std with which the pictures are normalised.
        loss: a name in `LOSSES`.
        identity: see `Task`.
    """

    name = NAME

    def __init__(
        self,
        model: nn.Module,
        known: Any,
        heldout: Any,
        targets: Tensor,
        grid: tuple[int, int],
        norms: tuple[Sequence[float], Sequence[float]],
        loss: str,
        identity: str,
    ) -> None:
        self.module: Any = NanoProposal()
        self.identity, self.samples = identity, len(known)
        self.model, self.known, self.targets, self.grid = model, known, targets, grid
        self.heldout = list(every_batch(heldout, READ))
        self.dense = collect_outputs(model, self.heldout)
        self._loss = LOSSES[loss]
        self.size = (grid[0] * STRIDE, grid[1] * STRIDE)
        config = self.module.pretrained_cfg
        self.affine = renormalisation(*norms, Proposal(self.module, NAME, mean=config["mean"], std=config["std"]))

    def maps(self, module: Any, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) as the host reads them -> the proposal's score of each patch, (B, P)."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=True)
        if self.affine is not None:
            scale, shift = (value.to(images.device) for value in self.affine)
            images = images * scale + shift
        return module.features(images).flatten(1)

    def batches(self, size: int, count: int, seed: int) -> Dataset[Any]:
        return _Batches(self, size, count, seed)

    def loss(self, module: Any, batch: tuple[Tensor, Tensor]) -> Loss:
        images, target = batch
        return Loss(self._loss(self.maps(module, images).float(), target), {})

    @torch.no_grad()
    def evaluate(self, module: Any) -> dict[str, float]:
        module.eval()
        fast = sieve(self.model, PaPr(keep=VALIDATION_KEEP, significance=lambda images: self.maps(module, images)))
        result = fidelity(fast, self.dense, self.heldout)
        score = likeness(result)
        return {"heldout_divergence": result.divergence, "heldout_likeness": score, SCORE: score - result.divergence}

    def weights(self, module: Any) -> dict[str, Tensor]:
        return dict(module.state_dict())


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """Pictures with their targets, both mirrored in half of the cases."""

    def __init__(self, task: RankPatches, size: int, count: int, seed: int) -> None:
        self.task, self.size, self.count, self.seed = task, size, count, seed
        self.order = Order(task.samples, seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rows = [self.order[position] for position in range(number * self.size, (number + 1) * self.size)]
        mirrored = torch.rand(len(rows), generator=torch.Generator().manual_seed(batch_seed(self.seed, number))) < 0.5
        images = torch.stack([self.task.known[row][0] for row in rows])
        maps = self.task.targets[rows].unflatten(1, self.task.grid)
        flip = mirrored[:, None, None, None]
        maps = torch.where(flip[:, 0], maps.flip(2), maps)
        return torch.where(flip, images.flip(3), images), maps.flatten(1)


@dataclass(frozen=True)
class LearntProposal:
    """The result of `train_proposal`: the weights, a recipe that uses them, and the rows of the training log."""

    weights: Path
    recipe: Path
    log: list[dict[str, float]]


def prepare(
    model: nn.Module,
    pictures: Any,
    folder: Path,
    settings: ProposalSettings,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[TrainConfig, RankPatches]:
    """The configuration and task for `loop.train`; saves the host's targets in `folder`.

    Arguments and errors as for `train_proposal`.
    """
    state = devices()
    if not state.is_main_process:
        say = lambda _: None  # noqa: E731  (only the first process prints)
    known, heldout = split(set_of(pictures), settings.holdout, settings.seed)
    dense, image = sieve(model), known[0][0]
    if dense.units != "tokens" or len(image.shape) != 3:
        raise UnsupportedHost(
            f"{type(model).__name__} is not a plain ViT that reads pictures: a proposal cannot be trained for it."
        )
    ((height, width),) = dense.sizes(image[None])
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = mean or config.get("mean"), std or config.get("std")
    if mean is None or std is None:
        raise InputError("A proposal needs the normalisation of its pictures: give mean= and std=.")
    say(f"reading {len(known) + len(heldout)} pictures")
    prints = fingerprint(known, settings.workers), fingerprint(heldout, settings.workers)
    bf16 = computes_in_bf16(settings.precision, state.device.type)
    with state.local_main_process_first():  # one process runs the teacher, the others read its file
        ranker = Ranker(model, settings.target, state.device, bf16, settings.seed)
        batches = counted(
            ((batch.images,) for batch in every_batch(known, READ)), len(known), "importance of patches", say
        )
        targets = remember(ranker, batches, f"pictures {prints[0]}", folder / f"patches-{settings.target}.safetensors")
    torch.manual_seed(settings.seed)
    setting_values = sorted({**asdict(settings), "workers": 0}.items())
    identity = f"{ranker.identity}, pictures {prints}, normalised by {mean} and {std}, {setting_values}"
    task = RankPatches(model, known, heldout, targets[:, 0], (height, width), (mean, std), settings.loss, identity)
    return settings.config(len(known)), task


def train_proposal(
    model: nn.Module,
    pictures: Any,
    out: str | os.PathLike[str],
    settings: ProposalSettings | None = None,
    *,
    keep: float = 0.7,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    report: Callable[[dict[str, Any]], object] = lambda _: None,
    say: Callable[[str], object] = lambda _: None,
) -> LearntProposal:
    """Train a tiny ConvNet to rank patches by their importance for a host; labels are not used.

    The importance of each patch is computed once for each picture; then the ConvNet is trained on this ranking. After
    an interruption the same call resumes.

    Args:
        model: the host, a plain ViT that reads pictures.
        pictures: as for `heal`.
        out: a folder for `nano_proposal.safetensors`, the log, the checkpoint, and `proposal.json`, the recipe
            `papr(keep=..., proposal=nano_proposal, proposal_weights=...)`.
        settings: see `ProposalSettings`.
        keep: keep ratio of the recipe.
        mean, std: normalisation of the pictures; by default that of timm's `pretrained_cfg`.
        report: called with each row of the log.
        say: called with messages about the progress.

    Raises:
        InputError: too few or unreadable pictures, files of another training in `out`, accelerate is not installed.
        UnsupportedHost: the host is not a plain ViT, or has no class token for the target `attention`.
    """
    folder, settings = check_folder(out), settings or ProposalSettings()
    config, task = prepare(model, pictures, folder, settings, mean=mean, std=std, say=say)
    weights = train(config, task, folder, report=report)
    image = task.known[0][0]
    size = None if tuple(image.shape[1:]) == task.size else task.size
    recipe = Recipe.of(PaPr(keep=keep, proposal=NAME, proposal_weights=weights, proposal_size=size)).with_hashes()
    return LearntProposal(weights, recipe.save(folder / RECIPE), read_log(folder, NAME))
