"""The one training loop: AdamW, warm-up and a cosine, bf16 where the CPU has it, a checkpoint at each validation."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..files import draft


@dataclass(frozen=True)
class Plan:
    """How one model is trained: AdamW, linear warm-up, then a cosine to zero."""

    name: str
    images: int
    """Images seen, each as often as the task has it."""
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.05
    warmup: int = 200
    """Steps."""
    seed: int = 0
    every: int = 250
    """Steps between validations and checkpoints."""
    validation: int = 1000
    """Images of the validation split that are looked at on the way."""
    task: str = ""
    """What else decides how it goes, where a task has settings of its own."""

    @property
    def steps(self) -> int:
        return max(1, self.images // self.batch)


class Losses(NamedTuple):
    """Scalars: what is minimised, the part of it that images as a whole have, and the share of them answered right."""

    all: Tensor
    images: Tensor
    right: Tensor


class Task(Protocol):
    """What is learnt from what."""

    module: Any
    """The model, as `module.model`, among what else is needed to learn and is thrown away."""

    def batches(self, plan: Plan) -> Dataset[Any]:
        """Whole batches, as many as the plan has steps, the same whenever they are asked for."""

    def losses(self, batch: Any) -> Losses:
        """Of one batch, under autocast."""

    def top1(self, plan: Plan) -> float:
        """Percentage of the validation images that the model answers right; leaves it in eval mode."""


def train(
    plan: Plan, task: Task, folder: Path, *, workers: int = 1, report: Callable[[dict[str, Any]], None] = print
) -> Path:
    """Train by plan, or go on from the checkpoint in `folder`; returns the file of weights, fp16 safetensors.

    Beside it `NAME.csv` gets a row at each validation: step, images, seconds, losses, accuracies.

    Raises:
        InputError: the folder's checkpoint was made by another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{plan.name}.checkpoint.pt", folder / f"{plan.name}.csv"
    module = task.module
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": plan.decay},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99))
    step, seconds, rows = 0, 0.0, list[dict[str, Any]]()
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if Plan(**state["plan"]) != plan:
            raise InputError(f"{checkpoint} was made by another plan: give another folder, or delete it to start over.")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, rows = state["step"], state["seconds"], state["rows"]

    half = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    start, sums, since = perf_counter() - seconds, torch.zeros(3), 0
    for batch in _from(task.batches(plan), step, workers):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(step, plan)
        module.train()
        # Dropout is the step's own, interrupted or not; below zero, so that it is not the chance batches are made with.
        torch.manual_seed(-1 - plan.seed * 1_000_003 - step)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = task.losses(batch)
        losses.all.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, since = step + 1, since + 1
        sums += torch.stack(losses).detach()
        if step % plan.every == 0 or step == plan.steps:
            mean = (sums / since).tolist()
            sums, since = torch.zeros(3), 0
            row = {"step": step, "images": step * plan.batch, "seconds": perf_counter() - start}
            row |= {"loss": mean[0], "image_loss": mean[1], "train_top1": 100 * mean[2]}
            row["validation_top1"] = task.top1(plan)
            rows.append(row)
            report({"model": plan.name, "steps": plan.steps, **row})
            state = {"plan": asdict(plan), "module": module.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step, "seconds": row["seconds"], "rows": rows}
            with draft(checkpoint) as file:
                torch.save(state, file)
            with draft(log) as file:
                _write_csv(file, rows)
    weights = folder / f"{plan.name}.safetensors"
    half_state = {
        key: value.half() if value.is_floating_point() else value for key, value in module.model.state_dict().items()
    }
    with draft(weights) as file:
        save_file(half_state, file)
    return weights


class _Rest(Dataset[Any]):
    def __init__(self, batches: Any, first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def __getitem__(self, index: int) -> Any:
        return self.batches[self.first + index]


def _from(batches: Dataset[Any], first: int, workers: int) -> Iterator[Any]:
    """The batches from step `first` on: the same images whether training was interrupted or not."""
    ahead = 8 if workers else None
    yield from DataLoader(_Rest(batches, first), batch_size=None, num_workers=workers, prefetch_factor=ahead)


def _schedule(step: int, plan: Plan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - plan.warmup) / max(1, plan.steps - plan.warmup))


def read_log(folder: Path, name: str) -> list[dict[str, float]]:
    """The rows that training wrote, one for each validation."""
    with (folder / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
