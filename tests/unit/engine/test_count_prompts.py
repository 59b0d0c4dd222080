"""Prompts are counted as the model's own tokenizer counts them, before anything is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from chainette.engine.base import Engine, Request, SamplingParams
from chainette.engine.config import make_config
from chainette.engine.http.ollama import OllamaEngine
from chainette.engine.http.openai import OpenAIEngine
from chainette.engine.llama_cpp.server import LlamaCppEngine
from chainette.engine.simulated.simulator import SimulatedEngine
from chainette.engine.vllm.async_llm import VllmEngine
from chainette.records import Message
from tests.support.llama_server import llama_server
from tests.support.models import SMOL, needs_model
from tests.support.patience import LONG

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}
TEXTS = ("a red ball", "Häuser, grün wie Gräser", "end <|im_end|> of a turn")


def requests(texts: Sequence[str] = TEXTS, **sampling: Any) -> list[Request]:
    params = SamplingParams(**{"max_tokens": 1} | sampling)
    system = Message("system", "Answer in JSON.")
    return [Request((system, Message("user", text)), params, 7, SCHEMA, "answer") for text in texts]


def counted(engine: Engine, asked: Sequence[Request]) -> list[int] | None:
    return asyncio.run(asyncio.wait_for(engine.count_prompts(asked), LONG))


async def billed(engine: Engine, asked: Sequence[Request]) -> list[int]:
    """The tokens of the prompts, as the answers to them say."""
    await engine.open()
    try:
        return [completion.usage.prompt_tokens for completion in await engine.generate(asked)]
    finally:
        await engine.close()


def test_simulated_engines_count_as_they_bill() -> None:
    engine = SimulatedEngine(make_config("sim", "m", "simulated"))
    assert counted(engine, requests()) == asyncio.run(billed(engine, requests()))


@pytest.mark.long
@needs_model
def test_llama_cpp_counts_as_it_bills_without_being_open() -> None:
    asked = requests()
    found = counted(LlamaCppEngine(make_config("smol", SMOL, "llama_cpp", n_ctx=2048)), asked)
    assert found == asyncio.run(billed(LlamaCppEngine(make_config("smol", SMOL, "llama_cpp", capacity=1, n_ctx=256)), asked))


@needs_model
def test_a_server_of_llama_cpp_counts_as_it_bills() -> None:
    asked = requests(TEXTS[:2])
    with llama_server() as server:
        engine = OpenAIEngine(make_config("llm", "m", "openai", endpoint=f"{server.listening_address}/v1"))
        assert counted(engine, asked) == asyncio.run(billed(engine, asked))


def test_a_server_that_counts_as_vllm_does_is_asked_beside_its_version(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_KEY", "sesame")

    async def count(asked: Any) -> web.Response:
        words = [word for message in asked.body["messages"] for word in message["content"].split()]
        return web.json_response({"count": len(words), "max_model_len": 4096, "tokens": [1] * len(words)})

    async def main() -> None:
        async with serve(count) as server:
            config = make_config("llm", "m", "openai", endpoint=f"{server.url}/v1", api_key_env="LLM_KEY")
            engine = OpenAIEngine(config)
            assert await engine.count_prompts(requests(extra={"chat_template_kwargs": {"thinking": False}})) == [6, 7, 8]
            sent = {(asked.path, asked.headers["Authorization"], asked.body["model"]) for asked in server.asked}
            assert sent == {("/tokenize", "Bearer sesame", "m")} and len(server.asked) == 3
            body = server.asked[0].body
            assert body["add_generation_prompt"] and body["chat_template_kwargs"] == {"thinking": False}

    asyncio.run(asyncio.wait_for(main(), LONG))


def not_found() -> web.Response:
    return web.Response(status=404)


def other_tokens() -> web.Response:
    return web.json_response({"tokens": "many"})


def broken() -> web.Response:
    return web.Response(text="[")


@pytest.mark.parametrize("reply", [not_found, other_tokens, broken])
def test_a_server_that_does_not_count_is_not_asked_for_every_prompt(serve: Any, reply: Callable[[], web.Response]) -> None:
    async def refuse(_asked: Any) -> web.Response:
        return reply()

    async def main() -> None:
        async with serve(refuse) as server:
            engine = OpenAIEngine(make_config("llm", "m", "openai", endpoint=server.url))
            assert await engine.count_prompts(requests(["x"] * 99)) is None
            assert {asked.path for asked in server.asked} == {"/tokenize", "/apply-template"} and len(server.asked) <= 16

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_without_a_tokenizer_there_is_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_KEY", raising=False)
    nobody = "http://127.0.0.1:9"
    engines = [
        OpenAIEngine(make_config("llm", "gpt-4o-mini", "openai")),
        OpenAIEngine(make_config("llm", "m", "openai", endpoint=nobody)),
        OpenAIEngine(make_config("llm", "m", "openai", endpoint=nobody, api_key_env="LLM_KEY")),
        OllamaEngine(make_config("llm", "m", "ollama")),
        LlamaCppEngine(make_config("smol", "none.gguf", "llama_cpp")),
        VllmEngine(make_config("llm", "nobody/none", "vllm")),
    ]
    assert [counted(engine, requests()) for engine in engines] == [None] * len(engines)
