"""Several devices of one machine: a process for each, which are given shards from one queue as they ask for them."""

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

LOOK = 1.0
"""Seconds between checks whether a silent process is alive."""


def device_name(text: str) -> str:
    """ "0" is "cuda:0"; other names are torch's."""
    return f"cuda:{text}" if text.isdecimal() else text


def check_settings(work: Work, settings: dict[str, Any]) -> None:
    """Check that this process sees the same job: no random weights, no changed folder.

    Raises:
        InputError: a setting differs.
    """
    recorded = work.manifest()["settings"]
    for name in settings:
        if recorded.get(name) != settings[name]:
            raise InputError(
                f"Two processes do not see the same job: its {name} differs. Weights must not be random "
                "(--no-pretrained), and the sources must stay as they are."
            )


class _Link:
    """A worker process's end of the connection: requests shards, and reports progress."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def request(self, how: str) -> int | None:
        """Request a shard; None if there is none now ("next"), or none to come ("idle", which waits)."""
        self.connection.send((how, None))
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


def _work(
    job: Job, settings: dict[str, Any], device: str, workers: int, threads: int | None, connection: Connection
) -> None:
    """Main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    link = _Link(connection)
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
            connection.send(("refused", str(error)))
    except BaseException:
        with suppress(OSError):
            connection.send(("failed", traceback.format_exc()))


class _Process:
    """The main process's view of a worker process."""

    def __init__(self, process: Any, connection: Connection, device: str) -> None:
        self.process, self.connection, self.device = process, connection, device
        self.shards: dict[int, list[int]] = {}
        """Its shards that are not written yet -> reported items and errors of each."""
        self.idle = False


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
    """Run a job's shards with a process for each device. If one is killed, the others take its shards.

    Args:
        job: what is run.
        settings: of its manifest, with which each process compares its own.
        shards: numbers of those to run.
        devices: torch device names; repeated for several processes on one.
        listener: gets progress and messages, in this process.
        workers: processes that decode, for each device.
        threads: CPU threads of each process; None for torch's choice.

    Raises:
        InputError: as `run_shards`; every process has ended, and shards are left.
    """
    for device in devices:
        replace(job.spec, device=device).torch_device()
    context = multiprocessing.get_context("spawn")
    waiting, processes = deque(shards), []
    try:
        for device in devices[: max(1, len(waiting))]:
            receiver, sender = context.Pipe()
            process = context.Process(target=_work, args=(job, settings, device, workers, threads, sender))
            process.start()
            sender.close()
            processes.append(_Process(process, receiver, device))
        _listen(processes, waiting, listener)
    finally:
        for running in processes:
            if running.process.is_alive():
                running.process.terminate()
            running.process.join()


def _listen(processes: list[_Process], waiting: deque[int], listener: Listener) -> None:
    """Handle the workers' messages until all shards are written."""
    active, lost = list(processes), []
    while active:
        ready = wait([process.connection for process in active], LOOK)
        for process in list(active):
            if process.connection not in ready and process.process.is_alive():
                continue
            try:
                while process.connection.poll():
                    kind, content = process.connection.recv()
                    _handle(process, kind, content, waiting, listener)
                alive = process.process.is_alive()
            except (EOFError, OSError):
                alive = False
            if not alive:
                active.remove(process)
                process.process.join()
                if process.shards or process.process.exitcode:
                    lost.append(process)
                    _return(process, waiting, listener, others=bool(active))
        _serve(active, waiting)
    if waiting:
        ends = ", ".join(f"{process.device} {_end(process.process.exitcode)}" for process in lost)
        raise InputError(f"No process is left to go on ({ends}): give the same command again.")


def _handle(process: _Process, kind: str, content: Any, waiting: deque[int], listener: Listener) -> None:
    """Handle one message of a worker."""
    if kind == "next":
        number = waiting.popleft() if waiting else None
        if number is not None:
            process.shards[number] = [0, 0]
        process.connection.send(number)
    elif kind == "idle":
        process.idle = True
    elif kind == "progress":
        process.shards[content.shard][0] += content.items
        process.shards[content.shard][1] += content.errors
        listener.advance(content)
    elif kind == "say":
        listener.say(f"{process.device}: {content}")
    elif kind == "written":
        del process.shards[content]
    elif kind == "refused":
        raise InputError(content)
    else:
        raise RuntimeError(f"The process on {process.device} failed:\n{content}")


def _serve(active: list[_Process], waiting: deque[int]) -> None:
    """Give idle workers a shard; end them once no shard is left that another worker could lose."""
    outstanding = any(process.shards for process in active)
    for process in active:
        if process.idle and (waiting or not outstanding):
            number = waiting.popleft() if waiting else None
            if number is not None:
                process.shards[number] = [0, 0]
                outstanding = True
            process.idle = False
            with suppress(OSError):
                process.connection.send(number)


def _return(process: _Process, waiting: deque[int], listener: Listener, *, others: bool) -> None:
    """Return the shards of a worker that has ended to the queue, and subtract its reported progress."""
    for number, (items, errors) in process.shards.items():
        listener.advance(ShardProgress(number, -items, -errors, 0.0, 0.0))
    waiting.extendleft(sorted(process.shards, reverse=True))
    if others:
        listener.say(
            f"The process on {process.device} {_end(process.process.exitcode)}: the others go on with its work."
        )
    process.shards = {}


def _end(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (no memory left?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code}"
