"""Engines tell each answer as it arrives, and return all of them in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from chainette.engine.base import Completion, Engine, Request, SamplingParams
from chainette.engine.concurrent_requests import ask_all
from chainette.engine.config import make_config
from chainette.engine.http.ollama import OllamaEngine
from chainette.engine.http.openai import OpenAIEngine
from chainette.engine.llama_cpp.server import LlamaCppEngine
from chainette.engine.simulated.simulator import SimulatedEngine
from chainette.errors import EngineRefused, EngineUnavailable
from chainette.records import Message
from tests.support.models import SMOL, needs_model
from tests.support.patience import LONG

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}


def request(text: str = "a red ball", seed: int = 7) -> Request:
    return Request((Message("user", text),), SamplingParams(max_tokens=32), seed, SCHEMA, "answer")


def on(engine: Engine, work: Callable[[Engine], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        await engine.open()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(main(), LONG))


@pytest.mark.parametrize("latency", [0.0, 0.01])
def test_a_simulated_engine_tells_every_answer_once(latency: float) -> None:
    told: dict[int, Completion] = {}

    async def main(engine: Engine) -> None:
        requests = [request(seed=seed) for seed in range(9)]
        found = await engine.generate(requests, told.__setitem__)
        assert [told[index] for index in range(9)] == found == await engine.generate(requests)

    on(SimulatedEngine(make_config("sim", "m", "simulated", latency=latency)), main)


@needs_model
def test_llama_cpp_tells_every_answer_once() -> None:
    told: dict[int, Completion] = {}

    async def main(engine: Engine) -> None:
        found = await engine.generate([request(), request("a blue cup")], told.__setitem__)
        assert [told[0], told[1]] == found

    on(LlamaCppEngine(make_config("smol", SMOL, capacity=1, n_ctx=256)), main)


@pytest.mark.parametrize("backend", ["openai", "ollama"])
def test_an_answer_over_http_is_told_while_its_neighbours_are_awaited(backend: str, serve: Any) -> None:
    async def main() -> None:
        first_told = asyncio.Event()
        told: list[int] = []

        def done(index: int, _completion: Completion) -> None:
            told.append(index)
            first_told.set()

        async def slow(asked: Any) -> web.Response:
            if asked.text == "slow":
                await first_told.wait()
            message = {"role": "assistant", "content": asked.text}
            if backend == "ollama":
                return web.json_response({"model": "m", "message": message, "done": True, "done_reason": "stop"})
            return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})

        async with serve(slow, ready=lambda: web.json_response({"models": [{"name": "m", "digest": "d"}]})) as server:
            make = OllamaEngine if backend == "ollama" else OpenAIEngine
            path = "" if backend == "ollama" else "/v1"
            engine = make(make_config("llm", "m", backend, endpoint=f"{server.url.removesuffix('/v1')}{path}"))
            await engine.open()
            found = await engine.generate([request("slow"), request("quick")], done)
            await engine.close()
        assert told == [1, 0]
        assert [completion.text for completion in found] == ["slow", "quick"]

    asyncio.run(asyncio.wait_for(main(), LONG))


# -- ask_all


async def fail(error: Exception) -> Completion:
    raise error


async def after(event: asyncio.Event, text: str) -> Completion:
    await event.wait()
    return Completion(text)


def test_a_request_without_an_answer_is_raised_when_the_others_have_theirs() -> None:
    async def main() -> None:
        gate, told = asyncio.Event(), []
        asyncio.get_running_loop().call_later(0, gate.set)
        with pytest.raises(EngineUnavailable, match="first"):
            await ask_all(
                [fail(EngineUnavailable("first")), fail(EngineUnavailable("second")), after(gate, "c")],
                lambda index, completion: told.append((index, completion.text)),
            )
        assert told == [(2, "c")]

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_a_refusal_after_an_answer_is_raised_when_the_others_have_theirs() -> None:
    async def main() -> None:
        gate, told = asyncio.Event(), []

        async def refuse() -> Completion:
            asyncio.get_running_loop().call_later(0, gate.set)
            raise EngineRefused("no credit")

        with pytest.raises(EngineRefused, match="no credit"):
            await ask_all([refuse(), after(gate, "paid")], lambda _, completion: told.append(completion.text), lambda: True)
        assert told == ["paid"]

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_a_refusal_is_raised_at_once() -> None:
    async def main() -> None:
        with pytest.raises(EngineRefused):
            await ask_all([after(asyncio.Event(), "never"), fail(EngineRefused("no"))], None)

    asyncio.run(asyncio.wait_for(main(), LONG))
