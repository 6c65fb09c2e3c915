"""The batcher: whoever asks gets their own row, batches are as full as they may be, and too much is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor


def image(number: float) -> Tensor:
    return torch.full((3, 2, 2), float(number))


class Model:
    """Answers each image with its own number; keeps what it was asked, and waits for `go` where it is not set."""

    def __init__(self) -> None:
        self.asked: list[list[float]] = []
        self.at_once, self.most_at_once = 0, 0
        self.go = threading.Event()
        self.go.set()

    def __call__(self, images: Tensor) -> dict[str, list[float]]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.asked.append(images[:, 0, 0, 0].tolist())
        assert self.go.wait(20)
        self.at_once -= 1
        if -1.0 in self.asked[-1]:
            raise ArithmeticError("minus one")
        return {"number": images[:, 0, 0, 0].tolist(), "twice": (2 * images[:, 0, 0, 0]).tolist()}


@pytest.fixture
def make(serve: Any) -> Any:
    def made(model: Model, **settings: Any) -> Any:
        return serve("batcher").Batcher(
            model, executor=ThreadPoolExecutor(1), **{"most": 4, "wait": 0.01, "queue": 100, **settings}
        )

    return made


def within(batcher: Any, what: Coroutine[Any, Any, Any]) -> Any:
    """Run in a loop in which the batcher answers."""

    async def whole() -> Any:
        batcher.start()
        try:
            async with asyncio.timeout(30):
                return await what
        finally:
            await batcher.close()

    return asyncio.run(whole())


def test_everyone_gets_their_own_row_in_full_batches(make: Any) -> None:
    model = Model()
    batcher = make(model)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(batcher(image(number)) for number in range(50)))

    rows = within(batcher, ask())
    assert [row.columns for row in rows] == [{"number": n, "twice": 2 * n} for n in range(50)]
    assert [len(batch) for batch in model.asked] == [4] * 12 + [2]
    assert [number for batch in model.asked for number in batch] == list(range(50))  # who comes first is asked first
    assert [row.batch for row in rows] == [4] * 48 + [2] * 2
    assert (batcher.images, batcher.batches, model.most_at_once) == (50, 13, 1)


def test_one_alone_waits_no_longer_than_it_may(make: Any) -> None:
    batcher = make(Model(), wait=0.2)
    row = within(batcher, batcher(image(7)))
    assert row.columns["number"] == 7
    assert row.batch == 1
    assert row.seconds >= 0.2


def test_a_full_batch_waits_for_nobody(make: Any) -> None:
    model = Model()
    batcher = make(model, wait=10)

    async def ask() -> float:
        before = time.monotonic()
        await asyncio.gather(*(batcher(image(number)) for number in range(4)))
        return time.monotonic() - before

    assert within(batcher, ask()) < 5
    assert model.asked == [[0, 1, 2, 3]]


def test_what_comes_while_the_model_is_at_work_is_the_next_batch(make: Any) -> None:
    model = Model()
    batcher = make(model, wait=0)

    async def ask() -> None:
        model.go.clear()
        first = asyncio.create_task(batcher(image(0)))
        while not model.asked:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher(image(number))) for number in (1, 2, 3)]
        await asyncio.sleep(0.01)
        model.go.set()
        await asyncio.gather(first, *others)

    within(batcher, ask())
    assert model.asked == [[0], [1, 2, 3]]


def test_too_much_is_refused_at_once_and_what_waits_is_answered(make: Any, serve: Any) -> None:
    model = Model()
    batcher = make(model, wait=0, queue=3, most=2)

    async def ask() -> list[Any]:
        model.go.clear()
        tasks = [asyncio.create_task(batcher(image(0)))]
        while not model.asked:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher(image(number))) for number in range(1, 6)]
        await asyncio.sleep(0.01)
        model.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    rows = within(batcher, ask())
    assert [row.columns["number"] for row in rows[:4]] == [0, 1, 2, 3]
    assert [type(row) for row in rows[4:]] == [serve("batcher").Overloaded] * 2
    assert str(rows[4]) == "3 requests are waiting: try again in about 1 s."
    assert batcher.refused == 2


def test_an_error_is_of_its_own_batch(make: Any) -> None:
    batcher = make(Model(), most=2)

    async def ask() -> list[Any]:
        asked = (batcher(image(number)) for number in (0, -1, 2, 3))
        return await asyncio.gather(*asked, return_exceptions=True)

    rows = within(batcher, ask())
    assert [type(row) for row in rows[:2]] == [ArithmeticError] * 2
    assert [row.columns["number"] for row in rows[2:]] == [2, 3]


def test_who_has_gone_is_not_asked_for(make: Any) -> None:
    model = Model()
    batcher = make(model, wait=0)

    async def ask() -> None:
        model.go.clear()
        first = asyncio.create_task(batcher(image(0)))
        while not model.asked:
            await asyncio.sleep(0.001)
        gone, stays = (asyncio.create_task(batcher(image(number))) for number in (1, 2))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(first, stays)

    within(batcher, ask())
    assert model.asked == [[0], [2]]


def test_closing_tells_those_who_wait(make: Any) -> None:
    model = Model()
    batcher = make(model, wait=0)

    async def whole() -> list[Any]:
        batcher.start()
        model.go.clear()
        tasks = [asyncio.create_task(batcher(image(number))) for number in range(3)]
        while not model.asked:
            await asyncio.sleep(0.001)
        await batcher.close()
        model.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    rows = asyncio.run(whole())
    assert [type(row) for row in rows] == [asyncio.CancelledError] * 3
