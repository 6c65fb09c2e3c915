"""A model over HTTP, dense and sieved side by side, with requests gathered into batches.

    python service.py --model vit_base_patch16_224.augreg_in21k_ft_in1k --recipe "papr(keep=0.5)"
    curl --data-binary @photograph.jpg "http://127.0.0.1:8000/classify?variant=sieved&k=5"

GET / says what runs and what it costs, GET /stats how it went, GET /docs has forms to try it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Annotated, Any, Literal

import torch
from batcher import Batcher, Overloaded
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from torch import Tensor

from tokensieve import ModelSpec, SieveError
from tokensieve.data import read_image
from tokensieve.jobs import RowSettings
from tokensieve.jobs.columns import ColumnPredictor
from tokensieve.show.record import describe

Variant = Literal["dense", "sieved"]
MEGABYTE = 2**20
MOST = 20
"""Classes in an answer."""


@dataclass(frozen=True)
class Settings:
    """How requests are taken.

    Attributes:
        batch: images that go through the model together, at most.
        wait: seconds for which the first of them may wait for others.
        queue: images that may wait for each variant; more are answered with 503.
        largest: bytes of a picture's file; more are answered with 413.
        decoders: threads that decode pictures.
        classes: a class file whose names are told beside the class numbers; None takes those that the model has.
    """

    batch: int = 16
    wait: float = 0.005
    queue: int = 128
    largest: int = 20 * MEGABYTE
    decoders: int = 2
    classes: str | None = None


class Service:
    """The open model, and a batcher for each variant; one batch runs at a time, on all of the model's threads."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self.settings = settings
        opened = spec.open()
        self.facts = {"model": spec.model, **describe(opened.fast, opened.dense, opened.input_spec)}
        self.read = opened.preprocessing.transform()
        self.decoders = ThreadPoolExecutor(settings.decoders, "decode")
        self.model = ThreadPoolExecutor(1, "model")
        self.batchers = {
            name: Batcher(
                ColumnPredictor(pair, RowSettings(k=MOST, classes=settings.classes)),
                most=settings.batch,
                wait=settings.wait,
                queue=settings.queue,
                executor=self.model,
            )
            for name, pair in (("dense", opened._replace(fast=opened.dense)), ("sieved", opened))
        }
        self.shape = opened.input_spec

    async def start(self) -> None:
        """Run each variant once, so that the first request is no slower than others, and begin to answer."""
        for batcher in self.batchers.values():
            batcher.start()
            await batcher(torch.zeros(tuple(self.shape)))
            batcher.latest.clear()

    async def close(self) -> None:
        for batcher in self.batchers.values():
            await batcher.close()
        self.decoders.shutdown(cancel_futures=True)
        self.model.shutdown(cancel_futures=True)

    def decode(self, data: bytes) -> Tensor:
        """A picture's file as the model reads it. Raises ValueError with a sentence."""
        file = BytesIO(data)
        file.name = "The picture"
        try:
            return self.read(read_image(file))
        except MemoryError:
            raise ValueError("The picture does not fit into memory.") from None

    async def classify(self, data: bytes, variant: Variant, k: int) -> dict[str, Any]:
        """The k likeliest classes of a picture, by one of the variants."""
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self.decoders, self.decode, data)
        row = await self.batchers[variant](image)
        found = []
        for place in range(1, k + 1):
            if f"top{place}_class" not in row.columns:
                break
            label = row.columns.get(f"top{place}_label")
            found.append(
                {
                    "class": int(row.columns[f"top{place}_class"]),
                    **({} if label is None else {"label": label}),
                    "probability": float(row.columns[f"top{place}_probability"]),
                }
            )
        return {"variant": variant, "classes": found, "batch": row.batch, "milliseconds": 1000 * row.seconds}

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and times of the latest thousand images, decoding not included."""
        return {name: _counts(batcher) for name, batcher in self.batchers.items()}


def _counts(batcher: Batcher) -> dict[str, Any]:
    times = sorted(batcher.latest)
    share = {"p50": 0.5, "p99": 0.99}
    return {
        "images": batcher.images - 1,  # without the one at the start
        "batches": batcher.batches - 1,
        "refused": batcher.refused,
        "milliseconds": {
            name: 1000 * times[min(len(times) - 1, int(part * len(times)))] if times else None
            for name, part in share.items()
        },
    }


async def body(request: Request, largest: int) -> bytes:
    """What a request brings, read no further than is allowed."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > largest:
            raise HTTPException(413, f"The file is larger than {largest / MEGABYTE:.4g} MB.")
    if not data:
        raise HTTPException(400, "The request has no body: send the picture's file as it is, curl --data-binary @FILE.")
    return bytes(data)


def make_app(spec: ModelSpec, settings: Settings | None = None) -> FastAPI:
    """The application; the model is opened when it starts."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = await asyncio.to_thread(Service, spec, settings)
        await service.start()
        yield
        await service.close()

    app = FastAPI(title="tokensieve", description=__doc__, lifespan=lifespan)

    @app.get("/")
    async def facts() -> dict[str, Any]:
        """What runs: model, recipe, MACs of both variants."""
        return app.state.service.facts

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        """How many images and batches, and how long they took."""
        return app.state.service.stats()

    @app.post(
        "/classify",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def classify(
        request: Request, variant: Variant = "sieved", k: Annotated[int, Query(ge=1, le=MOST)] = 5
    ) -> Any:
        """The likeliest classes of the picture whose file is the body."""
        data = await body(request, settings.largest)
        try:
            return await app.state.service.classify(data, variant, k)
        except Overloaded as error:
            return JSONResponse({"detail": str(error)}, 503, {"Retry-After": f"{error.seconds:.0f}"})
        except ValueError as error:  # a picture that cannot be read; tokensieve says why in a sentence
            raise HTTPException(400, str(error)) from error

    return app


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano_vit", help="a name that timm knows; default the bundled one")
    parser.add_argument("--recipe", default=None, help="text or a file; default papr with the bundled ConvNet, or tome")
    parser.add_argument("--weights", default=None, help="a file of the model's weights")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights, to try speed without downloads")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None, help="of the model on a CPU")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 answers other machines too")
    parser.add_argument("--port", type=int, default=8000)
    for name, word in (("batch", "images"), ("queue", "images"), ("decoders", "threads")):
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings, name), metavar=word.upper())
    parser.add_argument("--classes", default=None, metavar="FILE", help="names of the classes, in index order")
    parser.add_argument("--wait", type=float, default=1000 * Settings.wait, help="milliseconds", metavar="MS")
    args = parser.parse_args()
    import uvicorn

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    settings = Settings(
        batch=args.batch, wait=args.wait / 1000, queue=args.queue, decoders=args.decoders, classes=args.classes
    )
    try:
        spec = ModelSpec(
            args.model,
            args.recipe,
            weights=args.weights,
            pretrained=not args.no_pretrained,
            precision=args.precision,
            device=args.device,
        )
        spec.check()
        app = partial(make_app, spec, settings)
    except SieveError as error:
        print(f"service: {error}", file=sys.stderr)
        return 2
    uvicorn.run(app, host=args.host, port=args.port, factory=True, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
