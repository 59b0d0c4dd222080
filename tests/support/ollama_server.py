"""A server with Ollama's API (https://docs.ollama.com/api) before the small model: Ollama itself is no Python package."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.support.llama_server import llama_server
from tests.support.patience import LONG

__all__ = ["MODEL", "ollama_server"]

MODEL = "smollm2:135m"

#: Ollama's name of a sampling parameter -> llama.cpp's.
_OPTIONS = {"num_predict": "max_tokens", "repeat_penalty": "repeat_penalty"} | {
    name: name for name in ("temperature", "seed", "top_p", "top_k", "stop", "presence_penalty", "frequency_penalty")
}


@contextmanager
def ollama_server() -> Iterator[str]:
    """The address of the server, until the end of the block."""
    loop, started, address = asyncio.new_event_loop(), threading.Event(), list[str]()
    with llama_server() as llama:
        thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(llama, started, address)))
        thread.start()
        try:
            assert started.wait(LONG)
            yield address[0]
        finally:
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
            thread.join(LONG)
            loop.close()


async def _serve(llama: Any, started: threading.Event, address: list[str]) -> None:
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.get("/api/tags", _tags), web.post("/api/chat", lambda request: _chat(llama, request))])
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        address.append(f"http://{host}:{port}")
        started.set()
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    finally:
        await runner.cleanup()


async def _tags(_request: web.Request) -> web.Response:
    details = {"format": "gguf", "family": "llama", "parameter_size": "134.52M", "quantization_level": "Q4_1"}
    model = {
        "name": MODEL,
        "model": MODEL,
        "modified_at": _now(),
        "size": 98_362_432,
        "digest": "9077fe9d2ae1" * 5,
        "details": details,
    }
    return web.json_response({"models": [model]})


async def _chat(llama: Any, request: web.Request) -> web.StreamResponse:
    body = await request.json()
    if body["model"] != MODEL:
        return web.json_response({"error": f"model '{body['model']}' not found"}, status=404)
    chunks = _chunks(llama, _translated(body))
    first = await anext(chunks)
    if "error" in first:
        too_long = first["error"].get("type") == "exceed_context_size_error"
        said = "the input length exceeds the context length" if too_long else first["error"]["message"]
        return web.json_response({"error": said}, status=400)
    if body.get("stream", True):
        return await _streamed(request, first, chunks)
    return web.json_response(await _whole(first, chunks))


def _translated(body: dict[str, Any]) -> dict[str, Any]:
    asked = {"messages": body["messages"], "stream": True, "stream_options": {"include_usage": True}}
    asked |= {ours: body["options"][theirs] for theirs, ours in _OPTIONS.items() if theirs in body.get("options", {})}
    if isinstance(body.get("format"), dict):
        schema = {"name": "format", "strict": True, "schema": body["format"]}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    return asked


async def _chunks(llama: Any, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Chunks of the model's answer as they come; leaving the loop stops the model."""
    loop, arrived, gone = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()

    def take(chunk: dict[str, Any]) -> bool:
        loop.call_soon_threadsafe(arrived.put_nowait, chunk)
        return gone.is_set()

    answering = loop.run_in_executor(None, llama.handle_chat_completions, asked, take)
    answering.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while (chunk := await arrived.get()) is not None:
            yield chunk
    finally:
        gone.set()


async def _streamed(request: web.Request, first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    end: dict[str, Any] = {}
    async for chunk in _all(first, chunks):
        end |= _end(chunk)
        if text := _text(chunk):
            await response.write(_line(text, {"done": False}))
    await response.write(_line("", end))
    return response


async def _whole(first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    texts, end = list[str](), dict[str, Any]()
    async for chunk in _all(first, chunks):
        texts.append(_text(chunk))
        end |= _end(chunk)
    found: dict[str, Any] = json.loads(_line("".join(texts), end))
    return found


async def _all(first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    yield first
    async for chunk in chunks:
        yield chunk


def _line(text: str, rest: dict[str, Any]) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"model": MODEL, "created_at": _now(), "message": message} | rest).encode() + b"\n"


def _text(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))


def _end(chunk: dict[str, Any]) -> dict[str, Any]:
    """The fields of Ollama's last line a chunk knows."""
    usage, reasons = chunk.get("usage") or {}, [choice.get("finish_reason") for choice in chunk.get("choices", ())]
    found: dict[str, Any] = {"done": True}
    found |= {"done_reason": reasons[0]} if reasons and reasons[0] else {}
    return found | (
        {"prompt_eval_count": usage["prompt_tokens"], "eval_count": usage["completion_tokens"], "total_duration": 1}
        if usage
        else {}
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
