"""The one training loop. accelerate knows the devices, timm optimizers, schedules and the moving average."""

from __future__ import annotations

import atexit
import csv
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import timm.optim
import timm.scheduler
import timm.utils
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .._devices import lacks_units
from .._files import draft
from ..errors import InputError, RecipeError, SieveError, cause
from .config import TrainConfig
from .task import Task, batch_seed

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

AHEAD = 8
"""Batches that each worker makes ahead."""
KEPT = ("step", "seconds", "rows", "sums", "since", "best", "waited")
"""Attributes of a training that its checkpoint holds, beside the states of its parts."""


def train(config: TrainConfig, task: Task, folder: Path, *, report: Callable[[dict[str, Any]], object] = print) -> Path:
    """Train, or go on from the checkpoint in `folder`; returns the file of weights, NAME.safetensors.

    Beside it `NAME.csv` gets a row at each validation: step, images, seconds, then means of the loss and of what the
    task logs, then its metrics. `report` gets each row, before its checkpoint is written. Interrupted at any point, on
    the CPU a training ends with the weights and the curve of an uninterrupted one, to the bit.

    Under `accelerate launch` the devices share each batch; the first process reports and writes.

    Raises:
        InputError: the folder's checkpoint was made by another training; samples that cannot be read; a loss that is
            no number any more; accelerate is not installed.
        RecipeError: a batch that cannot be shared evenly, an unknown optimizer, arguments it does not have.
    """
    return _Training(config, task, folder, report).run()


class _Step(nn.Module):
    """The loss as a forward, so that the wrappers of several devices see all of a step, whatever a task calls in it."""

    def __init__(self, task: Task, half: bool, device: str) -> None:
        super().__init__()
        self.module, self._loss = task.module, task.loss
        self._half, self._device = half, device

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        # torch's own autocast: accelerate's is one setting for the whole process, once and for all.
        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            loss = self._loss(self.module, batch)
        return loss.value, {name: value.detach() for name, value in loss.logged.items()}


class _Training:
    def __init__(
        self, config: TrainConfig, task: Task, folder: Path, report: Callable[[dict[str, Any]], object]
    ) -> None:
        self.config, self.task, self.report = config, task, report
        self.accelerator = _accelerator(config)
        self.total = config.steps(task.samples)
        self.weights, self.checkpoint, self.log = (
            folder / f"{task.name}{ending}" for ending in (".safetensors", ".checkpoint.pt", ".csv")
        )
        device, devices = self.accelerator.device.type, self.accelerator.num_processes
        if config.batch_size % (config.accumulation * devices):
            raise RecipeError(
                f"batch_size {config.batch_size} cannot be shared evenly by {devices} devices in {config.accumulation} "
                f"parts each: make it a multiple of {config.accumulation * devices}."
            )
        self.model = self.accelerator.prepare_model(_Step(task, computes_in_bf16(config.precision, device), device))
        self.optimizer = make_optimizer(task.module, config)
        self.schedule = make_schedule(self.optimizer, config, self.total)
        self.average = None
        if config.ema is not None:
            self.average = timm.utils.ModelEmaV3(task.module, decay=config.ema, use_warmup=True)
        self.step, self.seconds, self.rows = 0, 0.0, list[dict[str, Any]]()
        self.sums, self.since = dict[str, Tensor](), 0
        """Sums of logged values since the last validation, and the number of batches."""
        self.best: dict[str, Any] | None = None
        """The best validation so far: its metric, its step, and the weights then; where `config.best` names one."""
        self.waited = 0
        """Validations since then."""
        self.norms = torch.zeros((), device=self.accelerator.device)
        """Gradient norms, only to see whether each is finite."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._resume()

    @property
    def learnt(self) -> Any:
        """The module that is validated and written."""
        return self.task.module if self.average is None else self.average.module

    @property
    def _given_up(self) -> bool:
        """Whether nothing has become better for as long as the settings wait."""
        return self.config.patience is not None and self.waited >= self.config.patience

    def run(self) -> Path:
        config, batches, start = self.config, self._batches(), perf_counter() - self.seconds
        while self.step < self.total and not self._given_up:
            self._learn(batches)
            last = self.step == self.total
            validating = last or self.step % config.validate_every == 0
            every = config.checkpoint_every
            if validating:
                self._validate(start)
                last = last or self._given_up
            if last or (validating if every is None else self.step % every == 0):
                self.seconds = perf_counter() - start
                self._save()
        if self.best is not None:
            self.learnt.load_state_dict(self.best["state"])
        if self.accelerator.is_main_process:
            state = self.task.weights(self.learnt)
            with draft(self.weights) as file:
                save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, file)
        self.accelerator.wait_for_everyone()
        return self.weights

    def _learn(self, batches: Iterator[tuple[int, Any]]) -> None:
        """One step of the optimizer."""
        config, parts = self.config, self.config.accumulation
        # The first step of a warm-up has a rate already; timm counts from one of 0.
        self.schedule.step_update(self.step + 1 if self.step < config.warmup else self.step)
        self.task.module.train()
        for step_part in range(parts):
            number, batch = next(batches)
            # Dropout is seeded by batch: a resumed training repeats it. Negative, for `batches` uses the other seeds.
            torch.manual_seed(-1 - batch_seed(config.seed, number))
            with nullcontext() if step_part == parts - 1 else self.accelerator.no_sync(self.model):
                loss, logged = self.model(batch)
                self.accelerator.backward(loss)
            for name, value in {"loss": loss.detach(), **logged}.items():
                self.sums[name] = value.float() + self.sums.get(name, 0)
            self.since += 1
        parameters = self.task.module.parameters()
        self.norms += nn.utils.clip_grad_norm_(parameters, math.inf if config.clip is None else config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update(self.task.module, step=self.step)

    def _batches(self) -> Iterator[tuple[int, Any]]:
        """This process's batches from the current step on, with their numbers."""
        config, accelerator = self.config, self.accelerator
        parts = config.accumulation * accelerator.num_processes
        dataset = self.task.batches(config.batch_size // parts, self.total * parts, config.seed)
        first, every = self.step * parts + accelerator.process_index, accelerator.num_processes
        numbers = range(first, self.total * parts, every)
        loader = DataLoader(
            _Caught(dataset, numbers),
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=AHEAD if config.workers else None,
            pin_memory=accelerator.device.type == "cuda",
        )
        from accelerate.utils import send_to_device

        for number, batch in zip(numbers, loader, strict=True):
            if isinstance(batch, SieveError):
                raise InputError(
                    f"{str(batch).rstrip('.')}: training stopped behind step {self.step}, and goes on from its last "
                    "checkpoint once that is mended."
                )
            yield number, send_to_device(batch, accelerator.device, non_blocking=True)

    def _share(self) -> None:
        """Make what was summed up the mean over the devices; raises where it, or a gradient, is no number any more."""
        self.sums = {name: self.accelerator.reduce(value, "mean") for name, value in self.sums.items()}
        if not bool(torch.isfinite(self.norms + self.sums.get("loss", 0))):
            raise InputError(
                f"The loss of {self.task.name}, or its gradient, is no number any more before step {self.step}: begin "
                "again with a smaller lr, a longer warmup or precision fp32. The last checkpoint is from before."
            )

    def _validate(self, start: float) -> None:
        self._share()
        row = {"step": self.step, "images": self.step * self.config.batch_size, "seconds": perf_counter() - start}
        row |= {name: float(value / self.since) for name, value in self.sums.items()}
        self.sums, self.since = {}, 0
        row |= self.task.evaluate(self.learnt)
        self._compare(row)
        self.rows.append(row)
        if self.accelerator.is_main_process:
            self.report({"model": self.task.name, "steps": self.total, **row})
            with draft(self.log) as file:
                _write_csv(file, self.rows)

    def _compare(self, row: dict[str, Any]) -> None:
        """Keep the weights if this validation is the best so far."""
        name = self.config.best
        if name is None:
            return
        if name not in row:
            raise RecipeError(f"{self.task.name} has no metric {name!r}: best must be one of {', '.join(row)}.")
        from accelerate.utils import broadcast_object_list

        value = broadcast_object_list([row[name]])[0]  # the devices must end together
        if self.best is not None and not value > self.best["value"]:
            self.waited += 1
            return
        state = {key: part.detach().cpu().clone() for key, part in self.learnt.state_dict().items()}
        self.best, self.waited = {"value": value, "step": self.step, "state": state}, 0

    def _save(self) -> None:
        self._share()  # weights that are no numbers must not replace a good checkpoint
        if not self.accelerator.is_main_process:
            return
        state: dict[str, Any] = {"config": self.config.course(), "identity": self.task.identity}
        state |= {"module": self.task.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": None if self.average is None else self.average.module.state_dict()}
        state |= {name: getattr(self, name) for name in KEPT}
        with draft(self.checkpoint) as file:
            torch.save(state, file)

    def _resume(self) -> None:
        file, course = self.checkpoint, self.config.course()
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{file} is no checkpoint that can be read ({cause(error)}): delete it to start over."
            ) from error
        state = state if isinstance(state, dict) else {}
        saved_config = state.get("config", {})
        if saved_config != course or state.get("identity") != self.task.identity:
            names = [name for name in course if saved_config and saved_config.get(name) != course[name]]
            reason = f" (other {', '.join(names)})" if names else ""
            raise InputError(
                f"{file} was made by another plan{reason}: give another folder, or delete it to start over."
            )
        self.task.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        for name in KEPT:
            setattr(self, name, state[name])
        self.sums = {name: value.to(self.accelerator.device) for name, value in self.sums.items()}


class _Caught(Dataset[Any]):
    """Some of the batches; what is wrong with one comes as a value, since a worker would bury its sentence."""

    def __init__(self, batches: Any, numbers: range) -> None:
        self.batches, self.numbers = batches, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.batches[self.numbers[index]]
        except SieveError as error:
            return error


def need_accelerate() -> Any:
    """The module accelerate; raises InputError where it is not installed."""
    try:
        import accelerate
    except ImportError as error:
        raise InputError(
            f"Training needs accelerate ({error.name} is not here): pip install 'tokensieve[train]'."
        ) from None
    return accelerate


def devices() -> PartialState:
    """accelerate's word on the devices and processes that a training shares.

    Raises:
        InputError: accelerate is not installed, or does not join the processes that were launched.
    """
    accelerate = need_accelerate()
    on_cpu = accelerate.utils.parse_flag_from_env("ACCELERATE_USE_CPU")  # which a first Accelerator alone looks at
    state = accelerate.PartialState(cpu=on_cpu)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched > 1 and state.num_processes == 1:
        raise InputError(
            f"This is one of {launched} processes that accelerate does not join, each of which would train alone: "
            "launch one, or set ACCELERATE_USE_CPU=1 to have CPUs joined."
        )
    return state


def _accelerator(config: TrainConfig) -> Accelerator:
    state, accelerate = devices(), need_accelerate()
    # A sieved model may leave parts of its host unread, which DistributedDataParallel must know.
    unused = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = accelerate.Accelerator(
        # Where another Accelerator lives in this process its setting stands, and a step's own autocast goes first.
        mixed_precision=None if accelerate.state.is_initialized() else "no",
        gradient_accumulation_steps=config.accumulation,
        kwargs_handlers=[unused],
    )
    kind = str(accelerator.distributed_type.value)
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise InputError(f"Training shares batches among devices, not the model ({kind}): launch it with --multi_gpu.")
    if accelerator.num_processes > 1:
        atexit.register(_leave, state)
    return accelerator


def _leave(state: PartialState) -> None:
    """End the process group: left to the interpreter's end, its threads abort the process now and then."""
    sleep(0.5)  # under torch 2.6 its end holds the lock that a thread still busy with the last collective waits for
    state.destroy_process_group()


def computes_in_bf16(precision: str, device: str) -> bool:
    """Whether a `TrainConfig`'s precision is bfloat16 on a kind of device, "cpu" or "cuda"."""
    if precision != "auto":
        return precision == "bf16"
    if device not in ("cuda", "cpu") or lacks_units("bf16", device):
        return False
    return device == "cuda" or (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_optimizer(module: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer for what of a module is trainable; biases and norms decay only where the settings say so.

    Raises:
        RecipeError: an unknown optimizer, arguments it does not have, nothing trainable, `layer_decay` for a module
            that does not name its layers, or `lr_scales` of parameters that are not there.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise RecipeError(f"{type(module).__name__} has no parameter that requires a gradient: nothing can be learnt.")
    if config.layer_decay is not None and not hasattr(module, "group_matcher"):
        raise RecipeError(
            f"{type(module).__name__} does not say what its layers are (timm's group_matcher): leave layer_decay out."
        )
    settings: dict[str, Any] = {"layer_decay": config.layer_decay, "filter_bias_and_bn": not config.decay_all}
    if config.lr_scales:
        settings = {"param_group_fn": lambda parted: _scaled(parted, config)}
    try:
        return timm.optim.create_optimizer_v2(
            module,
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            **settings,
            **config.optimizer_args,
        )
    except RecipeError:
        raise
    except Exception as error:  # each optimizer refuses in its own way
        arguments = f" with {dict(config.optimizer_args)}" if config.optimizer_args else ""
        raise RecipeError(f"timm cannot make the optimizer {config.optimizer!r}{arguments}: {cause(error)}.") from error


def _scaled(module: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """timm's groups of parameters, parted further by the scale of their learning rate."""
    left = set(getattr(module, "no_weight_decay", set)())
    if config.layer_decay is not None:
        groups = timm.optim.param_groups_layer_decay(
            module,
            config.weight_decay,
            no_weight_decay_list=left,
            weight_decay_exclude_1d=not config.decay_all,
            layer_decay=config.layer_decay,
        )
    elif config.decay_all:
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [{"params": trainable, "weight_decay": config.weight_decay}]
    else:
        groups = timm.optim.param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=left)
    scales = dict.fromkeys(config.lr_scales, False)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    parted: dict[tuple[int, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            prefix = next(
                (scale_prefix for scale_prefix in scales if names[id(parameter)].startswith(scale_prefix)), None
            )
            if prefix is not None:
                scales[prefix] = True
            scale = 1.0 if prefix is None else config.lr_scales[prefix]
            key = number, scale
            if key not in parted:
                parted[key] = {**group, "params": [], "lr_scale": group.get("lr_scale", 1.0) * scale}
            parted[key]["params"].append(parameter)
    if not all(scales.values()):
        absent = next(name for name, groups_found in scales.items() if not groups_found)
        raise RecipeError(f"lr_scales names {absent!r}, and no trainable parameter begins so.")
    return list(parted.values())


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    """timm's scheduler, to be asked for each step by `step_update`."""
    length = max(2, steps - config.warmup)  # at 1 only its beginning is used, which any length has
    warmup = {"warmup_t": config.warmup, "warmup_prefix": True, "t_in_epochs": False}
    if config.schedule == "cosine":
        return timm.scheduler.CosineLRScheduler(optimizer, length, lr_min=config.min_lr, **warmup)
    if config.schedule == "poly":
        return timm.scheduler.PolyLRScheduler(optimizer, length, power=config.power, lr_min=config.min_lr, **warmup)
    return timm.scheduler.StepLRScheduler(optimizer, decay_t=length, decay_rate=1.0, **warmup)


def read_log(folder: Path, name: str) -> list[dict[str, float]]:
    """The rows that training wrote, one for each validation."""
    with (folder / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
