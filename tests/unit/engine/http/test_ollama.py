"""Ollama: the bodies of requests, how answers are read, and the message about a missing model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from aiohttp import web

from chainette.engine.base import Cause, Completion, Finish, Request, SamplingParams
from chainette.engine.config import make_config
from chainette.engine.http.ollama import OllamaEngine, chat_body
from chainette.errors import EngineConfigError, EngineRefused, EngineUnavailable
from chainette.records import Message
from tests.support.patience import LONG

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "minLength": 2}}, "required": ["a"]}
TAGS = {"models": [{"name": "qwen3:0.6b", "digest": "d1"}, {"name": "llama3.2:latest", "digest": "d2"}]}


def tags() -> web.Response:
    return web.json_response(TAGS)


def ask(**sampling: Any) -> Request:
    return Request((Message("user", "hello"),), SamplingParams(**sampling), 7, SCHEMA, "answer")


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, LONG))


def complete(serve: Any, response: web.Response, **keys: Any) -> tuple[Completion, dict[str, Any]]:
    """The completion a response makes, and the body that was sent for it."""

    async def reply(asked: Any) -> web.Response:
        assert asked.path == "/api/chat"
        return response

    async def main() -> tuple[Completion, dict[str, Any]]:
        async with serve(reply, tags) as server:
            engine = OllamaEngine(make_config("local", "llama3.2", "ollama", endpoint=server.url, **keys))
            await engine.open()
            [completion] = await engine.generate([ask()])
            await engine.close()
            return completion, server.asked[0].body

    result: tuple[Completion, dict[str, Any]] = run(main())
    return result


def test_a_request_carries_the_schema_as_format_and_sampling_as_options(serve: Any) -> None:
    response = web.json_response(
        {
            "message": {"content": '{"a": "xy"}', "thinking": "hm"},
            "done_reason": "stop",
            "prompt_eval_count": 9,
            "eval_count": 4,
        }
    )
    completion, body = complete(serve, response, keep_alive="5m", num_ctx=2048)
    assert body == {
        "model": "llama3.2",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": False,
        "format": SCHEMA,
        "options": {"temperature": 0.0, "seed": 7, "num_predict": 1024, "num_ctx": 2048},
        "keep_alive": "5m",
        "truncate": False,
        "shift": False,
    }
    assert (completion.text, completion.finish, completion.reasoning) == ('{"a": "xy"}', Finish.STOP, "hm")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (9, 4)


def test_sampling_goes_under_ollamas_names_and_extra_where_it_belongs() -> None:
    config = make_config("local", "m", "ollama", extra={"think": False, "num_gpu": 1})
    request = ask(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        max_tokens=9,
        stop=("END",),
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        extra={"min_p": 0.05, "shift": None},
    )
    body = json.loads(chat_body(config, request, stream=False))
    assert body["options"] == {
        "temperature": 0.5,
        "seed": 7,
        "num_predict": 9,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repeat_penalty": 1.1,
        "min_p": 0.05,
        "num_gpu": 1,
    }
    assert body["think"] is False
    assert body.keys() == {"model", "messages", "stream", "format", "options", "truncate", "think"}


def test_an_answer_cut_by_num_predict_is_length(serve: Any) -> None:
    completion, _ = complete(serve, web.json_response({"message": {"content": '{"a'}, "done_reason": "length"}))
    assert (completion.text, completion.finish) == ('{"a', Finish.LENGTH)


def test_a_prompt_that_does_not_fit_is_too_long(serve: Any) -> None:
    words = "the input length exceeds the context length"
    completion, _ = complete(serve, web.json_response({"error": words}, status=400))
    assert (completion.finish, completion.error) == (Finish.TOO_LONG, words)


def _open(serve: Any, ready: Any, model: str = "llama3.2", **keys: Any) -> OllamaEngine:
    async def reply(asked: Any) -> web.Response:
        return web.json_response({"error": f"model '{model}' not found"}, status=404)

    async def main() -> OllamaEngine:
        async with serve(reply, ready) as server:
            engine = OllamaEngine(make_config("local", model, "ollama", endpoint=server.url + "/", **keys))
            await engine.open()
            try:
                await engine.generate([ask()])
            finally:
                await engine.close()
            return engine

    result: OllamaEngine = run(main())
    return result


def test_a_missing_model_is_refused_at_the_start_with_the_command_that_gets_it(serve: Any) -> None:
    with pytest.raises(EngineRefused, match=r"lists qwen3:0.6b, llama3.2:latest\); run `ollama pull gemma3`"):
        _open(serve, tags, "gemma3")


def test_a_model_that_went_away_is_refused_with_the_command_that_gets_it(serve: Any) -> None:
    completion, _ = complete(serve, web.json_response({"error": "model 'llama3.2' not found"}, status=404))
    assert (completion.finish, completion.cause) == (Finish.FAILED, Cause.DENIED)
    assert completion.error.endswith("/api/chat answered 404 (model 'llama3.2' not found)")
    assert completion.hint.startswith("run `ollama pull llama3.2`")


@pytest.mark.parametrize("status", [200, 404])
def test_another_server_is_not_taken_for_ollama(serve: Any, status: int) -> None:
    with pytest.raises(EngineRefused, match=r"/api/tags .*correct .*endpoint"):
        _open(serve, lambda: web.Response(text="hello", status=status))


def test_a_server_that_is_not_started_is_unavailable_and_says_how_to_start_it(fake_time: Any) -> None:
    config = make_config("local", "m", "ollama", endpoint="http://127.0.0.1:1", startup_timeout=5)
    with pytest.raises(
        EngineUnavailable, match=r"http://127.0.0.1:1/api/tags cannot be reached .*start it with `ollama serve`"
    ):
        run(OllamaEngine(config, timing=fake_time.timing).open())


def test_the_description_names_the_model_and_its_digest(serve: Any) -> None:
    async def reply(asked: Any) -> web.Response:
        return web.json_response({"message": {"content": "{}"}})

    async def main() -> None:
        async with serve(reply, tags) as server:
            engine = OllamaEngine(make_config("local", "llama3.2", "ollama", endpoint=server.url))
            await engine.open()
            await engine.close()
            assert engine.describe() == {"endpoints": [server.url], "server_model": "llama3.2:latest", "digest": "d2"}
            assert server.checked == ["/api/tags"]

    run(main())


def test_the_defaults_are_the_local_server_and_8_requests_at_once() -> None:
    engine = OllamaEngine(make_config("local", "m", "ollama"))
    assert engine.describe() == {"endpoints": ["http://127.0.0.1:11434"]}
    assert engine.capacity == 8


def test_another_backends_configuration_is_refused() -> None:
    with pytest.raises(EngineConfigError, match="backend is 'openai', not 'ollama'"):
        OllamaEngine(make_config("gpt", "m", "openai"))
