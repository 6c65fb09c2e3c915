"""Healing: self-distillation of a sieved model from its dense outputs, on pictures without labels.

The loss is the divergence that `measure.comparison` measures for this kind of output: KL(dense || sieved) of class
probabilities, for example.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .._files import make_folder
from ..data import load_batches
from ..errors import RecipeError, nearest
from ..measure.comparison import OutputKind, check_shapes, kind_of
from ..measure.fidelity import Fidelity, fidelity
from ..measure.outputs import as_output, classifies, collect_outputs, evaluating, field_of
from ..recipe import Recipe
from ..stream import Sieved, sieve
from .config import TrainConfig
from .loop import computes_in_bf16, devices
from .lora import Adapter
from .task import Loss
from .teacher import Teacher, remember
from .views import READ, ViewBatches, Views, counted, every_batch, fingerprint, set_of, split

SCORE = "heldout_score"
"""Column of the log that selects the best weights: `likeness` in percent minus the divergence, which breaks ties."""
ADAPTER = "adapter"
"""Folder of the adapters, beside the healed weights."""
TRAINABLE = ("all", "lora", "norms")
RATES = {"all": 2e-5, "lora": 2e-4, "norms": 2e-4}
"""Learning rate for each of `TRAINABLE`. Larger ones overfit the model to the classes of the pictures."""


INTERPOLATIONS = (1.0, 0.75, 0.5)
"""Points between the original weights (0) and the trained ones (1) that are tried at the end; see `Heal.weights`."""


@dataclass(frozen=True)
class HealSettings:
    """Settings of healing.

    Attributes:
        trainable: "all" parameters, low-rank adapters of the linear layers ("lora", which needs peft), or "norms" and
            biases only.
        epochs: passes over the pictures, each with another view of every picture.
        batch_size: pictures per step.
        lr: learning rate after the warm-up; None: that of `RATES`.
        rank: rank of the adapters.
        views: number of views of each picture: whole, mirrored, cropped, cropped and mixed, then further crops.
        mixed: mix every second view from the fourth on with a crop of another picture.
        ema: decay of the moving average of the weights, which is saved; None: the weights themselves are saved.
        holdout: share of the pictures for validation, at most 500 pictures.
        validations: number of validations.
        patience: validations without improvement before early stopping; None: no early stopping.
        precision: as in `TrainConfig`.
        seed: random seed of order, crops, held-out pictures and adapters.
        workers: data loader processes.
    """

    trainable: str = "all"
    epochs: float = 8
    batch_size: int = 32
    lr: float | None = None
    rank: int = 16
    views: int = 4
    mixed: bool = True
    ema: float | None = 0.995
    holdout: float = 0.1
    validations: int = 10
    patience: int | None = 4
    precision: str = "auto"
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        if self.trainable not in TRAINABLE:
            raise RecipeError(
                f"trainable must be one of {', '.join(TRAINABLE)}, not {self.trainable!r}"
                f"{nearest(self.trainable, TRAINABLE)}."
            )
        for name in ("rank", "views", "validations"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.holdout < 1:
            raise RecipeError(f"holdout must lie between 0 and 1, not {self.holdout}.")

    def config(self, samples: int) -> TrainConfig:
        """Settings of the loop for `samples` pictures."""
        steps = max(1, round(self.epochs * samples) // self.batch_size)
        return TrainConfig(
            epochs=self.epochs, batch_size=self.batch_size, optimizer_args={"betas": (0.9, 0.99)},
            lr=self.lr or RATES[self.trainable], weight_decay=0.0, warmup=min(100, steps // 10), ema=self.ema,
            precision=self.precision, seed=self.seed, validate_every=max(1, -(-steps // self.validations)),
            best=SCORE, patience=self.patience, workers=self.workers,
        )  # fmt: skip


class Heal:
    """The task: match the dense model's outputs under a recipe.

    Args:
        fast: a sieved copy of the host, whose trainable parameters require gradients.
        kind: kind of its outputs.
        views: views of the training pictures.
        taught: the dense model's targets for the views (N, views, ...).
        heldout: M pictures for validation.
        dense: the dense model's outputs on those (M, ...).
        identity: see `Task`.
        adapter: the low-rank adapters, if these are trained.
    """

    name = "model"

    def __init__(
        self,
        fast: Sieved,
        kind: OutputKind,
        views: Views,
        taught: Tensor,
        heldout: Any,
        dense: Tensor,
        identity: str,
        adapter: Adapter | None = None,
    ) -> None:
        self.module: Any = fast
        self.identity, self.samples = identity, len(views.pictures)
        self.kind, self.views, self.taught, self.adapter = kind, views, taught, adapter
        self.heldout, self.dense = heldout, dense
        self.original = {
            name: value.detach().clone() for name, value in fast.model.named_parameters() if value.requires_grad
        }
        self.interpolation = 1.0
        """The point of `INTERPOLATIONS` whose weights were saved."""

    def batches(self, size: int, count: int, seed: int) -> Dataset[Any]:
        return ViewBatches(self.views, self.taught, size, count, seed)

    def loss(self, module: Any, batch: tuple[Tensor, Tensor]) -> Loss:
        images, taught = batch
        module.eval()  # without dropout and stochastic depth, as in inference
        outputs = as_output(module(images), module, len(images))
        check_shapes(taught, outputs)
        return Loss(self.kind.divergence(taught, outputs).mean(), {})

    def evaluate(self, module: Any) -> dict[str, float]:
        result = fidelity(module, self.dense, load_batches(self.heldout, READ), kind=self.kind.name)
        score = likeness(result)
        return {"heldout_divergence": result.divergence, "heldout_likeness": score, SCORE: score - result.divergence}

    def weights(self, module: Any) -> dict[str, Tensor]:
        """The state dict to save: of the trained weights, or of weights between them and the original ones, whichever
        have the lowest divergence on the held-out pictures (Wortsman et al., CVPR 2022). Adapters are not interpolated.
        """
        if self.adapter is not None:
            return self.adapter.finish(module)
        trained = own_state(module.model)
        divergences = {}
        for point in INTERPOLATIONS:
            self._interpolate(module.model, trained, point)
            divergences[point] = self.evaluate(module)["heldout_divergence"]
        self.interpolation = min(divergences, key=divergences.__getitem__)
        self._interpolate(module.model, trained, self.interpolation)
        return own_state(module.model)

    @torch.no_grad()
    def _interpolate(self, model: nn.Module, trained: dict[str, Tensor], point: float) -> None:
        """Set the parameters that were trained to those at a point between the original and the trained ones."""
        parameters = dict(model.named_parameters())
        for name, value in self.original.items():
            parameters[name].copy_(torch.lerp(value.to(parameters[name]), trained[name], point))


def likeness(result: Fidelity) -> float:
    """Agreement in percent, of classes or, for embeddings, of nearest neighbours; otherwise the cosine times 100."""
    for value in (result.agreement, result.neighbours):
        if value is not None:
            return value
    return 100 * result.cosine


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with all tensors cloned: safetensors does not accept tensors that share memory (tied weights)."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def prepare(
    model: nn.Module,
    recipe: str | os.PathLike[str] | Recipe | Any,
    pictures: Any,
    folder: Path,
    settings: HealSettings,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[TrainConfig, Heal]:
    """The configuration and task for `loop.train`; saves the dense model's targets in `folder`, a file per view.

    Arguments and errors as for `healing.heal`.
    """
    state = devices()
    if not state.is_main_process:
        say = lambda _: None  # noqa: E731  (only the first process prints)
    host = copy.deepcopy(model)
    host.requires_grad_(settings.trainable == "all")
    if settings.trainable == "norms":
        for parameter in host.parameters():
            parameter.requires_grad_(parameter.ndim < 2)
    torch.manual_seed(settings.seed)
    adapter = Adapter(host, settings.rank, folder / ADAPTER) if settings.trainable == "lora" else None
    fast = sieve(host, recipe, mean=mean, std=std, pretrained=pretrained)
    if not fast.plan.methods:
        raise RecipeError("The recipe is empty: the dense model has nothing to heal.")
    pictures = set_of(pictures)
    known, heldout = split(pictures, settings.holdout, settings.seed)
    kind = _kind(model, known)
    views = Views(known, settings.views, mixed=settings.mixed, seed=settings.seed)
    say(f"reading {len(pictures)} pictures")
    prints = fingerprint(pictures, settings.workers)
    bf16 = computes_in_bf16(settings.precision, state.device.type)
    name, target = type(model).__name__, partial(_target, model=model, kind=kind)
    teacher = Teacher(model, name, target, state.device, bf16=bf16)
    targets: list[Tensor] = []
    with state.local_main_process_first():  # one process runs the teacher, the others read its file
        make_folder(folder)
        for view in range(settings.views):
            content = f"view {view} of {views.description}, pictures {prints}, held out {len(heldout)}"
            description = f"view {view + 1} of {settings.views}"
            batches = counted(views.of(view, READ, settings.workers), len(known), description, say)
            targets.append(remember(teacher, batches, content, folder / f"dense-{view}.safetensors"))
    say(f"running the dense model on {len(heldout)} held-out pictures")
    dense = collect_outputs(model, every_batch(heldout, READ))
    setting_values = {**asdict(settings), "workers": 0}
    run = f"{views.description}, pictures {prints}, {sorted(setting_values.items())}"
    identity = f"{teacher.identity}, {fast.recipe.to_json()}, {run}"
    task = Heal(fast, kind, views, torch.cat(targets, 1), heldout, dense, identity, adapter)
    return settings.config(len(known)), task


def _target(output: Any, model: nn.Module, kind: OutputKind) -> Tensor:
    """The target from an output, in half precision: log-probabilities of classes, otherwise the output itself."""
    tensor = as_output(output, model)
    return (tensor.float().log_softmax(1) if kind.classes else tensor).half()


@torch.no_grad()
def _kind(model: nn.Module, pictures: Any) -> OutputKind:
    """The kind of a model's outputs, from one picture."""
    weight, image = next(model.parameters()), pictures[0][0]
    with evaluating(model):
        output = model(image[None].to(weight.device, weight.dtype))
    return kind_of(as_output(output, model, 1), classifies(model, output), field_of(output))
