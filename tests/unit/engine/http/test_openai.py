"""The OpenAI dialect: the bodies of requests, and how answers and refusals are read."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from aiohttp import web

from chainette.engine.base import Cause, Completion, Finish, Request, SamplingParams
from chainette.engine.config import make_config
from chainette.engine.http.openai import OpenAIEngine, base_path, chat_body
from chainette.errors import EngineConfigError, EngineRefused
from chainette.records import Message
from tests.support.patience import LONG

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "minLength": 2}, "b": {"type": "integer", "default": 1}},
    "required": ["a"],
}
STRICT = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def ask(schema: dict[str, Any] = SCHEMA, **sampling: Any) -> Request:
    messages = (Message("system", "be brief"), Message("user", "hello"))
    return Request(messages, SamplingParams(**sampling), 7, schema, "answer")


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, LONG))


def answer(message: dict[str, Any], finish: str | None = "stop", **rest: Any) -> web.Response:
    return web.json_response({"model": "gpt-x-2026", "choices": [{"message": message, "finish_reason": finish}], **rest})


def complete(serve: Any, response: web.Response, **keys: Any) -> tuple[Completion, dict[str, Any]]:
    """The completion a response makes, and the body that was sent for it."""

    async def reply(asked: Any) -> web.Response:
        assert asked.path == "/v1/chat/completions"
        return response

    async def main() -> tuple[Completion, dict[str, Any]]:
        async with serve(reply) as server:
            engine = OpenAIEngine(make_config("llama", "m", "openai", endpoint=server.url, **keys))
            await engine.open()
            [completion] = await engine.generate([ask()])
            await engine.close()
            return completion, server.asked[0].body

    result: tuple[Completion, dict[str, Any]] = run(main())
    return result


def test_a_request_carries_messages_schema_seed_and_sampling(serve: Any) -> None:
    completion, body = complete(serve, answer({"content": '{"a": "x"}'}))
    assert completion.text == '{"a": "x"}'
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "seed": 7,
        "temperature": 0.0,
        "max_tokens": 1024,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": False, "schema": SCHEMA}},
    }


def test_the_name_of_a_schema_has_the_letters_and_the_length_that_openai_takes() -> None:
    asked = ["answer", "résumé", "resume", "rèsumè", "步骤", "ответ", "__", "", "x" * 64, "x" * 65, "x" * 66, "a b"]
    engine = OpenAIEngine(make_config("llama", "m", "openai"))
    formats = [engine._format(msgspec.structs.replace(ask(), schema_name=name)) for name in asked]
    names = [json.loads(bytes(made))["json_schema"]["name"] for made in formats if made is not None]
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in names)
    assert len(set(names)) == len(asked)
    assert [name for name in asked if name in names] == ["answer", "resume", "__", "x" * 64]


def test_sampling_goes_under_the_servers_names_and_extra_replaces_or_removes_keys() -> None:
    config = make_config("llama", "m", "openai", extra={"user": "me", "seed": None})
    request = ask(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        max_tokens=9,
        stop=("END",),
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        extra={"min_p": 0.05, "temperature": 1},
    )
    body = json.loads(chat_body(config, request, None, official=False))
    del body["messages"]
    assert body == {
        "model": "m",
        "temperature": 1,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 9,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "min_p": 0.05,
        "user": "me",
    }


@pytest.mark.parametrize("extra", [{}, {"seed": None}, {"seed": 1}], ids=["of each", "without", "of all"])
def test_each_request_of_a_unit_has_its_own_messages_and_the_seed_that_was_declared(extra: dict[str, Any]) -> None:
    config, first = make_config("llama", "m", "openai", extra=extra), ask()
    second = msgspec.structs.replace(first, messages=(Message("user", "bye"),), seed=8)
    engine = OpenAIEngine(config)
    alone = [chat_body(config, request, engine._format(request), official=False) for request in (first, second)]
    assert [msgspec.json.encode(body) for body in engine._bodies([first, second])] == alone


def test_openai_itself_gets_max_completion_tokens() -> None:
    body = json.loads(chat_body(make_config("gpt", "m", "openai"), ask(max_tokens=9), None, official=True))
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


def test_strict_sends_the_strict_subset_and_says_once_what_was_dropped(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def reply(asked: Any) -> web.Response:
        return answer({"content": "{}"})

    async def main() -> list[Any]:
        async with serve(reply) as server:
            engine = OpenAIEngine(make_config("llama", "m", "openai", endpoint=server.url, strict=True))
            await engine.open()
            await engine.generate([ask(), ask(dict(SCHEMA))])
            await engine.close()
            return [asked.body["response_format"]["json_schema"] for asked in server.asked]

    with caplog.at_level(logging.WARNING, logger="chainette"):
        sent = run(main())
    assert sent == [{"name": "answer", "strict": True, "schema": STRICT}] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "engine 'llama', schema 'answer': OpenAI's strict dialect has no default, minLength; validated when the answer comes"
    ]


def schema_sent(engine: OpenAIEngine, request: Request) -> Any:
    return json.loads(bytes(next(engine._bodies([request]))["response_format"]))["json_schema"]


def test_openai_itself_gets_the_strict_subset_its_own_token_limit_and_the_usual_key(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chainette.engine.http.openai._OFFICIAL", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    async def reply(asked: Any) -> web.Response:
        return answer({"content": "{}"})

    async def main() -> Any:
        async with serve(reply) as server:
            engine = OpenAIEngine(make_config("gpt", "m", "openai", endpoint=server.url))
            await engine.open()
            await engine.generate([ask(max_tokens=9)])
            await engine.close()
            return server.asked[0]

    asked = run(main())
    assert asked.headers["Authorization"] == "Bearer sk-secret"
    assert asked.body["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": STRICT}
    assert asked.body["max_completion_tokens"] == 9


def test_a_schema_that_strict_cannot_say_is_sent_whole_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    free = {"type": "object", "properties": {"a": {"type": "object", "additionalProperties": {"type": "integer"}}}}
    engine = OpenAIEngine(make_config("gpt", "m", "openai", strict=True))
    assert schema_sent(engine, ask(free)) == {"name": "answer", "strict": False, "schema": free}
    assert "cannot say a mapping with free keys" in caplog.text


@pytest.mark.parametrize(("kind", "sent"), [("json_object", {"type": "json_object"}), ("none", None)])
def test_response_format_can_be_less_than_a_schema(serve: Any, kind: str, sent: Any) -> None:
    _, body = complete(serve, answer({"content": "{}"}), response_format=kind)
    assert body.get("response_format") == sent


def test_an_unknown_response_format_is_a_config_error() -> None:
    with pytest.raises(EngineConfigError, match="response_format is 'xml', it must be one of json_schema, json_object, none"):
        OpenAIEngine(make_config("llama", "m", "openai", response_format="xml"))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_under_either_name(serve: Any, name: str) -> None:
    completion, _ = complete(serve, answer({"content": "{}", name: "I think"}))
    assert (completion.text, completion.reasoning) == ("{}", "I think")


def test_an_answer_cut_by_max_tokens_is_length_even_without_content(serve: Any) -> None:
    completion, _ = complete(serve, answer({"content": None, "reasoning": "hm"}, "length"))
    assert (completion.text, completion.finish, completion.reasoning) == ("", Finish.LENGTH, "hm")


def test_a_refusal_and_a_content_filter_are_refused(serve: Any) -> None:
    refusal, _ = complete(serve, answer({"content": None, "refusal": "I will not"}))
    assert (refusal.finish, refusal.error) == (Finish.REFUSED, "I will not")
    filtered, _ = complete(serve, answer({"content": "par"}, "content_filter"))
    assert (filtered.finish, filtered.error) == (Finish.REFUSED, "stopped by the provider's content filter")


def test_a_prompt_that_the_provider_filters_is_refused(serve: Any) -> None:
    error = {"code": "content_filter", "message": "The prompt was filtered"}
    completion, _ = complete(serve, web.json_response({"error": error}, status=400))
    assert (completion.finish, completion.error) == (Finish.REFUSED, "The prompt was filtered")


def test_usage_is_counted_and_may_be_missing(serve: Any) -> None:
    counted, _ = complete(serve, answer({"content": "{}"}, usage={"prompt_tokens": 4, "completion_tokens": 2}))
    assert (counted.usage.prompt_tokens, counted.usage.completion_tokens) == (4, 2)
    missing, _ = complete(serve, answer({"content": "{}"}, usage=None))
    assert (missing.usage.requests, missing.usage.prompt_tokens) == (1, 0)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "put a key that may use model 'm' in the environment variable T_KEY"),
        (403, "put a key that may use model 'm' in the environment variable T_KEY"),
        (404, "model 'm' is not there, or the endpoint is not a base URL"),
    ],
)
def test_a_refused_key_or_model_names_the_engine_the_url_and_what_to_do(
    serve: Any, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    monkeypatch.setenv("T_KEY", "sk-secret")

    async def reply(asked: Any) -> web.Response:
        assert asked.headers["Authorization"] == "Bearer sk-secret"
        return web.json_response({"error": {"message": "Incorrect key sk-secret, or sk-s***ret"}}, status=status)

    async def main() -> str:
        async with serve(reply) as server:
            engine = OpenAIEngine(make_config("llama", "m", "openai", endpoint=server.url, api_key_env="T_KEY"))
            await engine.open()
            try:
                [completion] = await engine.generate([ask()])
                said = f"engine 'llama': {completion.error}; {completion.hint}"
                assert (completion.finish, completion.cause) == (Finish.FAILED, Cause.DENIED)
            except EngineRefused as refused:
                said = str(refused)
            await engine.close()
            assert said.startswith(f"engine 'llama': {server.url}/v1/chat/completions answered {status}")
            assert len(server.asked) == 1
        return said

    said = run(main())
    assert words in said
    assert "sk-secret" not in said


def test_a_server_without_a_models_page_is_ready(serve: Any) -> None:
    async def reply(asked: Any) -> web.Response:
        return answer({"content": "{}"})

    async def main() -> dict[str, Any]:
        async with serve(reply, lambda: web.Response(status=404)) as server:
            engine = OpenAIEngine(make_config("llama", "m", "openai", endpoint=server.url + "/v1/"))
            await engine.open()
            assert engine.describe() == {"endpoints": [server.url + "/v1"]}
            await engine.generate([ask()])
            await engine.close()
        return engine.describe()

    assert run(main())["server_model"] == "gpt-x-2026"


@pytest.mark.parametrize(("listed", "named"), [(["a", "m"], "m"), (["file.gguf"], "file.gguf"), (["a", "b"], None)])
def test_the_description_names_the_model_that_the_server_lists(serve: Any, listed: list[str], named: str | None) -> None:
    async def reply(asked: Any) -> web.Response:
        return answer({"content": "{}"})

    async def main() -> Any:
        async with serve(reply, lambda: web.json_response({"data": [{"id": each} for each in listed]})) as server:
            engine = OpenAIEngine(make_config("llama", "m", "openai", endpoint=server.url))
            await engine.open()
            await engine.close()
        return engine.describe().get("server_model")

    assert run(main()) == named


def test_openai_itself_reads_its_usual_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EngineConfigError, match="environment variable OPENAI_API_KEY is not set"):
        run(OpenAIEngine(make_config("gpt", "gpt-x", "openai")).open())


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", "/v1"),
        ("/", "/v1"),
        ("/v1", "/v1"),
        ("/v1/", "/v1"),
        ("/v1/chat/completions", "/v1"),
        ("/openai/v1", "/openai/v1"),
        ("/v1beta/openai/", "/v1beta/openai"),
    ],
)
def test_a_base_url_may_or_may_not_end_in_v1(given: str, used: str) -> None:
    assert base_path(given) == used


def test_capacity_is_the_declared_one_or_64() -> None:
    assert OpenAIEngine(make_config("llama", "m", "openai")).capacity == 64
    assert OpenAIEngine(make_config("llama", "m", "openai", capacity=5)).capacity == 5
