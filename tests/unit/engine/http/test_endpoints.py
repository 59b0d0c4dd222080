"""Endpoints against real servers: ejection, probes, the breaker, readiness, opening and closing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from chainette.engine.base import Finish
from chainette.engine.http.breaker import State
from chainette.engine.http.endpoints import address
from chainette.engine.http.openai import base_path
from chainette.engine.http.timing import Policy
from chainette.errors import EngineConfigError, EngineUnavailable
from tests.support.patience import LONG

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Http


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, LONG))


def test_the_breaker_opens_on_errors_lets_one_probe_through_and_closes(http: Http, serve: Any) -> None:
    policy = Policy(least_seen=4, window=8, cooldown=0.02, backoff=0.0)

    async def main() -> None:
        broken = True
        at_once = most_while_probing = 0
        probed, go = asyncio.Event(), asyncio.Event()

        async def answer(asked: Any) -> web.Response:
            nonlocal at_once, most_while_probing
            if broken:
                return http.bad(500)
            at_once += 1
            if not go.is_set():
                most_while_probing = max(most_while_probing, at_once)
            probed.set()
            await go.wait()
            return http.good("yes")

        async with serve(answer) as server:
            engine = http.make(server.url, policy=policy, max_retries=0)
            await engine.open()
            await engine.generate([http.ask()] * 4)
            assert http.state(engine) is State.OPEN
            broken = False
            waiting = [asyncio.create_task(engine.generate([http.ask()])) for _ in range(6)]
            await probed.wait()
            assert http.state(engine) is State.PROBING
            # a round trip during which any other request would have arrived
            [_] = await engine._transport._check_all(1.0)
            go.set()
            await asyncio.gather(*waiting)
            assert http.state(engine) is State.CLOSED
            await engine.close()
        assert most_while_probing == 1
        assert len(server.asked) == 4 + 6

    run(main())


def test_when_a_probe_fails_the_next_waiting_request_probes(http: Http, serve: Any) -> None:
    policy = Policy(least_seen=1, cooldown=0.02, patience=20.0)

    async def main() -> None:
        probed, go = asyncio.Event(), asyncio.Event()

        async def answer(asked: Any) -> web.Response:
            if asked.number == 1:
                probed.set()
                await go.wait()
            return http.good("yes") if asked.number == 2 else http.bad(500)

        async with serve(answer) as server:
            engine = http.make(server.url, policy=policy, max_retries=0)
            await engine.open()
            await engine.generate([http.ask()])
            first = asyncio.create_task(engine.generate([http.ask()]))
            await probed.wait()
            second = asyncio.create_task(engine.generate([http.ask()]))
            await asyncio.sleep(0)
            go.set()
            assert [completion.finish for completion in await first] == [Finish.FAILED]
            assert [completion.text for completion in await second] == ["yes"]
            await engine.close()

    run(main())


def test_an_open_breaker_gives_up_after_the_patience(http: Http, serve: Any, fake_time: Any) -> None:
    policy = Policy(least_seen=1, window=8, cooldown=3.0, patience=20.0)

    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.bad(500, "dead core")

        async with serve(answer) as server:
            engine = http.make(server.url, time=fake_time, policy=policy, max_retries=1000)
            await engine.open()
            with pytest.raises(EngineUnavailable, match=r"no endpoint answers: .*answered 500 \(dead core\)"):
                await engine.generate([http.ask()])
            await engine.close()
        assert 20.0 <= fake_time.now < 60.0

    run(main())


def test_a_server_that_asks_for_an_hour_is_not_waited_for(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.bad(429, "daily limit", **{"Retry-After": "3600"})

        async with serve(answer) as server:
            engine = http.make(server.url, time=fake_time)
            await engine.open()
            with pytest.raises(EngineUnavailable, match=r"asked to wait 3600 s \(.*daily limit\)"):
                await engine.generate([http.ask()])
            assert len(server.asked) == 1
            fake_time.now += Policy.patience + 2
            with pytest.raises(EngineUnavailable, match="asked to wait 3600 s"):
                await engine.generate([http.ask()])
            assert len(server.asked) == 2
            await engine.close()

    run(main())


def test_an_endpoint_that_dies_is_left_and_the_other_answers_everything(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good("yes")

        async with serve(answer) as alive:
            async with serve(answer) as dying:
                engine = http.make(dying.url, alive.url, time=fake_time, max_retries=0)
                await engine.open()
                await engine.generate([http.ask() for _ in range(10)])
            assert len(dying.asked) == len(alive.asked) == 5
            completions = await engine.generate([http.ask() for _ in range(30)])
            await engine.close()
        assert [completion.text for completion in completions] == ["yes"] * 30
        assert len(alive.asked) == 35
        assert http.state(engine) is State.OPEN

    run(main())


def test_an_ejected_endpoint_comes_back_after_a_probe(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good("yes")

        async with serve(answer) as first, serve(answer) as second:
            engine = http.make(first.url, second.url, time=fake_time)
            await engine.open()
            pool = engine._transport.pool
            pool.eject(pool.endpoints[0], "gone")
            await engine.generate([http.ask() for _ in range(4)])
            assert (len(first.asked), len(second.asked)) == (0, 4)
            fake_time.now += 1.0
            await engine.generate([http.ask() for _ in range(6)])
            assert http.state(engine) is State.CLOSED
            await engine.close()
        assert len(first.asked) > 0

    run(main())


def test_an_endpoint_that_is_down_at_the_start_does_not_hold_the_engine_up(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good("yes")

        async with serve(answer) as server:
            engine = http.make(f"http://127.0.0.1:{http.free_port()}", server.url, time=fake_time)
            await engine.open()
            assert http.state(engine) is State.OPEN
            await engine.generate([http.ask()])
            await engine.close()
        assert fake_time.slept == []
        assert len(server.asked) == 1

    run(main())


def test_an_engine_that_never_becomes_ready_says_what_was_tried_for_how_long_and_what_to_do(http: Http, fake_time: Any) -> None:
    async def main() -> None:
        port = http.free_port()
        engine = http.make(f"http://127.0.0.1:{port}", time=fake_time, startup_timeout=30)
        with pytest.raises(EngineUnavailable) as caught:
            await engine.open()
        said = str(caught.value)
        assert f"http://127.0.0.1:{port}/v1/models cannot be reached" in said
        assert re.search(r"did not become ready in 2\d s \(\d+ attempts?\)", said)
        assert "start the server, or correct the engine's endpoint" in said
        assert fake_time.now <= 30

    run(main())


def test_open_waits_while_the_server_is_still_loading(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        states = [503, 503, 200]

        async def answer(asked: Any) -> web.Response:
            return http.bad(503) if states else http.good()

        async with serve(answer, lambda: web.json_response({"data": []}, status=states.pop(0))) as server:
            engine = http.make(server.url, time=fake_time)
            await engine.open()
            await engine.close()
        assert server.checked == ["/v1/models"] * 3

    run(main())


def test_a_request_to_an_engine_that_is_closed_is_an_error_and_closing_twice_is_none(http: Http, serve: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good()

        async with serve(answer) as server:
            engine = http.make(server.url)
            await engine.close()
            await engine.open()
            await engine.close()
            await engine.close()
            with pytest.raises(EngineUnavailable, match="engine 'llama' is not open"):
                await engine.generate([http.ask()])
            await engine.open()
            assert (await engine.generate([http.ask()]))[0].text == "{}"
            await engine.close()

    run(main())


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 429, 500, 501, 503, 599])
def test_an_engine_opens_if_questions_are_answered_whatever_becomes_of_the_list_of_models(
    http: Http, serve: Any, status: int
) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good("yes")

        async with serve(answer, lambda: web.json_response({"error": "no"}, status=status)) as server:
            engine = http.make(server.url)
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        assert completion.text == "yes"
        assert len(server.asked) == (2 if status >= 500 else 1)

    run(main())


@pytest.mark.parametrize("hangs", [True, False])
def test_an_engine_opens_although_the_list_of_models_hangs_or_breaks_off(http: Http, hangs: bool) -> None:
    async def main() -> None:
        async def handle(request: web.Request) -> web.Response:
            if request.method == "GET":
                await asyncio.sleep(LONG if hangs else 0)
                assert request.transport is not None
                request.transport.abort()
            return http.good("yes")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        engine = http.make(f"http://127.0.0.1:{runner.addresses[0][1]}", policy=Policy(connect_timeout=0.1))
        await engine.open()
        [completion] = await engine.generate([http.ask()])
        await engine.close()
        await runner.cleanup()
        assert completion.text == "yes"

    run(main())


@pytest.mark.parametrize(
    ("declared", "url"),
    [
        (" http://h:8000/v1 ", "http://h:8000/v1"),
        ("http://h:8000/v1\n", "http://h:8000/v1"),
        ("http://h:8000//v1//", "http://h:8000/v1"),
        ("http://h:8000/v1//chat/completions/", "http://h:8000/v1"),
        ("http://h:8000//", "http://h:8000/v1"),
        ("HTTP://H:8000/v1", "http://h:8000/v1"),
        ("${T_URL}", "http://h:8000/v1"),
    ],
)
def test_an_endpoint_may_have_blanks_around_it_and_slashes_twice(
    declared: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T_URL", " http://h:8000//v1/ \n")
    assert str(address("llm", declared, base_path).url) == url


@pytest.mark.parametrize(
    "declared", ["", " ", "http://", "http:// h/v1", "http://h:8000 /v1", "http://h/v 1", "http://h:x/v1", "h:80"]
)
def test_an_endpoint_that_is_no_url_is_refused(declared: str) -> None:
    with pytest.raises(EngineConfigError, match="is not a URL that can be asked"):
        address("llm", declared, base_path)
