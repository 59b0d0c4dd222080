"""Counts prompts by the tokenizer of an OpenAI-compatible server, if it has an endpoint for that, as vLLM's and llama.cpp's do.

vLLM: POST /tokenize takes messages and answers with their `count`. llama.cpp: POST /apply-template makes a prompt of messages,
and POST /tokenize answers with the tokens of a text. Both lie beside `/v1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeVar

import anyio
import msgspec

from chainette.engine.base import Request
from chainette.engine.config import EngineConfig
from chainette.engine.http.client import Client, Reply
from chainette.engine.http.endpoints import BasePath, Endpoint, Pool
from chainette.engine.http.timing import Policy, Timing
from chainette.errors import EngineConfigError
from chainette.utils.gather import together

__all__ = ["count_by_server"]

#: Seconds for a connection and for one prompt, since a plan does not wait for a busy server; and prompts at once.
_CONNECT, _PATIENCE, _AT_ONCE = 3.0, 10.0, 8

#: The key of `extra` whose value goes to the chat template.
_TEMPLATE_KEY = "chat_template_kwargs"

T = TypeVar("T")


class _Counted(msgspec.Struct):
    """vLLM's reply."""

    count: int


class _Rendered(msgspec.Struct):
    """llama.cpp's reply to messages."""

    prompt: str


class _Tokens(msgspec.Struct):
    """llama.cpp's reply to a text."""

    tokens: list[int]


async def count_by_server(
    config: EngineConfig, declared: Sequence[str], base_path: BasePath, requests: Sequence[Request]
) -> list[int] | None:
    """The tokens of each request's prompt; None if a server does not count them."""
    client = Client(config, _CONNECT)
    try:
        addresses = client.connect(declared, lambda path: base_path(path).removesuffix("/v1"), {})
    except EngineConfigError:
        return None
    turns = cycle(Pool(config.name, addresses, Policy(), Timing()).endpoints)
    counting, limiter = _Counting(config, client), anyio.CapacityLimiter(_AT_ONCE)

    async def one(request: Request) -> int | None:
        async with limiter:
            return None if counting.is_refused else await counting.count(next(turns), request)

    try:
        found = await together([one(request) for request in requests])
    finally:
        await client.close()
    counted = [tokens for tokens in found if tokens is not None]
    return counted if len(counted) == len(requests) else None


class _Counting:
    def __init__(self, config: EngineConfig, client: Client) -> None:
        self._config = config
        self._client = client
        #: Whether a server did not count, so that the others need not be asked.
        self.is_refused = False

    async def count(self, endpoint: Endpoint, request: Request) -> int | None:
        messages = {"messages": request.messages}
        extra = self._config.extra | request.sampling.extra
        chosen = {_TEMPLATE_KEY: extra[_TEMPLATE_KEY]} if _TEMPLATE_KEY in extra else {}
        asked = {"model": self._config.model, "add_generation_prompt": True, **messages, **chosen}
        counted = await self._send(endpoint, "/tokenize", asked, _Counted)
        if counted is not None:
            return counted.count
        rendered = await self._send(endpoint, "/apply-template", {**messages, **chosen}, _Rendered)
        if rendered is not None:
            text = {"content": rendered.prompt, "add_special": True, "parse_special": True}
            tokens = await self._send(endpoint, "/tokenize", text, _Tokens)
            if tokens is not None:
                return len(tokens.tokens)
        self.is_refused = True
        return None

    async def _send(self, endpoint: Endpoint, path: str, body: Mapping[str, Any], kind: type[T]) -> T | None:
        reply = await self._client.send(endpoint, path, msgspec.json.encode(body), _PATIENCE)
        if not isinstance(reply, Reply) or reply.status != 200:
            return None
        try:
            return msgspec.json.decode(reply.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # a server of another kind
            return None
