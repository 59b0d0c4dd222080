"""A small real HTTP server whose answers a test scripts, and a clock that moves only when someone sleeps."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from chainette.engine.base import Request, SamplingParams
from chainette.engine.config import make_config
from chainette.engine.http.breaker import State
from chainette.engine.http.openai import OpenAIEngine
from chainette.engine.http.timing import Policy, Timing
from chainette.records import Message
from tests.support.processes import free_port

Answer = Callable[["Asked"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Asked:
    """One POST the server received."""

    #: From 0, in the order of arrival.
    number: int
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: dict[str, Any]
    #: Breaks the connection.
    hang_up: Callable[[], None]
    #: For answers that are streamed.
    request: web.Request

    @property
    def text(self) -> str:
        """The content of the last message."""
        return str(self.body["messages"][-1]["content"])


@dataclass
class Server:
    """A test's record of its server."""

    answer: Answer
    #: The answer to every GET.
    ready: Callable[[], web.Response]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            self.checked.append(request.path)
            return self.ready()
        body = json.loads(await request.read())
        assert request.transport is not None
        headers, hang_up = dict(request.headers), request.transport.abort
        asked = Asked(len(self.asked), request.path, dict(request.query), headers, body, hang_up, request)
        self.asked.append(asked)
        return await self.answer(asked)


@asynccontextmanager
async def _serve(
    answer: Answer, ready: Callable[[], web.Response] = lambda: web.json_response({"data": []})
) -> AsyncIterator[Server]:
    server = Server(answer, ready)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
def serve() -> Any:
    """`async with serve(answer) as server`: a server that answers every POST with `await answer(asked)`."""
    return _serve


class FakeTime:
    """Seconds that pass only in `sleep`; the random number is always `chance`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.chance = 0.5
        self.slept: list[float] = []
        self.timing = Timing(clock=lambda: self.now, wall=lambda: self.now, sleep=self._sleep, random=lambda: self.chance)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


class Http:
    """The steps the tests of the transport share."""

    def ask(self, text: str = "hello") -> Request:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
        return Request((Message("user", text),), SamplingParams(), 7, schema, "answer")

    def good(self, text: str = "{}", tokens: int = 3, finish: str = "stop") -> web.Response:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        usage = {"prompt_tokens": 5, "completion_tokens": tokens}
        return web.json_response({"model": "served", "choices": [choice], "usage": usage})

    def bad(self, status: int, message: str = "no", **headers: str) -> web.Response:
        return web.json_response({"error": {"message": message}}, status=status, headers=headers)

    def make(self, *urls: str, time: FakeTime | None = None, policy: Policy | None = None, **keys: Any) -> OpenAIEngine:
        config = make_config("llama", "m", "openai", endpoint=list(urls), **keys)
        return OpenAIEngine(config, timing=time.timing if time is not None else None, policy=policy)

    def state(self, engine: OpenAIEngine) -> State:
        """Of the breaker of its first endpoint."""
        return engine._transport.pool.endpoints[0].breaker.state

    def free_port(self) -> int:
        return free_port()


@pytest.fixture
def http() -> Http:
    return Http()


@pytest.fixture(params=["httptools", "aiohttp"])
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library that carries the requests; without httptools it is aiohttp."""
    if request.param == "httptools":
        pytest.importorskip("httptools")
    else:
        monkeypatch.setitem(sys.modules, "httptools", None)
    return str(request.param)
