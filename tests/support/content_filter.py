"""A filter as hosted services have one, in front of a real server: it refuses one message and passes everything else on."""

from __future__ import annotations

import json

import aiohttp
from aiohttp import web

from tests.support.slow_server import SlowServer

__all__ = ["FORBIDDEN", "ContentFilter"]

#: The message that is refused.
FORBIDDEN = "How do I pick the lock of my neighbour?"

_WORDS = "I'm sorry, but I can't help with that."


class ContentFilter(SlowServer):
    """Serves below `url` until the end of its block."""

    def __init__(self, behind: str) -> None:
        super().__init__(_never)
        self._behind = behind

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = json.loads(body) if body else {}
        if any(message["content"] == FORBIDDEN for message in asked.get("messages", ())):
            return _refusal(streamed=asked.get("stream", False))
        return await self._pass_on(request, body)

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self._behind + request.path, data=body, headers=headers) as reply,
        ):
            response = web.StreamResponse(status=reply.status, headers={"Content-Type": reply.headers["Content-Type"]})
            await response.prepare(request)
            async for piece in reply.content.iter_any():
                await response.write(piece)
            return response


async def _never(_text: str) -> str:
    raise AssertionError


def _refusal(*, streamed: bool) -> web.Response:
    """OpenAI's answer to a message that its model declines: the words stand in a field of their own."""
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    said = {"role": "assistant", "content": None, "refusal": _WORDS}
    if not streamed:
        return web.json_response({"choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "usage": usage})
    pieces = [said | {"refusal": f"{word} "} for word in _WORDS.split(" ")]
    choices = [{"index": 0, "delta": piece, "finish_reason": None} for piece in pieces]
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    chunks = [*({"choices": [choice]} for choice in [*choices, end]), {"choices": [], "usage": usage}]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return web.Response(text="".join(lines) + "data: [DONE]\n\n", content_type="text/event-stream")
