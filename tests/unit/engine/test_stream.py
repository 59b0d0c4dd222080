"""Answers told as they come: the pieces, joined, are the answer, from every backend and over broken tries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from chainette.engine.base import Completion, Delta, Engine, Finish, Request, SamplingParams
from chainette.engine.config import make_config
from chainette.engine.http.ollama import OllamaEngine
from chainette.engine.http.openai import OpenAIEngine
from chainette.engine.lifecycle import create_engine
from chainette.engine.llama_cpp.server import LlamaCppEngine
from chainette.engine.simulated.simulator import SimulatedEngine
from chainette.records import Message
from tests.support.models import SMOL, needs_model
from tests.support.patience import LONG
from tests.support.scripted import ScriptedEngine, scripted

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
TAGS = {"models": [{"name": "m", "digest": "d"}]}


def request(text: str = "a red ball", seed: int = 7, **sampling: Any) -> Request:
    return Request((Message("user", text),), SamplingParams(**{"max_tokens": 32} | sampling), seed, SCHEMA, "answer")


async def told(engine: Engine, asked: Request) -> tuple[Completion, list[Delta]]:
    deltas: list[Delta] = []
    return await engine.stream(asked, deltas.append), deltas


def joined(deltas: list[Delta]) -> tuple[str, str]:
    """Text and reasoning of the pieces that are not void."""
    last = max((index for index, delta in enumerate(deltas) if delta.anew), default=-1)
    return "".join(delta.text for delta in deltas[last + 1 :]), "".join(delta.reasoning for delta in deltas[last + 1 :])


def on(engine: Engine, work: Callable[[Engine], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        await engine.open()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(main(), LONG))


# -- in process


@pytest.mark.parametrize("latency", [0.0, 0.02])
def test_a_simulated_answer_comes_in_pieces_and_is_the_one_that_generate_gives(latency: float) -> None:
    async def both(engine: Engine) -> None:
        completion, deltas = await told(engine, request())
        assert len(deltas) > 2
        assert joined(deltas) == (completion.text, "")
        assert [completion] == await engine.generate([request()])

    on(SimulatedEngine(make_config("sim", "m", "simulated", latency=latency)), both)


def test_simulated_streams_wait_for_each_other_at_the_capacity() -> None:
    async def three(engine: Engine) -> None:
        order: list[int] = []
        await asyncio.gather(*[engine.stream(request(seed=seed), lambda _, seed=seed: order.append(seed)) for seed in range(3)])  # type: ignore[misc]
        assert order == sorted(order)

    on(SimulatedEngine(make_config("sim", "m", "simulated", latency=0.01, capacity=1)), three)


def test_an_engine_that_cannot_stream_tells_the_whole_answer() -> None:
    with scripted(llm=lambda _: Completion('{"name": "x"}', reasoning="hm")):
        from chainette import get_engine_config

        engine = create_engine(get_engine_config("llm"))
    assert isinstance(engine, ScriptedEngine)
    _, deltas = on(engine, lambda engine: told(engine, request()))
    assert deltas == [Delta('{"name": "x"}', "hm")]


@needs_model
def test_a_real_model_tells_its_tokens_and_gives_the_answer_that_generate_gives() -> None:
    async def both(engine: Engine) -> None:
        [whole] = await engine.generate([request()])
        completion, deltas = await told(engine, request())
        assert completion.finish is Finish.STOP
        assert len([delta for delta in deltas if delta.text]) >= completion.usage.completion_tokens // 2 > 1
        assert joined(deltas) == (completion.text, "") == (whole.text, "")

    on(LlamaCppEngine(make_config("smol", SMOL, capacity=1, n_ctx=256)), both)


@needs_model
def test_a_cancelled_stream_stops_at_the_model_and_tells_nothing_more() -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 4000}}, "required": ["text"]}
    story = Request((Message("user", "Tell a story"),), SamplingParams(max_tokens=1500), 1, schema, "story")

    async def cancel(engine: Engine) -> None:
        pieces: list[Delta] = []
        begun = asyncio.Event()

        def tell(delta: Delta) -> None:
            pieces.append(delta)
            begun.set()

        task = asyncio.create_task(engine.stream(story, tell))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        count = len(pieces)
        [completion] = await engine.generate([request()])  # waits for the only slot
        assert completion.finish is Finish.STOP
        assert len(pieces) == count < 200

    on(LlamaCppEngine(make_config("smol", SMOL, capacity=1, n_ctx=2048)), cancel)


# -- over HTTP


def event(text: str = "", finish: str | None = None, **delta: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text} | delta, "finish_reason": finish}
    return b"data: " + json.dumps({"model": "served", "choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}}\n\n'
DONE = b"data: [DONE]\n\n"


def line(text: str = "", done: bool = False, **keys: Any) -> bytes:
    thinking = {"thinking": keys.pop("thinking")} if "thinking" in keys else {}
    message = {"role": "assistant", "content": text} | thinking
    return json.dumps({"message": message, "done": done, **keys}, ensure_ascii=False).encode() + b"\n"


END = line(done=True, done_reason="stop", prompt_eval_count=5, eval_count=9)

#: A server's bytes at each try, in parts of one write each; None breaks the connection off.
Script = list[list[bytes | None]]


class Streams:
    """A server that plays one script per try, and the engine that asks it."""

    def __init__(self, serve: Any, make: Callable[[str], Engine]) -> None:
        self._serve = serve
        self._make = make
        self.bodies: list[dict[str, Any]] = []

    def ask(self, script: Script) -> tuple[Completion, list[Delta]]:
        async def play(asked: Any) -> web.StreamResponse:
            self.bodies.append(asked.body)
            response = web.StreamResponse()
            await response.prepare(asked.request)
            for part in script[asked.number]:
                if part is None:
                    asked.hang_up()
                    return response
                await response.write(part)
                await asyncio.sleep(0.001)  # lets the parts travel one by one
            return response

        async def main() -> tuple[Completion, list[Delta]]:
            async with self._serve(play, lambda: web.json_response(TAGS)) as server:
                engine = self._make(server.url)
                await engine.open()
                try:
                    return await told(engine, request())
                finally:
                    await engine.close()

        return asyncio.run(asyncio.wait_for(main(), LONG))


@pytest.fixture
def openai(serve: Any, fake_time: Any) -> Streams:
    return Streams(
        serve,
        lambda url: OpenAIEngine(make_config("llm", "m", "openai", endpoint=url, max_retries=2), timing=fake_time.timing),
    )


@pytest.fixture
def ollama(serve: Any, fake_time: Any) -> Streams:
    return Streams(
        serve,
        lambda url: OllamaEngine(make_config("llm", "m", "ollama", endpoint=url, max_retries=2), timing=fake_time.timing),
    )


def test_openai_events_become_pieces_and_the_answer(openai: Streams) -> None:
    parts = [event(reasoning_content="Let me see"), event('{"name": '), b": keep-alive\n\n", event('"Zoë"}'), event("", "stop")]
    completion, deltas = openai.ask([[*parts, USAGE, DONE]])
    assert deltas == [Delta("", "Let me see"), Delta('{"name": '), Delta('"Zoë"}')]
    assert (completion.text, completion.reasoning, completion.finish) == ('{"name": "Zoë"}', "Let me see", Finish.STOP)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5, 9)
    [body] = openai.bodies
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}


def test_an_event_may_travel_in_any_parts_and_with_any_line_ends(openai: Streams) -> None:
    whole = (event('{"name": "Zoë ') + event('☃"}', "stop") + DONE).replace(b"\n", b"\r\n")
    completion, deltas = openai.ask([[whole[at : at + 1] for at in range(len(whole))]])
    assert completion.text == '{"name": "Zoë ☃"}' == joined(deltas)[0]
    assert len(deltas) == 2


def test_a_cut_and_a_declined_answer_are_told_apart(openai: Streams) -> None:
    cut, _ = openai.ask([[event('{"na'), event("", "length"), DONE]])
    assert cut.finish is Finish.LENGTH
    declined, deltas = openai.ask([[event(refusal="I must not"), event("", "stop"), DONE]])
    assert (declined.finish, declined.error, deltas) == (Finish.REFUSED, "I must not", [])


def test_a_server_that_does_not_stream_gives_its_answer_in_one_piece(openai: Streams) -> None:
    answer = {"choices": [{"message": {"content": '{"name": "x"}'}, "finish_reason": "stop"}]}
    completion, deltas = openai.ask([[json.dumps(answer).encode()]])
    assert deltas == [Delta(completion.text)] == [Delta('{"name": "x"}')]


def test_ollama_lines_become_pieces_and_the_answer(ollama: Streams) -> None:
    completion, deltas = ollama.ask([[line(thinking="hm"), line('{"name": '), line('"Zoë"}'), END]])
    assert deltas == [Delta("", "hm"), Delta('{"name": '), Delta('"Zoë"}')]
    assert (completion.text, completion.reasoning, completion.finish) == ('{"name": "Zoë"}', "hm", Finish.STOP)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5, 9)
    assert ollama.bodies[0]["stream"] is True


GOOD = {"openai": [event('{"name":'), event('"y"}', "stop"), DONE], "ollama": [line('{"name":'), line('"y"}'), END]}
BROKEN: dict[str, list[list[bytes | None]]] = {
    "openai": [
        [event('{"name'), None],
        [event('{"name'), DONE],
        [event('{"name'), b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'],
        [event('{"name'), b"data: {not json\n\n", event("", "stop")],
    ],
    "ollama": [
        [line('{"name'), None],
        [line('{"name')],
        [line('{"name'), b'{"error": "out of memory"}\n'],
        [line('{"name'), b"{no\n"],
    ],
}
CASES = [(backend, number) for backend, scripts in BROKEN.items() for number in range(len(scripts))]


@pytest.mark.parametrize(("backend", "number"), CASES)
def test_an_answer_that_breaks_off_is_begun_anew_and_says_so(request: pytest.FixtureRequest, backend: str, number: int) -> None:
    streams: Streams = request.getfixturevalue(backend)
    completion, deltas = streams.ask([BROKEN[backend][number], [*GOOD[backend]]])
    assert completion.text == '{"name":"y"}' == joined(deltas)[0]
    assert [delta.anew for delta in deltas] == [False, True, False, False]
    assert deltas[0].text == '{"name'


@pytest.mark.parametrize(("backend", "number"), [("openai", 2), ("ollama", 0)])
def test_an_answer_that_always_breaks_off_is_no_answer(request: pytest.FixtureRequest, backend: str, number: int) -> None:
    streams: Streams = request.getfixturevalue(backend)
    completion, _ = streams.ask([BROKEN[backend][number]] * 3)
    assert completion.finish is Finish.FAILED
    assert "given up after 3 attempts" in completion.error


def test_closing_a_stream_closes_the_connection(serve: Any) -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def endless(asked: Any) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(asked.request)
            try:
                while True:
                    await response.write(event("x"))
                    await asyncio.sleep(0.001)
            finally:
                left.set()

        async with serve(endless) as server:
            engine = OpenAIEngine(make_config("llm", "m", "openai", endpoint=server.url))
            await engine.open()
            begun = asyncio.Event()
            task = asyncio.create_task(engine.stream(request(), lambda _: begun.set()))
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await left.wait()
            await engine.close()

    asyncio.run(asyncio.wait_for(main(), LONG))


@pytest.fixture
def llama_server() -> Iterator[str]:
    """llama.cpp's own HTTP server, with the key "sesame"."""
    import xllamacpp

    from chainette.engine.llama_cpp.model_path import model_path

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path(make_config("smol", SMOL)))
    params.verbosity, params.n_parallel, params.n_ctx, params.ui = -1, 1, 256, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib, params.fit_params, params.api_keys = 0, False, ["sesame"]
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


@pytest.mark.long
@needs_model
def test_a_real_server_streams_the_answer_that_it_gives_whole(llama_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_KEY", "sesame")

    async def both(engine: Engine) -> None:
        [whole] = await engine.generate([request()])
        completion, deltas = await told(engine, request())
        assert (completion.text, completion.finish) == (whole.text, Finish.STOP)
        assert joined(deltas) == (whole.text, "")
        assert len(deltas) > 3
        assert completion.usage.completion_tokens == whole.usage.completion_tokens > 0
        long, _ = await told(engine, request("word " * 400))
        assert long.finish is Finish.TOO_LONG

    on(OpenAIEngine(make_config("llm", "m", "openai", endpoint=f"{llama_server}/v1", api_key_env="LLAMA_KEY")), both)
