"""Settings of a training, the same for all tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import RecipeError, nearest

SCHEDULES = ("cosine", "poly", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
NEUTRAL = ("workers", "checkpoint_every")
"""Settings that do not change the result."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
        epochs: passes over the samples; may be fractional.
        batch_size: samples in an optimizer step, over all devices and accumulation steps.
        accumulation: gradient accumulation steps in an optimizer step, which need less memory.
        optimizer: its name in timm.
        optimizer_args: further arguments of the optimizer, such as {"betas": (0.9, 0.99)}.
        lr: learning rate after the warm-up.
        weight_decay: weight decay; biases, norms and parameters that the model excludes have none.
        decay_all: apply weight decay to biases and norms too.
        layer_decay: factor of the learning rate from each layer to the one before; None for one rate.
        lr_scales: factor of the learning rate by prefix of a parameter's name, such as {"decode_head": 10.0}.
        schedule: "cosine", "poly" or "constant", from the end of the warm-up to the last step.
        min_lr: learning rate at which "cosine" and "poly" end.
        power: exponent of "poly".
        warmup: steps in which the learning rate grows linearly.
        clip: largest norm of the gradient of all parameters; None: no clipping.
        precision: "bf16" or "fp32" for the forward; "auto" is bf16 if the device supports it. Weights stay fp32.
        ema: decay of the moving average of the weights, smaller in the first steps; the average is validated and
            saved. None: no average.
        seed: random seed of order, augmentation and dropout.
        validate_every: steps between validations, each a row of the log.
        best: a column of the log, a metric to maximise; the weights of the best validation are saved. None: the last
            weights.
        patience: consecutive validations without a larger `best` before early stopping; None: no early stopping.
        checkpoint_every: steps between checkpoints; None: one at each validation.
        workers: data loader processes; 0 loads batches in the training process.

    Raises:
        RecipeError: an invalid setting.
    """

    epochs: float = 1
    batch_size: int = 64
    accumulation: int = 1
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    weight_decay: float = 0.05
    decay_all: bool = False
    layer_decay: float | None = None
    lr_scales: dict[str, float] = field(default_factory=dict)
    schedule: str = "cosine"
    min_lr: float = 0.0
    power: float = 0.9
    warmup: int = 0
    clip: float | None = 1.0
    precision: str = "auto"
    ema: float | None = None
    seed: int = 0
    validate_every: int = 250
    best: str | None = None
    patience: int | None = None
    checkpoint_every: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        at_least = {
            "batch_size": 1, "accumulation": 1, "validate_every": 1, "checkpoint_every": 1, "patience": 1,
            "warmup": 0, "seed": 0, "workers": 0, "weight_decay": 0, "min_lr": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise RecipeError(f"{name} must be at least {least}, not {value}.")
        for name in ("epochs", "lr", "power", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RecipeError(f"{name} must be above 0, not {value}.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise RecipeError(f"layer_decay must lie in (0, 1], not {self.layer_decay}.")
        for name, scale in self.lr_scales.items():
            if not scale > 0:
                raise RecipeError(f"lr_scales must be above 0, not {scale} of {name}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise RecipeError(f"ema must lie between 0 and 1, not {self.ema}.")
        if self.patience is not None and self.best is None:
            raise RecipeError("patience needs a metric that decides which validation is better: set best.")
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise RecipeError(
                    f"{name} must be one of {', '.join(choices)}, not {value!r}{nearest(value, choices)}."
                )

    def steps(self, samples: int) -> int:
        """Number of optimizer steps, if an epoch has `samples` samples."""
        return max(1, round(self.epochs * samples) // self.batch_size)

    def course(self) -> dict[str, Any]:
        """The settings that affect the result: a training resumes only with equal ones."""
        return {name: value for name, value in asdict(self).items() if name not in NEUTRAL}
