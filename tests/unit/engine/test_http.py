"""The transport against a real server: retries, concurrency, endpoints, and what an error may say."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Coroutine
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from chainette.engine.base import Completion, Finish, Request, SamplingParams
from chainette.engine.breaker import State
from chainette.engine.config import make_config
from chainette.engine.openai import OpenAIEngine
from chainette.engine.timing import Policy, retry_after
from chainette.errors import EngineConfigError, EngineRefused, EngineUnavailable
from chainette.records import Message

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def ask(text: str = "hello") -> Request:
    return Request((Message("user", text),), SamplingParams(), 7, SCHEMA, "answer")


def good(text: str = "{}", tokens: int = 3) -> web.Response:
    message = {"role": "assistant", "content": text}
    return web.json_response(
        {
            "model": "served",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens},
        }
    )


def bad(status: int, message: str = "no", **headers: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def make(*urls: str, time: Any = None, policy: Policy | None = None, **keys: Any) -> OpenAIEngine:
    config = make_config("llama", "m", "openai", endpoint=list(urls), **keys)
    return OpenAIEngine(config, timing=time and time.timing, policy=policy)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def state(engine: OpenAIEngine) -> State:
    """Of the breaker of its first endpoint."""
    return engine._transport.pool.endpoints[0].breaker.state


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_answers_keep_the_order_of_the_requests_whatever_their_latency(serve: Any) -> None:
    async def main() -> None:
        arrived: list[asyncio.Event] = [asyncio.Event() for _ in range(20)]

        async def last_first(asked: Any) -> web.Response:
            number = int(asked.text)
            if number < 19:
                await arrived[number + 1].wait()
            arrived[number].set()
            return good(asked.text)

        async with serve(last_first) as server:
            engine = make(server.url)
            await engine.open()
            completions = await engine.generate([ask(str(number)) for number in range(20)])
            await engine.close()
        assert [completion.text for completion in completions] == [str(number) for number in range(20)]

    run(main())


def test_as_many_requests_as_capacity_are_in_flight_and_never_more(serve: Any) -> None:
    async def main() -> None:
        now = most = 0
        full = asyncio.Barrier(3)

        async def counted(asked: Any) -> web.Response:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await full.wait()
            now -= 1
            return good()

        async with serve(counted) as server:
            engine = make(server.url, capacity=3)
            await engine.open()
            await asyncio.gather(*(engine.generate([ask() for _ in range(6)]) for _ in range(4)))
            await engine.close()
        assert most == 3

    run(main())


@pytest.mark.parametrize("header", ["7", formatdate(7, usegmt=True)])
def test_a_429_waits_for_retry_after_and_sends_the_same_body_again(serve: Any, fake_time: Any, header: str) -> None:
    async def main() -> None:
        async def busy_once(asked: Any) -> web.Response:
            return bad(429, **{"Retry-After": header}) if asked.number == 0 else good("yes")

        async with serve(busy_once) as server:
            engine = make(server.url, time=fake_time)
            await engine.open()
            [completion] = await engine.generate([ask()])
            await engine.close()
        assert completion.text == "yes"
        assert fake_time.now == pytest.approx(7.0)
        assert server.asked[0].body == server.asked[1].body

    run(main())


def test_retry_after_reads_seconds_and_dates_and_nothing_else() -> None:
    assert retry_after("1.5", 0.0) == 1.5
    assert retry_after(formatdate(100, usegmt=True), 40.0) == 60.0
    assert retry_after(formatdate(100, usegmt=True), 400.0) == 0.0
    assert retry_after("soon", 0.0) is None
    assert retry_after(None, 0.0) is None


def test_500s_are_tried_again_with_growing_pauses(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def broken_thrice(asked: Any) -> web.Response:
            return bad(500) if asked.number < 3 else good("yes")

        fake_time.chance = 1.0
        async with serve(broken_thrice) as server:
            engine = make(server.url, time=fake_time)
            await engine.open()
            [completion] = await engine.generate([ask()])
            await engine.close()
        assert completion.text == "yes"
        assert fake_time.slept == [0.5, 1.0, 2.0]

    run(main())


def test_500s_without_end_make_the_engine_unavailable_and_cancel_the_rest(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        hanging, cancelled = asyncio.Event(), asyncio.Event()

        async def broken(asked: Any) -> web.Response:
            if asked.text == "hang":
                hanging.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.set()
                    raise
            await hanging.wait()
            return bad(500, "out of cheese")

        async with serve(broken) as server:
            engine = make(server.url, time=fake_time, max_retries=2)
            await engine.open()
            with pytest.raises(EngineUnavailable, match=r"answered 500 \(out of cheese\); given up after 3 tries"):
                await engine.generate([ask("hang"), ask("fail")])
            await cancelled.wait()
            await engine.close()
        assert [asked.text for asked in server.asked].count("fail") == 3
        assert engine._transport.limiter.in_flight == 0

    run(main())


def test_a_broken_connection_and_a_body_that_is_no_answer_are_tried_again(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def clumsy(asked: Any) -> web.StreamResponse:
            if asked.number == 0:
                asked.hang_up()
            if asked.number == 1:
                return web.Response(text="<html>welcome</html>")
            return web.json_response({"choices": []}) if asked.number == 2 else good("yes")

        async with serve(clumsy) as server:
            engine = make(server.url, time=fake_time)
            await engine.open()
            [completion] = await engine.generate([ask()])
            await engine.close()
        assert (completion.text, len(server.asked)) == ("yes", 4)

    run(main())


def test_a_request_that_hangs_alone_is_its_own_error(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        hung = asyncio.Event()

        async def one_hangs(asked: Any) -> web.Response:
            if asked.text == "hang":
                hung.set()
                await asyncio.Event().wait()
            await hung.wait()
            return good("yes")

        async with serve(one_hangs) as server:
            engine = make(server.url, time=fake_time, request_timeout=0.3)
            await engine.open()
            stuck = asyncio.create_task(engine.generate([ask("hang")]))
            texts = []
            while not stuck.done():
                texts += [completion.text for completion in await engine.generate([ask("go")])]
            await engine.close()
        [completion] = stuck.result()
        assert completion.finish is Finish.ERROR
        assert completion.error == "timed out after 0.3 s, 2 times, while other requests were answered"
        assert set(texts) == {"yes"}

    run(main())


def test_when_every_request_hangs_no_row_is_blamed(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def hang(asked: Any) -> web.Response:
            await asyncio.Event().wait()
            return good()

        async with serve(hang) as server:
            engine = make(server.url, time=fake_time, request_timeout=0.05, max_retries=1)
            await engine.open()
            with pytest.raises(EngineUnavailable, match=r"gave no answer in 0.05 s; given up after 2 tries"):
                await engine.generate([ask(), ask()])
            await engine.close()

    run(main())


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_4xx_about_the_request_is_that_requests_completion(serve: Any, status: int) -> None:
    async def main() -> None:
        async def picky(asked: Any) -> web.Response:
            return bad(status, "messages[0] is odd") if asked.text == "odd" else good("yes")

        async with serve(picky) as server:
            engine = make(server.url)
            await engine.open()
            odd, fine = await engine.generate([ask("odd"), ask("fine")])
            await engine.close()
        assert (odd.finish, odd.error) == (Finish.ERROR, f"{status}: messages[0] is odd")
        assert fine.text == "yes"
        assert len(server.asked) == 2

    run(main())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "This model's maximum context length is 512 tokens. However, you requested 1124 tokens"),
        (400, "the request exceeds the available context size (512 tokens), try increasing it"),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"),
        (400, "Prompt is too long: 600 tokens"),
        (500, "the input length exceeds the context length"),
    ],
)
def test_a_prompt_that_does_not_fit_is_too_long_with_the_servers_words(serve: Any, status: int, words: str) -> None:
    async def main() -> None:
        async def small(asked: Any) -> web.Response:
            return bad(status, words)

        async with serve(small) as server:
            engine = make(server.url)
            await engine.open()
            [completion] = await engine.generate([ask()])
            await engine.close()
        assert (completion.finish, completion.error) == (Finish.TOO_LONG, words)

    run(main())


def test_the_limit_shrinks_on_429_and_grows_back(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        busy = True

        async def answer(asked: Any) -> web.Response:
            return bad(429) if busy else good()

        async with serve(answer) as server:
            engine = make(server.url, time=fake_time, capacity=16, max_retries=3)
            await engine.open()
            with pytest.raises(EngineUnavailable):
                await engine.generate([ask()])
            shrunk = engine._transport.limiter.limit
            busy = False
            await engine.generate([ask() for _ in range(300)])
            await engine.close()
        assert shrunk < 16
        assert engine._transport.limiter.limit == 16

    run(main())


def test_long_answers_are_not_taken_for_slow_ones(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def timed(asked: Any) -> web.Response:
            tokens = int(asked.text)
            fake_time.now += 0.2 + tokens / 100
            return good(tokens=tokens)

        async with serve(timed) as server:
            engine = make(server.url, time=fake_time, capacity=8)
            await engine.open()
            for tokens in [10] * 16 + [1000] * 16:
                await engine.generate([ask(str(tokens))])
            await engine.close()
        assert engine._transport.limiter.limit == 8

    run(main())


def test_the_breaker_opens_on_errors_lets_one_probe_through_and_closes(serve: Any) -> None:
    policy = Policy(least_seen=4, window=8, cooldown=0.02, backoff=0.0)

    async def main() -> None:
        broken = True
        at_once = most_while_probing = 0
        probed, go = asyncio.Event(), asyncio.Event()

        async def answer(asked: Any) -> web.Response:
            nonlocal at_once, most_while_probing
            if broken:
                return bad(500)
            at_once += 1
            if not go.is_set():
                most_while_probing = max(most_while_probing, at_once)
            probed.set()
            await go.wait()
            return good("yes")

        async with serve(answer) as server:
            engine = make(server.url, policy=policy, max_retries=3)
            await engine.open()
            with pytest.raises(EngineUnavailable):
                await engine.generate([ask()])
            assert state(engine) is State.OPEN
            broken = False
            waiting = [asyncio.create_task(engine.generate([ask()])) for _ in range(6)]
            await probed.wait()
            assert state(engine) is State.PROBING
            # a round trip during which any other request would have arrived
            [_] = await engine._transport._check_all(1.0)
            go.set()
            await asyncio.gather(*waiting)
            assert state(engine) is State.CLOSED
            await engine.close()
        assert most_while_probing == 1
        assert len(server.asked) == 4 + 6

    run(main())


def test_when_a_probe_fails_the_next_waiting_request_probes(serve: Any) -> None:
    policy = Policy(least_seen=1, cooldown=0.02, patience=20.0)

    async def main() -> None:
        probed, go = asyncio.Event(), asyncio.Event()

        async def answer(asked: Any) -> web.Response:
            if asked.number == 1:
                probed.set()
                await go.wait()
            return good("yes") if asked.number == 2 else bad(500)

        async with serve(answer) as server:
            engine = make(server.url, policy=policy, max_retries=0)
            await engine.open()
            with pytest.raises(EngineUnavailable):
                await engine.generate([ask()])
            first = asyncio.create_task(engine.generate([ask()]))
            await probed.wait()
            second = asyncio.create_task(engine.generate([ask()]))
            await asyncio.sleep(0)
            go.set()
            with pytest.raises(EngineUnavailable, match="given up after 1 tries"):
                await first
            assert [completion.text for completion in await second] == ["yes"]
            await engine.close()

    run(main())


def test_an_open_breaker_gives_up_after_the_patience(serve: Any, fake_time: Any) -> None:
    policy = Policy(least_seen=1, window=8, cooldown=3.0, patience=20.0)

    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return bad(500, "dead core")

        async with serve(answer) as server:
            engine = make(server.url, time=fake_time, policy=policy, max_retries=1000)
            await engine.open()
            with pytest.raises(EngineUnavailable, match=r"no endpoint answers: .*answered 500 \(dead core\)"):
                await engine.generate([ask()])
            await engine.close()
        assert 20.0 <= fake_time.now < 60.0

    run(main())


def test_a_server_that_asks_for_an_hour_is_not_waited_for(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return bad(429, "daily limit", **{"Retry-After": "3600"})

        async with serve(answer) as server:
            engine = make(server.url, time=fake_time)
            await engine.open()
            with pytest.raises(EngineUnavailable, match=r"asked to wait 3600 s \(.*daily limit\)"):
                await engine.generate([ask()])
            await engine.close()
        assert len(server.asked) == 1

    run(main())


def test_an_endpoint_that_dies_is_left_and_the_other_answers_everything(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return good("yes")

        async with serve(answer) as alive:
            async with serve(answer) as dying:
                engine = make(dying.url, alive.url, time=fake_time, max_retries=0)
                await engine.open()
                await engine.generate([ask() for _ in range(10)])
            assert len(dying.asked) == len(alive.asked) == 5
            completions = await engine.generate([ask() for _ in range(30)])
            await engine.close()
        assert [completion.text for completion in completions] == ["yes"] * 30
        assert len(alive.asked) == 35
        assert state(engine) is State.OPEN

    run(main())


def test_an_ejected_endpoint_comes_back_after_a_probe(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return good("yes")

        async with serve(answer) as first, serve(answer) as second:
            engine = make(first.url, second.url, time=fake_time)
            await engine.open()
            pool = engine._transport.pool
            pool.eject(pool.endpoints[0], "gone")
            await engine.generate([ask() for _ in range(4)])
            assert (len(first.asked), len(second.asked)) == (0, 4)
            fake_time.now += 1.0
            await engine.generate([ask() for _ in range(6)])
            assert state(engine) is State.CLOSED
            await engine.close()
        assert len(first.asked) > 0

    run(main())


def test_an_endpoint_that_is_down_at_the_start_does_not_hold_the_engine_up(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return good("yes")

        async with serve(answer) as server:
            engine = make(f"http://127.0.0.1:{free_port()}", server.url, time=fake_time)
            await engine.open()
            assert state(engine) is State.OPEN
            await engine.generate([ask()])
            await engine.close()
        assert fake_time.slept == []
        assert len(server.asked) == 1

    run(main())


def test_an_engine_that_never_becomes_ready_says_what_was_tried_for_how_long_and_what_to_do(fake_time: Any) -> None:
    async def main() -> None:
        port = free_port()
        engine = make(f"http://127.0.0.1:{port}", time=fake_time, startup_timeout=30)
        with pytest.raises(EngineUnavailable) as caught:
            await engine.open()
        said = str(caught.value)
        assert f"http://127.0.0.1:{port}/v1/models cannot be reached" in said
        assert re.search(r"did not become ready in 2\d s, \d+ tries", said)
        assert "start the server, or correct the engine's endpoint" in said
        assert fake_time.now <= 30

    run(main())


def test_open_waits_while_the_server_is_still_loading(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        states = [503, 503, 200]

        async def answer(asked: Any) -> web.Response:
            return good()

        async with serve(answer, lambda: web.json_response({"data": []}, status=states.pop(0))) as server:
            engine = make(server.url, time=fake_time)
            await engine.open()
            await engine.close()
        assert server.checked == ["/v1/models"] * 3

    run(main())


def test_a_request_to_an_engine_that_is_closed_is_an_error_and_closing_twice_is_none(serve: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return good()

        async with serve(answer) as server:
            engine = make(server.url)
            await engine.close()
            await engine.open()
            await engine.close()
            await engine.close()
            with pytest.raises(EngineUnavailable, match="engine 'llama' is not open"):
                await engine.generate([ask()])
            await engine.open()
            assert (await engine.generate([ask()]))[0].text == "{}"
            await engine.close()

    run(main())


def test_a_cancelled_generate_leaves_no_request_in_flight(serve: Any) -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def hang(asked: Any) -> web.Response:
            if asked.number == 2:
                arrived.set()
            if asked.number < 3:
                await asyncio.Event().wait()
            return good()

        async with serve(hang) as server:
            engine = make(server.url, capacity=3)
            await engine.open()
            tasks = [asyncio.create_task(engine.generate([ask() for _ in range(9)]))]
            await arrived.wait()
            tasks[0].cancel()
            await asyncio.wait(tasks)
            assert tasks[0].cancelled()
            transport = engine._transport
            assert (transport.limiter.in_flight, transport.pool.endpoints[0].in_flight) == (0, 0)
            assert len(await engine.generate([ask() for _ in range(5)])) == 5
            await engine.close()

    run(main())


SECRETS = ("sk-top-secret-key", "pass-word-42", "query-secret", "header-secret")


def _secretive(url: str) -> OpenAIEngine:
    endpoint = url.replace("http://", "http://${T_USER}:${T_PASS}@") + "/v1?key=${T_QUERY}"
    return make(endpoint, api_key_env="T_KEY", headers={"X-Token": "${T_HEADER}"}, max_retries=0, startup_timeout=0.1)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 301, 429, 500, 200])
def test_no_secret_is_ever_said(
    serve: Any, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in zip(("T_KEY", "T_PASS", "T_QUERY", "T_HEADER"), SECRETS, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("T_USER", "someone")
    caplog.set_level("DEBUG", logger="chainette")

    async def main() -> None:
        async def tell_tale(asked: Any) -> web.Response:
            told = " ".join([asked.headers["Authorization"], asked.headers["X-Token"], asked.query["key"], *SECRETS])
            return web.json_response({"error": told}, status=status, headers={"Location": f"http://{told}"})

        async with serve(tell_tale) as server:
            engine = _secretive(server.url)
            await engine.open()
            said = repr(engine) + repr(engine.describe()) + repr(vars(engine._transport))
            try:
                [completion] = await engine.generate([ask()])
                said += repr(completion)
            except EngineUnavailable as error:
                said += repr(error)
            await engine.close()
        said += caplog.text
        assert len(server.asked) == 1
        assert engine.describe()["endpoints"] == [server.url + "/v1"]
        for secret in SECRETS:
            assert secret not in said

    run(main())


def test_a_missing_key_names_the_variable_before_anything_is_sent(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("T_KEY", raising=False)

    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return good()

        async with serve(answer) as server:
            with pytest.raises(EngineConfigError, match="environment variable T_KEY is not set"):
                await make(server.url, api_key_env="T_KEY").open()
            assert server.checked == []

    run(main())


def test_an_endpoint_that_is_no_url_is_a_config_error() -> None:
    with pytest.raises(
        EngineConfigError, match=r"endpoint 'localhost:8000/v1' is not a URL that can be asked; write http://HOST:PORT"
    ):
        run(make("localhost:8000/v1").open())


def test_a_refusal_stops_at_once_and_is_not_tried_again(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return bad(402, "pay first")

        async with serve(answer) as server:
            engine = make(server.url, time=fake_time)
            await engine.open()
            with pytest.raises(EngineRefused, match=r"answered 402 \(pay first\)"):
                await engine.generate([ask()])
            await engine.close()
        assert len(server.asked) == 1

    run(main())


def test_a_429_for_an_empty_account_is_a_refusal(serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            error = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
            return web.json_response({"error": error}, status=429)

        async with serve(answer) as server:
            engine = make(server.url, time=fake_time)
            await engine.open()
            with pytest.raises(EngineRefused, match=r"answered 429 \(You exceeded your current quota\)"):
                await engine.generate([ask()])
            await engine.close()
        assert len(server.asked) == 1

    run(main())


def test_a_redirect_is_not_followed_with_the_key(serve: Any) -> None:
    async def main() -> None:
        async def moved(asked: Any) -> web.Response:
            return web.Response(status=308, headers={"Location": "https://elsewhere.example/v1/chat/completions?x=1"})

        async with serve(moved) as server:
            engine = make(server.url)
            await engine.open()
            with pytest.raises(
                EngineRefused, match=r"308 and points to https://elsewhere.example/v1/chat/completions; give the URL"
            ):
                await engine.generate([ask()])
            await engine.close()

    run(main())


def test_completions_count_what_the_server_counted(serve: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return good("yes", tokens=11)

        async with serve(answer) as server:
            engine = make(server.url)
            await engine.open()
            [completion] = await engine.generate([ask()])
            await engine.close()
        assert isinstance(completion, Completion)
        assert (completion.usage.requests, completion.usage.prompt_tokens, completion.usage.completion_tokens) == (1, 5, 11)
        assert completion.usage.seconds > 0

    run(main())
