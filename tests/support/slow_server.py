"""A chat server in this process whose answers a test holds back, one by one; it counts the questions about each text."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.support.patience import LONG

__all__ = ["Answering", "SlowServer", "chat"]

#: Gets the last user message; the question's answer comes when it returns. Returns the content, or a whole reply.
Answering = Callable[[str], Awaitable[str | web.Response]]


def chat(content: str) -> web.Response:
    """A reply with this answer."""
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})


class SlowServer:
    """Serves in a thread, on a port of 127.0.0.1."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        #: Text -> questions about it.
        self.asked: Counter[str] = Counter()
        #: Text -> the client's port of the last question about it.
        self.ports: dict[str, int] = {}
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(LONG)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(LONG)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG)
        self._loop.close()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def call(self, work: Callable[[], object]) -> None:
        """Calls on the server's event loop."""
        self._loop.call_soon_threadsafe(work)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        body: dict[str, Any] = await request.json()
        text = next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")
        self.ports[text] = request.transport.get_extra_info("peername")[1] if request.transport is not None else 0
        self.asked[text] += 1  # last: a test that waits for it reads the port
        answer = await self._answering(text)
        return answer if isinstance(answer, web.Response) else chat(answer)
