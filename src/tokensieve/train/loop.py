"""The training loop. accelerate handles the devices; timm has optimizers, schedules and the moving average."""

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

PREFETCH = 8
"""Number of batches that each worker prefetches."""
CHECKPOINTED = ("step", "seconds", "rows", "sums", "since", "best", "waited")
"""Attributes of `_Training` that a checkpoint holds in addition to the state dicts."""


def train(config: TrainConfig, task: Task, folder: Path, *, report: Callable[[dict[str, Any]], object] = print) -> Path:
    """Train, or resume from the checkpoint in `folder`; returns the path of the weights, NAME.safetensors.

    `NAME.csv` in the same folder gets a row at each validation: step, images, seconds, then means of the loss and of
    the task's logged values, then its metrics. `report` is called with each row, before its checkpoint is written. On
    the CPU a training that was interrupted and resumed ends with bit-equal weights and log.

    Under `accelerate launch` the devices share each batch; the first process reports and writes.

    Raises:
        InputError: the folder has the checkpoint of another training; samples that cannot be read; a loss that is not
            finite; accelerate is not installed.
        RecipeError: a batch size that cannot be divided evenly, an unknown optimizer, or arguments it does not have.
    """
    return _Training(config, task, folder, report).run()


class _Step(nn.Module):
    """Computes the loss in its forward, so that wrappers such as DistributedDataParallel cover the whole step."""

    def __init__(self, task: Task, half: bool, device: str) -> None:
        super().__init__()
        self.module, self._loss = task.module, task.loss
        self._half, self._device = half, device

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        # torch's own autocast: accelerate's is set once for the whole process.
        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            loss = self._loss(self.module, batch)
        return loss.value, {name: value.detach() for name, value in loss.logged.items()}


class _Training:
    """The state of one training, and its loop."""

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
        """The best validation so far, if `config.best` names a metric: its value, its step and the state dict then."""
        self.waited = 0
        """Number of validations since the best one."""
        self.norms = torch.zeros((), device=self.accelerator.device)
        """Sum of gradient norms, which is not finite after a non-finite gradient."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._resume()

    @property
    def validated_module(self) -> Any:
        """The module that is validated and saved: the trained one, or its moving average."""
        return self.task.module if self.average is None else self.average.module

    @property
    def _stops_early(self) -> bool:
        """Whether the last `config.patience` validations brought no improvement."""
        return self.config.patience is not None and self.waited >= self.config.patience

    def run(self) -> Path:
        config, batches, start = self.config, self._batches(), perf_counter() - self.seconds
        while self.step < self.total and not self._stops_early:
            self._train_step(batches)
            finished = self.step == self.total
            validating = finished or self.step % config.validate_every == 0
            checkpoint_every = config.checkpoint_every
            if validating:
                self._validate(start)
                finished = finished or self._stops_early
            if finished or (validating if checkpoint_every is None else self.step % checkpoint_every == 0):
                self.seconds = perf_counter() - start
                self._save()
        if self.best is not None:
            self.validated_module.load_state_dict(self.best["state"])
        if self.accelerator.is_main_process:
            state_dict = self.task.weights(self.validated_module)
            with draft(self.weights) as file:
                save_file({key: value.detach().cpu().contiguous() for key, value in state_dict.items()}, file)
        self.accelerator.wait_for_everyone()
        return self.weights

    def _train_step(self, batches: Iterator[tuple[int, Any]]) -> None:
        """Run one optimizer step."""
        config, parts = self.config, self.config.accumulation
        # timm's warm-up starts with a learning rate of 0; the offset of one step avoids this.
        self.schedule.step_update(self.step + 1 if self.step < config.warmup else self.step)
        self.task.module.train()
        for step_part in range(parts):
            number, batch = next(batches)
            # Seed dropout by batch, so that a resumed training repeats it; negative: `batches` uses the other seeds.
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
        """Yield this process's batches from the current step on, with their numbers."""
        config, accelerator = self.config, self.accelerator
        parts = config.accumulation * accelerator.num_processes
        dataset = self.task.batches(config.batch_size // parts, self.total * parts, config.seed)
        first, stride = self.step * parts + accelerator.process_index, accelerator.num_processes
        numbers = range(first, self.total * parts, stride)
        loader = DataLoader(
            _ErrorsAsValues(dataset, numbers),
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=PREFETCH if config.workers else None,
            pin_memory=accelerator.device.type == "cuda",
        )
        from accelerate.utils import send_to_device

        for number, batch in zip(numbers, loader, strict=True):
            if isinstance(batch, SieveError):
                raise InputError(
                    f"{str(batch).rstrip('.')}: training stopped after step {self.step}. Repair the file and run the "
                    "same command: it resumes from the last checkpoint."
                )
            yield number, send_to_device(batch, accelerator.device, non_blocking=True)

    def _share(self) -> None:
        """Average the logged sums over the devices. Raises `InputError` if the loss or a gradient is not finite."""
        self.sums = {name: self.accelerator.reduce(value, "mean") for name, value in self.sums.items()}
        if not bool(torch.isfinite(self.norms + self.sums.get("loss", 0))):
            raise InputError(
                f"The loss of {self.task.name}, or its gradient, became NaN or infinite before step {self.step}: start "
                "again with a smaller lr, a longer warmup or precision fp32. The last checkpoint is from before that."
            )

    def _validate(self, start: float) -> None:
        self._share()
        row = {"step": self.step, "images": self.step * self.config.batch_size, "seconds": perf_counter() - start}
        row |= {name: float(value / self.since) for name, value in self.sums.items()}
        self.sums, self.since = {}, 0
        row |= self.task.evaluate(self.validated_module)
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

        value = broadcast_object_list([row[name]])[0]  # all devices must stop at the same step
        if self.best is not None and not value > self.best["value"]:
            self.waited += 1
            return
        state = {key: part.detach().cpu().clone() for key, part in self.validated_module.state_dict().items()}
        self.best, self.waited = {"value": value, "step": self.step, "state": state}, 0

    def _save(self) -> None:
        self._share()  # raises if weights are not finite, so that they do not replace a good checkpoint
        if not self.accelerator.is_main_process:
            return
        state: dict[str, Any] = {"config": self.config.course(), "identity": self.task.identity}
        state |= {"module": self.task.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": None if self.average is None else self.average.module.state_dict()}
        state |= {name: getattr(self, name) for name in CHECKPOINTED}
        with draft(self.checkpoint) as file:
            torch.save(state, file)

    def _resume(self) -> None:
        file, settings = self.checkpoint, self.config.course()
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{file} cannot be read as a checkpoint ({cause(error)}): delete it to start over."
            ) from error
        state = state if isinstance(state, dict) else {}
        saved_config = state.get("config", {})
        if saved_config != settings or state.get("identity") != self.task.identity:
            names = [name for name in settings if saved_config and saved_config.get(name) != settings[name]]
            reason = f" (other {', '.join(names)})" if names else ""
            raise InputError(
                f"{file} belongs to another training{reason}: give another folder, or delete it to start over."
            )
        self.task.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        for name in CHECKPOINTED:
            setattr(self, name, state[name])
        self.sums = {name: value.to(self.accelerator.device) for name, value in self.sums.items()}


class _ErrorsAsValues(Dataset[Any]):
    """The batches with indices `numbers`; errors are returned, since a worker process would wrap their messages."""

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
    """The module accelerate. Raises `InputError` if it is not installed."""
    try:
        import accelerate
    except ImportError as error:
        raise InputError(
            f"Training needs accelerate ({error.name} is not installed): pip install 'tokensieve[train]'."
        ) from None
    return accelerate


def devices() -> PartialState:
    """The devices and processes of a training, from accelerate.

    Raises:
        InputError: accelerate is not installed, or does not connect the processes that were launched.
    """
    accelerate = need_accelerate()
    on_cpu = accelerate.utils.parse_flag_from_env(
        "ACCELERATE_USE_CPU"
    )  # PartialState does not read this variable itself
    state = accelerate.PartialState(cpu=on_cpu)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched > 1 and state.num_processes == 1:
        raise InputError(
            f"This is one of {launched} processes that accelerate does not connect, so that each would train alone: "
            "launch one, or set ACCELERATE_USE_CPU=1 to connect CPU processes."
        )
    return state


def _accelerator(config: TrainConfig) -> Accelerator:
    state, accelerate = devices(), need_accelerate()
    # A sieved model may not use all parameters of its host.
    unused = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = accelerate.Accelerator(
        # An earlier Accelerator in this process may have set it; the autocast of `_Step` overrides it.
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
    """Destroy the process group before the interpreter exits, when its threads may abort the process."""
    sleep(0.5)  # torch 2.6 deadlocks here while a thread still runs the last collective operation
    state.destroy_process_group()


def computes_in_bf16(precision: str, device: str) -> bool:
    """Whether a `TrainConfig`'s precision means bfloat16 on a device type, "cpu" or "cuda"."""
    if precision != "auto":
        return precision == "bf16"
    if device not in ("cuda", "cpu") or lacks_units("bf16", device):
        return False
    return device == "cuda" or (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_optimizer(module: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer for the trainable parameters; biases and norms have weight decay only with `decay_all`.

    Raises:
        RecipeError: an unknown optimizer, arguments it does not have, nothing trainable, `layer_decay` for a module
            without `group_matcher`, or `lr_scales` for parameters that do not exist.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise RecipeError(f"{type(module).__name__} has no parameter that requires a gradient: nothing can be trained.")
    if config.layer_decay is not None and not hasattr(module, "group_matcher"):
        raise RecipeError(
            f"{type(module).__name__} does not define its layers (timm's group_matcher): leave layer_decay out."
        )
    settings: dict[str, Any] = {"layer_decay": config.layer_decay, "filter_bias_and_bn": not config.decay_all}
    if config.lr_scales:
        settings = {"param_group_fn": lambda module_to_group: _scaled(module_to_group, config)}
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
    except Exception as error:  # optimizers raise errors of any type
        arguments = f" with {dict(config.optimizer_args)}" if config.optimizer_args else ""
        raise RecipeError(f"timm cannot make the optimizer {config.optimizer!r}{arguments}: {cause(error)}.") from error


def _scaled(module: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """timm's parameter groups, split further by the scale of their learning rate."""
    no_decay = set(getattr(module, "no_weight_decay", set)())
    if config.layer_decay is not None:
        groups = timm.optim.param_groups_layer_decay(
            module,
            config.weight_decay,
            no_weight_decay_list=no_decay,
            weight_decay_exclude_1d=not config.decay_all,
            layer_decay=config.layer_decay,
        )
    elif config.decay_all:
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [{"params": trainable, "weight_decay": config.weight_decay}]
    else:
        groups = timm.optim.param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=no_decay)
    scales = dict.fromkeys(config.lr_scales, False)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    by_scale: dict[tuple[int, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            prefix = next(
                (scale_prefix for scale_prefix in scales if names[id(parameter)].startswith(scale_prefix)), None
            )
            if prefix is not None:
                scales[prefix] = True
            scale = 1.0 if prefix is None else config.lr_scales[prefix]
            key = number, scale
            if key not in by_scale:
                by_scale[key] = {**group, "params": [], "lr_scale": group.get("lr_scale", 1.0) * scale}
            by_scale[key]["params"].append(parameter)
    if not all(scales.values()):
        unused = next(name for name, was_used in scales.items() if not was_used)
        raise RecipeError(f"lr_scales has {unused!r}, but no trainable parameter's name begins with it.")
    return list(by_scale.values())


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    """timm's scheduler; call `step_update` at each step."""
    length = max(
        2, steps - config.warmup
    )  # timm needs at least 2; for a single step only the start of the schedule is used
    warmup = {"warmup_t": config.warmup, "warmup_prefix": True, "t_in_epochs": False}
    if config.schedule == "cosine":
        return timm.scheduler.CosineLRScheduler(optimizer, length, lr_min=config.min_lr, **warmup)
    if config.schedule == "poly":
        return timm.scheduler.PolyLRScheduler(optimizer, length, power=config.power, lr_min=config.min_lr, **warmup)
    return timm.scheduler.StepLRScheduler(optimizer, decay_t=length, decay_rate=1.0, **warmup)


def read_log(folder: Path, name: str) -> list[dict[str, float]]:
    """The rows of a training's log, one for each validation."""
    with (folder / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
