"""How many requests a second the service answers, and how long they take, with more and more clients at once.

    python load.py photographs/*.jpg                     # 1, 2, 4, 8, 16, 32 clients, dense and sieved by turns
    python load.py photograph.jpg --clients 8 --seconds 30 --url http://other.machine:8000

Each client sends its next picture when it has the answer to the one before. 503 is counted as refused, and the client
waits as long as it is told to.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

CLIENTS = (1, 2, 4, 8, 16, 32)


@dataclass
class _Seen:
    seconds: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    refused: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Load:
    """What so many clients met.

    Attributes:
        variant: dense or sieved.
        clients: at once.
        answered: requests with an answer.
        refused: with 503.
        failed: with anything else.
        per_second: answered requests.
        p50: milliseconds that half of the answers took at most, as the client sees them.
        p99: the same of 99 in 100; of fewer than 100 answers the longest.
        batch: images that went through the model together, the mean over answers.
    """

    variant: str
    clients: int
    answered: int
    refused: int
    failed: int
    per_second: float
    p50: float
    p99: float
    batch: float


def percentile(times: Sequence[float], share: float) -> float:
    """The smallest of the times that so large a share of them does not exceed."""
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)]


async def measure(
    client: httpx.AsyncClient, variant: str, clients: int, seconds: float, pictures: Sequence[bytes]
) -> Load:
    """Have so many clients ask for so long, and wait for the answers that are under way then."""
    seen, turn = _Seen(), itertools.cycle(pictures)
    began = time.perf_counter()
    await asyncio.gather(*(_ask(client, variant, began + seconds, turn, seen) for _ in range(clients)))
    took = time.perf_counter() - began
    return Load(
        variant=variant,
        clients=clients,
        answered=len(seen.seconds),
        refused=seen.refused,
        failed=seen.failed,
        per_second=len(seen.seconds) / took,
        p50=1000 * percentile(seen.seconds, 0.5) if seen.seconds else float("nan"),
        p99=1000 * percentile(seen.seconds, 0.99) if seen.seconds else float("nan"),
        batch=sum(seen.batches) / len(seen.batches) if seen.batches else float("nan"),
    )


async def _ask(client: httpx.AsyncClient, variant: str, until: float, turn: Iterator[bytes], seen: _Seen) -> None:
    while time.perf_counter() < until:
        before = time.perf_counter()
        try:
            answer = await client.post("/classify", params={"variant": variant}, content=next(turn))
        except httpx.HTTPError:
            seen.failed += 1
            await asyncio.sleep(0.1)
            continue
        if answer.status_code == 200:
            seen.seconds.append(time.perf_counter() - before)
            seen.batches.append(answer.json()["batch"])
        elif answer.status_code == 503:
            seen.refused += 1
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
        else:
            seen.failed += 1


async def measure_all(
    url: str, variants: Sequence[str], clients: Sequence[int], seconds: float, pictures: Sequence[bytes]
) -> list[Load]:
    """Each number of clients, the variants by turns; each is told on stdout as it comes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    found = []
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        for count in clients:
            for variant in variants:
                await measure(client, variant, count, min(1.0, seconds), pictures)  # not counted
                found.append(await measure(client, variant, count, seconds, pictures))
                print(line(found[-1]), flush=True)
    return found


HEAD = f"{'':>8}{'clients':>9}{'a second':>10}{'p50 ms':>9}{'p99 ms':>9}{'batch':>7}{'refused':>9}{'failed':>8}"


def line(load: Load) -> str:
    return (
        f"{load.variant:>8}{load.clients:>9}{load.per_second:>10.1f}{load.p50:>9.0f}{load.p99:>9.0f}"
        f"{load.batch:>7.1f}{load.refused:>9}{load.failed:>8}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--variants", default="dense,sieved", help="default both")
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)), help="default 1,2,4,8,16,32")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each")
    parser.add_argument("--json", action="store_true", help="print a list of JSON at the end")
    args = parser.parse_args()
    pictures = [path.read_bytes() for path in args.pictures]
    print(HEAD)
    found = asyncio.run(
        measure_all(
            args.url, args.variants.split(","), [int(n) for n in args.clients.split(",")], args.seconds, pictures
        )
    )
    if args.json:
        import json

        rows: list[dict[str, Any]] = [asdict(load) for load in found]
        print(json.dumps(rows, indent=2))
    return int(any(load.failed for load in found))


if __name__ == "__main__":
    sys.exit(main())
