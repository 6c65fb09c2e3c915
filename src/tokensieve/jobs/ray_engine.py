"""The Ray engine: Ray Data distributes the shards of a job to actors, each of which opens the model once.

A shard is a number of consecutive items (images or clips) whose results are written to one file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, RecipeError, SieveError, cause, first_line
from .devices import check_settings
from .settings import Job
from .shards import Listener, ShardProgress, open_work, run_shards

START_ATTEMPTS = 3
"""Number of attempts to start Ray on this machine."""
START_TIMEOUT = 120
"""Seconds to wait for Ray's first process; Ray's default is 20."""
OBJECT_STORE_BYTES = 2**27
"""Size of Ray's object store, which only carries shard numbers and progress; Ray's default is a third of the memory."""


@dataclass(frozen=True)
class RaySettings:
    """The resources that Ray's actors get.

    Attributes:
        address: address of a running cluster; "auto" for one on this machine that is running; None starts one on it.
        actors: number of actors, or the smallest and largest number between which Ray scales.
        cpus: CPUs of each actor; None: one for the model and one for each decoding process.
        gpus: GPUs of each actor; with 0.5 two actors share a GPU.
    """

    address: str | None = None
    actors: int | tuple[int, int] = 1
    cpus: float | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        bounds = (self.actors, self.actors) if isinstance(self.actors, int) else self.actors
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise RecipeError(
                "actors must be an integer of at least 1, or a pair of the smallest and the largest number, not "
                f"{self.actors!r}."
            )
        if self.gpus < 0 or (self.cpus is not None and self.cpus <= 0):
            raise RecipeError(
                f"cpus must be more than 0, and gpus at least 0, not cpus={self.cpus} and gpus={self.gpus}."
            )


class ShardActor:
    """A Ray actor, which opens a job once and runs the shards that it gets.

    Ray may run a shard again after a failure; that replaces the shard's file by an equal one.

    Args:
        job: the job.
        settings: the settings in the job's manifest; it is an error if the job as opened here has others.
        workers: number of decoding processes.
        threads: number of torch's CPU threads.
    """

    def __init__(self, job: Job, settings: dict[str, Any], workers: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.work, self.workers = open_work(job), workers
        check_settings(self.work, settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run the shards in the column `shard`; returns the columns `shard`, `progress` (the fields of `ShardProgress`)
        and `messages`, with a row for each shard."""
        recorder = _Recorder()
        run_shards(self.work, [int(number) for number in batch["shard"]], recorder, workers=self.workers)
        return {
            "shard": list(recorder.progress),
            "progress": [list(progress) for progress in recorder.progress.values()],
            "messages": [recorder.messages] * len(recorder.progress),
        }


class _Recorder:
    """Keeps the progress of each shard, and the messages, which the actor returns to the main process."""

    def __init__(self) -> None:
        self.progress: dict[int, ShardProgress] = {}
        self.messages = ""

    def advance(self, progress: ShardProgress) -> None:
        earlier = self.progress.get(progress.shard)
        self.progress[progress.shard] = progress if earlier is None else earlier.and_then(progress)

    def say(self, sentence: str) -> None:
        self.messages += sentence + "\n"


def _import_ray() -> Any:
    """Import Ray and Ray Data. Raises `InputError` if they are not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            f"--engine ray needs Ray ({error.name} is not installed): pip install 'tokensieve[ray]'."
        ) from error
    return ray


def run_ray(
    job: Job,
    settings: dict[str, Any],
    shards: Sequence[int],
    listener: Listener,
    ray_settings: RaySettings,
    *,
    workers: int,
) -> None:
    """Run a job's shards with Ray Data, which retries failed shards, and places and scales the actors.

    Args:
        job: the job; its paths must be valid on every machine of the cluster.
        settings: the settings in the job's manifest; each actor checks that the job as opened there has the same.
        shards: numbers of the shards to run.
        listener: receives the progress of each finished shard.
        ray_settings: settings of the cluster and its actors.
        workers: decoding processes for each actor.

    Raises:
        InputError: as `run_shards`; or Ray is not installed or cannot be reached.
        RecipeError: the actors get GPUs, but the job's device is not a GPU.
    """
    if ray_settings.gpus and not job.spec.device.startswith(("cuda", "auto")):
        raise RecipeError(f"gpus is {ray_settings.gpus}, but the device is {job.spec.device}: set the device to cuda.")
    ray = _import_ray()
    starts_ray = not ray.is_initialized()
    cpus = ray_settings.cpus or 1 + workers
    actors = ray_settings.actors
    pool_size = {"size": actors} if isinstance(actors, int) else {"min_size": actors[0], "max_size": actors[1]}
    if starts_ray:
        _connect(ray, ray_settings.address, math.ceil(max(pool_size.values()) * cpus))
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        results = ray.data.from_items(
            [{"shard": number} for number in shards],
            override_num_blocks=len(shards),  # one shard per task
        ).map_batches(
            ShardActor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(**pool_size),
            fn_constructor_args=(job, settings, workers, max(1, int(cpus) - workers)),
            num_cpus=cpus,
            num_gpus=ray_settings.gpus or None,
        )
        for result in results.iter_rows():
            shard, items, errors, waited, computed = result["progress"]
            for sentence in result["messages"].splitlines():
                listener.say(sentence)
            listener.advance(ShardProgress(int(shard), int(items), int(errors), waited, computed))
    except ray.exceptions.RayError as error:
        raise _input_error(error) from error
    finally:
        if starts_ray:
            ray.shutdown()


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    """Connect to the cluster at `address`; None starts one on this machine.

    Ray is told that this machine has `cpus` CPUs, so that it places all actors, however many CPUs there are. On a busy
    machine Ray's processes may time out at the start; the start is then repeated.

    Raises:
        InputError: no cluster answers, or none can be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(START_TIMEOUT))
    settings: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        settings |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    for attempts_left in reversed(range(1 if address else START_ATTEMPTS)):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray can raise any exception
            ray.shutdown()
            if not attempts_left:
                location = address or "this machine"
                raise InputError(f"No Ray cluster answers at {location}: {first_line(error)}.") from error


def _input_error(error: BaseException) -> InputError:
    """An `InputError` with the message of the actor's `SieveError` that caused Ray's error; if there is none, with that
    of Ray's error."""
    current: BaseException | None = error
    while current is not None:
        inner = getattr(current, "cause", None)
        if isinstance(inner, SieveError):
            return InputError(str(inner))
        current = inner if isinstance(inner, BaseException) else current.__cause__
    return InputError(
        f"Ray could not finish the job: {cause(error)}. Finished files are kept: run the same command again to resume."
    )
