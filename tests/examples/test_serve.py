"""The example's service, over ASGI: answers are the model's own, bad pictures and too many requests get a sentence."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.broken_pictures import READ, deep, truncated
from tests.oddities import photo
from tokensieve import ModelSpec

pytest.importorskip("fastapi", reason="FastAPI, part of the extra dev, is not installed")
import httpx

SPEC = ModelSpec("nano_vit", "papr(keep=0.4, proposal=nano_convnet)")


def png(picture: Image.Image) -> bytes:
    data = BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


PHOTO = png(photo((80, 60)))


@pytest.fixture
def call(serve: Any) -> Callable[..., Any]:
    """Run a function of (client, the running service) in an application of its own."""

    def run(what: Callable[[httpx.AsyncClient, Any], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
        module = serve("service")
        app = module.make_app(SPEC, module.Settings(**{"wait": 0.0, **settings}))

        async def whole() -> Any:
            async with app.router.lifespan_context(app), asyncio.timeout(60):
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                    return await what(client, app.state.service)

        return asyncio.run(whole())

    return run


@pytest.mark.parametrize(("variant", "named"), [("dense", False), ("sieved", True)])
def test_an_answer_is_the_models_own(variant: str, named: bool, call: Any, tmp_path: Path) -> None:
    names = [f"digit {number}" for number in range(10)]
    (tmp_path / "names.json").write_text(json.dumps(names))

    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        return await client.post("/classify", params={"variant": variant, "k": 3}, content=PHOTO)

    answer = call(ask, **({"classes": str(tmp_path / "names.json")} if named else {}))
    assert answer.status_code == 200
    opened = SPEC.open()
    image = opened.preprocessing.transform()(Image.open(BytesIO(PHOTO)).convert("RGB"))[None]
    with torch.no_grad():
        likely, classes = (opened.dense if variant == "dense" else opened.fast)(image).softmax(1).topk(3)
    told = answer.json()
    assert told["variant"] == variant
    assert [each["class"] for each in told["classes"]] == classes[0].tolist()
    assert [each["probability"] for each in told["classes"]] == pytest.approx(likely[0].tolist(), abs=1e-5)
    labels = [names[each] if named else None for each in classes[0].tolist()]
    assert [each.get("label") for each in told["classes"]] == labels
    assert told["batch"] == 1


@pytest.mark.versions
def test_many_at_once_get_their_own_answers(call: Any) -> None:
    pictures = [png(photo((60, 60), seed=seed)) for seed in range(8)]

    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        alone = [(await client.post("/classify", content=data)).json() for data in pictures]
        together = await asyncio.gather(*(client.post("/classify", content=data) for data in pictures * 2))
        return alone, [answer.json() for answer in together], (await client.get("/stats")).json()

    alone, together, stats = call(ask, wait=0.5, batch=16)
    for one, other in zip(alone * 2, together, strict=True):
        assert [each["class"] for each in one["classes"]] == [each["class"] for each in other["classes"]]
        assert one["classes"][0]["probability"] == pytest.approx(other["classes"][0]["probability"], abs=1e-4)
    assert {answer["batch"] for answer in together} == {16}
    assert stats["sieved"]["images"] == 24
    assert stats["sieved"]["batches"] == 9
    assert stats["sieved"]["milliseconds"]["p50"] <= stats["sieved"]["milliseconds"]["p99"]
    assert stats["dense"]["images"] == 0


def test_it_says_what_runs(call: Any) -> None:
    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        return (await client.get("/")).json(), (await client.get("/openapi.json")).status_code

    facts, schema = call(ask)
    assert facts["model"] == "nano_vit"
    assert facts["recipe"] == SPEC.recipe
    assert facts["macs"]["dense"] > facts["macs"]["sieved"]
    assert schema == 200


BAD = {
    "text": (b"not a picture", 400, "The picture is not a picture that Pillow can read."),
    "nothing": (b"", 400, "The request has no body: send the picture's file as it is"),
    "cut short": (truncated(), 400, "The picture cannot be decoded"),
    "too large": (b"x" * 3000, 413, "The file is larger than"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_gets_a_sentence_and_the_next_one_an_answer(what: str, call: Any) -> None:
    data, status, told = BAD[what]

    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        bad = await client.post("/classify", content=data)
        return bad, await client.post("/classify", content=png(photo((8, 8))))

    bad, good = call(ask, largest=2500)
    assert bad.status_code == status
    assert told in bad.json()["detail"]
    assert good.status_code == 200


def test_odd_pictures_are_read(call: Any) -> None:
    pictures = [READ["cmyk.jpg"](), deep()]

    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        data = BytesIO()
        pictures[0].save(data, "JPEG")
        return [await client.post("/classify", content=each) for each in (data.getvalue(), png(pictures[1]))]

    assert [answer.status_code for answer in call(ask)] == [200, 200]


@pytest.mark.parametrize("words", [{"variant": "other"}, {"k": "0"}, {"k": "21"}, {"k": "many"}])
def test_other_words_are_refused(words: dict[str, str], call: Any) -> None:
    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        return await client.post("/classify", params=words, content=PHOTO)

    assert call(ask).status_code == 422


def test_too_many_requests_are_told_when_to_come_again(call: Any) -> None:
    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        go, batcher = threading.Event(), service.batchers["sieved"]
        model = batcher.ask
        batcher.ask = lambda images: go.wait(20) and model(images)
        tasks = [asyncio.create_task(client.post("/classify", content=PHOTO)) for _ in range(6)]
        while batcher.refused + len(batcher._waiting) < 4:
            await asyncio.sleep(0.01)
        go.set()
        return await asyncio.gather(*tasks)

    answers = call(ask, queue=2, batch=2)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) + sum(answer.status_code == 200 for answer in answers) == 6
    assert refused
    assert refused[0].json()["detail"].startswith("2 requests are waiting: try again in about ")
    assert int(refused[0].headers["Retry-After"]) >= 1


def test_a_model_that_fails_answers_500_and_goes_on(call: Any) -> None:
    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        batcher = service.batchers["sieved"]
        model = batcher.ask

        def fail(_: Any) -> Any:
            batcher.ask = model
            raise RuntimeError("no memory")

        batcher.ask = fail
        transport = httpx.ASGITransport(app=client._transport.app, raise_app_exceptions=False)  # type: ignore[attr-defined]
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as tolerant:
            return [(await tolerant.post("/classify", content=PHOTO)).status_code for _ in range(2)]

    assert call(ask) == [500, 200]


def test_the_load_client_counts_what_it_meets(call: Any, serve: Any) -> None:
    async def ask(client: httpx.AsyncClient, service: Any) -> Any:
        load = serve("load")
        good = await load.measure(client, "sieved", 4, 0.5, [PHOTO])
        bad = await load.measure(client, "dense", 1, 0.1, [b"text"])
        return good, bad, service.batchers["sieved"].images - 1

    good, bad, asked = call(ask)
    assert good.answered == asked
    assert (good.refused, good.failed, good.clients, good.variant) == (0, 0, 4, "sieved")
    assert 0 < good.p50 <= good.p99
    assert 1 <= good.batch <= 4
    assert bad.answered == 0
    assert bad.failed > 0


@pytest.mark.parametrize(("share", "found"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.001, 1)])
def test_percentiles_are_nearest_ranks(share: float, found: int, serve: Any) -> None:
    assert serve("load").percentile(list(range(100, 0, -1)), share) == found
