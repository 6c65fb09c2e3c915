"""Runs a job on several devices of one machine: a process for each device requests shards from a common queue."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..errors import InputError, SieveError
from .settings import Job
from .shards import Listener, ShardProgress, Work, open_work, run_shards

CHECK_INTERVAL = 1.0
"""Seconds between checks whether a process that sends nothing is alive."""


def device_name(text: str) -> str:
    """The name of a torch device; a number such as "0" becomes "cuda:0"."""
    return f"cuda:{text}" if text.isdecimal() else text


def check_settings(work: Work, settings: dict[str, Any]) -> None:
    """Check that this process found the same weights and items as the main process.

    Raises:
        InputError: a setting differs.
    """
    recorded = work.manifest()["settings"]
    for name in settings:
        if recorded.get(name) != settings[name]:
            raise InputError(
                f"Two processes of the job differ in {name}. Weights must not be random "
                "(--no-pretrained), and the sources must not change during the job."
            )


class _WorkerConnection:
    """A worker process's end of the connection: requests shards, and reports progress."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def request(self, kind: str) -> int | None:
        """Request a shard. "next" returns at once, None if none is free; "idle" waits, None if the job is finished."""
        self.connection.send((kind, None))
        number: int | None = self.connection.recv()
        return number

    def shards(self) -> Iterator[int]:
        while (number := self.request("next")) is not None:
            yield number

    def advance(self, progress: ShardProgress) -> None:
        self.connection.send(("progress", progress))

    def say(self, sentence: str) -> None:
        self.connection.send(("say", sentence))

    def written(self, number: int) -> None:
        self.connection.send(("written", number))


def _worker_main(
    job: Job, settings: dict[str, Any], device: str, workers: int, threads: int | None, connection: Connection
) -> None:
    """Main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    link = _WorkerConnection(connection)
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        work = open_work(job._replace(spec=replace(job.spec, device=device)))
        check_settings(work, settings)
        while (first := link.request("idle")) is not None:
            run_shards(work, chain([first], link.shards()), link, workers=workers, written=link.written)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process has ended
    except SieveError as error:
        with suppress(OSError):
            connection.send(("input_error", str(error)))
    except BaseException:
        with suppress(OSError):
            connection.send(("crashed", traceback.format_exc()))


class _Process:
    """A worker process as the main process tracks it: its connection, device and unfinished shards."""

    def __init__(self, process: Any, connection: Connection, device: str) -> None:
        self.process, self.connection, self.device = process, connection, device
        self.shards: dict[int, list[int]] = {}
        """For each of its shards that is not written yet: [items, errors] reported so far."""
        self.waiting = False
        """Whether it waits for a shard, or for the end."""


def run_devices(
    job: Job,
    settings: dict[str, Any],
    shards: Sequence[int],
    devices: Sequence[str],
    listener: Listener,
    *,
    workers: int,
    threads: int | None,
) -> None:
    """Run a job's shards with a process for each device. If a process is killed, the others take its shards.

    Args:
        job: the job.
        settings: the settings in its manifest, with which each process compares its own.
        shards: numbers of the shards to run.
        devices: torch device names; repeat a name for several processes on one device.
        listener: receives progress and messages, in this process.
        workers: decoding processes for each device.
        threads: CPU threads of each process; None for torch's default.

    Raises:
        InputError: for the reasons of `run_shards`, or all processes have ended and some shards are not done.
    """
    for device in devices:
        replace(job.spec, device=device).torch_device()  # raises for a device that is not there
    context = multiprocessing.get_context("spawn")
    queue, processes = deque(shards), []
    try:
        for device in devices[: max(1, len(queue))]:
            receiver, sender = context.Pipe()
            process = context.Process(target=_worker_main, args=(job, settings, device, workers, threads, sender))
            process.start()
            sender.close()
            processes.append(_Process(process, receiver, device))
        _listen(processes, queue, listener)
    finally:
        for running in processes:
            if running.process.is_alive():
                running.process.terminate()
            running.process.join()


def _listen(processes: list[_Process], queue: deque[int], listener: Listener) -> None:
    """Handle the workers' messages until all shards are written."""
    running, crashed = list(processes), []
    while running:
        ready = wait([process.connection for process in running], CHECK_INTERVAL)
        for process in list(running):
            if process.connection not in ready and process.process.is_alive():
                continue
            try:
                while process.connection.poll():
                    kind, content = process.connection.recv()
                    _handle(process, kind, content, queue, listener)
                alive = process.process.is_alive()
            except (EOFError, OSError):
                alive = False
            if not alive:
                running.remove(process)
                process.process.join()
                if process.shards or process.process.exitcode:
                    crashed.append(process)
                    _requeue(process, queue, listener, workers_left=bool(running))
        _assign(running, queue)
    if queue:
        reasons = ", ".join(f"{process.device} {_exit_reason(process.process.exitcode)}" for process in crashed)
        raise InputError(f"All processes have ended ({reasons}): run the same command again to resume.")


def _handle(process: _Process, kind: str, content: Any, queue: deque[int], listener: Listener) -> None:
    """Handle one message of a worker."""
    if kind == "next":
        number = queue.popleft() if queue else None
        if number is not None:
            process.shards[number] = [0, 0]
        process.connection.send(number)
    elif kind == "idle":
        process.waiting = True
    elif kind == "progress":
        process.shards[content.shard][0] += content.items
        process.shards[content.shard][1] += content.errors
        listener.advance(content)
    elif kind == "say":
        listener.say(f"{process.device}: {content}")
    elif kind == "written":
        del process.shards[content]
    elif kind == "input_error":
        raise InputError(content)
    else:
        raise RuntimeError(f"The process on {process.device} failed:\n{content}")


def _assign(running: list[_Process], queue: deque[int]) -> None:
    """Send each waiting worker a shard. They are told to end only when no shard is unfinished anywhere: the shards of a
    worker that crashes must be run by another."""
    outstanding = any(process.shards for process in running)
    for process in running:
        if process.waiting and (queue or not outstanding):
            number = queue.popleft() if queue else None
            if number is not None:
                process.shards[number] = [0, 0]
                outstanding = True
            process.waiting = False
            with suppress(OSError):
                process.connection.send(number)


def _requeue(process: _Process, queue: deque[int], listener: Listener, *, workers_left: bool) -> None:
    """Return the shards of a worker that has ended to the queue, and subtract its reported progress."""
    for number, (items, errors) in process.shards.items():
        listener.advance(ShardProgress(number, -items, -errors, 0.0, 0.0))
    queue.extendleft(sorted(process.shards, reverse=True))
    if workers_left:
        listener.say(
            f"The process on {process.device} {_exit_reason(process.process.exitcode)}: the others take its shards."
        )
    process.shards = {}


def _exit_reason(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code}"
