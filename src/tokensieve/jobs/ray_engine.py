"""The Ray engine: Ray Data gives shards to actors, each of which opens the model once."""

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

STARTS = 3
"""Attempts to start Ray on this machine."""
PATIENCE = 120
"""Seconds to wait for Ray's first process; Ray's default is 20."""
OBJECT_STORE = 2**27
"""Bytes of Ray's object store, which only carries shard numbers; its default is a third of the memory."""


@dataclass(frozen=True)
class RaySettings:
    """The resources that Ray's actors get.

    Attributes:
        address: of a running cluster, "auto" for the one that this machine belongs to; None starts one on this machine.
        actors: their number, or the smallest and largest number between which Ray scales.
        cpus: of each actor; None takes one for the model and one for each process that decodes.
        gpus: of each actor; 0.5 puts two actors on each GPU.
    """

    address: str | None = None
    actors: int | tuple[int, int] = 1
    cpus: float | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        ends = (self.actors, self.actors) if isinstance(self.actors, int) else self.actors
        if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
            raise RecipeError(f"actors must be a number from 1 up, or the fewest and the most, not {self.actors!r}.")
        if self.gpus < 0 or (self.cpus is not None and self.cpus <= 0):
            raise RecipeError(f"cpus must be more than 0, and gpus at least 0, not {self.cpus} and {self.gpus}.")


class ShardActor:
    """Opens a job once, and runs the shards that it is given; running one twice writes the same file."""

    def __init__(self, job: Job, settings: dict[str, Any], workers: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.work, self.workers = open_work(job), workers
        check_settings(self.work, settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        recorder = _Recorder()
        run_shards(self.work, [int(number) for number in batch["shard"]], recorder, workers=self.workers)
        return {
            "shard": list(recorder.progress),
            "progress": [list(progress) for progress in recorder.progress.values()],
            "messages": [recorder.messages] * len(recorder.progress),
        }


class _Recorder:
    """A listener that keeps the progress of each shard, for the driver."""

    def __init__(self) -> None:
        self.progress: dict[int, ShardProgress] = {}
        self.messages = ""

    def advance(self, progress: ShardProgress) -> None:
        before = self.progress.get(progress.shard)
        self.progress[progress.shard] = progress if before is None else before.and_then(progress)

    def say(self, sentence: str) -> None:
        self.messages += sentence + "\n"


def library() -> Any:
    """Ray with Ray Data. Raises `InputError` where it is missing."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            f"--engine ray needs Ray ({error.name} is not here): pip install 'tokensieve[ray]'."
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
    """Run a job's shards with Ray Data, which retries, scales and places the actors.

    Args:
        job: what is run; the paths in it must mean the same on every machine of the cluster.
        settings: of its manifest, with which each actor compares its own.
        shards: numbers of those to run.
        listener: gets the progress of each shard that is done.
        ray_settings: of the cluster.
        workers: processes that decode, for each actor.

    Raises:
        InputError: as `run_shards`; Ray is missing, or cannot be reached.
    """
    if ray_settings.gpus and not job.spec.device.startswith(("cuda", "auto")):
        raise RecipeError(f"gpus={ray_settings.gpus} are asked for, and the device is {job.spec.device}: give cuda.")
    ray = library()
    started = not ray.is_initialized()
    cpus = ray_settings.cpus or 1 + workers
    actors = ray_settings.actors
    ends = {"size": actors} if isinstance(actors, int) else {"min_size": actors[0], "max_size": actors[1]}
    if started:
        _begin(ray, ray_settings.address, math.ceil(max(ends.values()) * cpus))
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        results = ray.data.from_items(
            [{"shard": number} for number in shards],
            override_num_blocks=len(shards),  # one a task
        ).map_batches(
            ShardActor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(**ends),
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
        raise _sentence(error) from error
    finally:
        if started:
            ray.shutdown()


def _begin(ray: Any, address: str | None, cpus: int) -> None:
    """Connect to a cluster, or start one on this machine that offers actors `cpus` CPUs, however many it has.

    On a busy machine Ray's processes may time out at the start; then it is tried again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(PATIENCE))
    settings: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        settings |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    for attempts_left in reversed(range(1 if address else STARTS)):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # whatever its many parts raise
            ray.shutdown()
            if not attempts_left:
                where = address or "this machine"
                raise InputError(f"No Ray cluster answers at {where}: {first_line(error)}.") from error


def _sentence(error: BaseException) -> Exception:
    """The message of an actor's `SieveError`, if Ray's error comes from one."""
    link: BaseException | None = error
    while link is not None:
        inner = getattr(link, "cause", None)
        if isinstance(inner, SieveError):
            return InputError(str(inner))
        link = inner if isinstance(inner, BaseException) else link.__cause__
    return InputError(
        f"Ray could not finish the job: {cause(error)}. Finished files are kept: give the same command again."
    )
