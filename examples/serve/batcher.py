"""Requests that come one by one, answered in batches, each with its own row."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Ask = Callable[[Tensor], Mapping[str, Sequence[Any]]]
"""Images (B, 3, H, W) -> columns: name -> a value for each image."""


class Overloaded(Exception):
    """So many requests wait that another one would wait too long."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} requests are waiting: try again in about {seconds:.0f} s.")
        self.seconds = seconds


@dataclass(frozen=True)
class Row:
    """One image's answer.

    Attributes:
        columns: name -> its value.
        batch: how many images were asked together.
        seconds: from the request to the answer, decoding not included.
    """

    columns: dict[str, Any]
    batch: int
    seconds: float


@dataclass(frozen=True)
class _Request:
    image: Tensor
    row: asyncio.Future[Row]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Gathers images until there are `most`, or until the first of them has waited for `wait` seconds.

    While the model is at work, what comes waits, so that under load batches are full without any waiting on purpose.

    Args:
        ask: the model; it is called in `executor`, never twice at once if that has one thread.
        most: images of a batch.
        wait: seconds.
        queue: images that may wait; more are refused with `Overloaded`.
        executor: where the model runs.
    """

    def __init__(self, ask: Ask, *, most: int, wait: float, queue: int, executor: Executor) -> None:
        self.ask, self.most, self.wait, self.queue, self.executor = ask, most, wait, queue, executor
        self.batches = self.images = self.refused = 0
        self.latest: deque[float] = deque(maxlen=1000)
        self._waiting: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer, in the running event loop."""
        self._task = asyncio.create_task(self._answer())

    async def close(self) -> None:
        """Answer nothing more; whoever still waits is told so."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for request in self._waiting:
            request.row.cancel()
        self._waiting.clear()

    async def __call__(self, image: Tensor) -> Row:
        """The answer to one image (3, H, W); raises `Overloaded`, or whatever the model raised."""
        if len(self._waiting) >= self.queue:
            self.refused += 1
            raise Overloaded(len(self._waiting), self._seconds_for(len(self._waiting)))
        request = _Request(image, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._arrived.set()
        return await request.row

    def _seconds_for(self, images: int) -> float:
        """How long so many images will take, from the time that the latest ones took: at least a second is told."""
        typical = sorted(self.latest)[len(self.latest) // 2] if self.latest else 0.0
        return max(1.0, typical * images / self.queue)

    async def _answer(self) -> None:
        while True:
            batch = await self._gathered()
            if batch:
                await self._run(batch)

    async def _gathered(self) -> list[_Request]:
        """The next batch, without requests that nobody waits for any more."""
        while not self._waiting:
            await self._next(None)
        until = self._waiting[0].since + self.wait
        while len(self._waiting) < self.most and (left := until - time.monotonic()) > 0:
            await self._next(left)
        some = [self._waiting.popleft() for _ in range(min(self.most, len(self._waiting)))]
        return [request for request in some if not request.row.done()]

    async def _next(self, seconds: float | None) -> None:
        """Until another request comes, or the time is over."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            pass

    async def _run(self, batch: list[_Request]) -> None:
        images = torch.stack([request.image for request in batch])
        try:
            columns = await asyncio.get_running_loop().run_in_executor(self.executor, self.ask, images)
        except asyncio.CancelledError:
            for request in batch:
                request.row.cancel()
            raise
        except Exception as error:  # whatever it is, those who wait for this batch are told, and the next one runs
            for request in batch:
                if not request.row.done():
                    request.row.set_exception(error)
            return
        self.batches += 1
        self.images += len(batch)
        now = time.monotonic()
        for place, request in enumerate(batch):
            self.latest.append(now - request.since)
            if not request.row.done():  # its client may have gone meanwhile
                own = {name: values[place] for name, values in columns.items()}
                request.row.set_result(Row(own, len(batch), now - request.since))
