"""The transport against a real server: order, concurrency, retries, timeouts, and the end of one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web

from chainette.engine.base import Cause, Completion, Finish
from chainette.engine.http.retry_after import retry_after
from chainette.engine.http.timing import Policy
from chainette.errors import EngineRefused
from tests.support.patience import LONG

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Http

pytestmark = pytest.mark.usefixtures("carrier")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, LONG))


def test_answers_keep_the_order_of_the_requests_whatever_their_latency(http: Http, serve: Any) -> None:
    async def main() -> None:
        arrived: list[asyncio.Event] = [asyncio.Event() for _ in range(20)]

        async def last_first(asked: Any) -> web.Response:
            number = int(asked.text)
            if number < 19:
                await arrived[number + 1].wait()
            arrived[number].set()
            return http.good(asked.text)

        async with serve(last_first) as server:
            engine = http.make(server.url)
            await engine.open()
            completions = await engine.generate([http.ask(str(number)) for number in range(20)])
            await engine.close()
        assert [completion.text for completion in completions] == [str(number) for number in range(20)]

    run(main())


def test_as_many_requests_as_capacity_are_in_flight_and_never_more(http: Http, serve: Any) -> None:
    async def main() -> None:
        now = most = 0
        full = asyncio.Barrier(3)

        async def counted(asked: Any) -> web.Response:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await full.wait()
            now -= 1
            return http.good()

        async with serve(counted) as server:
            engine = http.make(server.url, capacity=3)
            await engine.open()
            await asyncio.gather(*(engine.generate([http.ask() for _ in range(6)]) for _ in range(4)))
            await engine.close()
        assert most == 3

    run(main())


@pytest.mark.parametrize("header", ["7", formatdate(7, usegmt=True)])
def test_a_429_waits_for_retry_after_and_sends_the_same_body_again(http: Http, serve: Any, fake_time: Any, header: str) -> None:
    async def main() -> None:
        async def busy_once(asked: Any) -> web.Response:
            return http.bad(429, **{"Retry-After": header}) if asked.number == 0 else http.good("yes")

        async with serve(busy_once) as server:
            engine = http.make(server.url, time=fake_time)
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        assert completion.text == "yes"
        assert fake_time.now == pytest.approx(7.0)
        assert server.asked[0].body == server.asked[1].body

    run(main())


def test_a_server_that_goes_away_is_said_once_per_silence(
    http: Http, serve: Any, fake_time: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def hang_up(asked: Any) -> web.Response:
            if asked.number in (*range(8), *range(10, 18)):
                asked.hang_up()
            return http.good()

        async with serve(hang_up) as server:
            engine = http.make(server.url, time=fake_time, policy=Policy(least_seen=1), max_retries=20)
            await engine.open()
            for _ in range(4):
                await engine.generate([http.ask()])
            await engine.close()

    run(main())
    said = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert len(said) == 2
    assert said[0].startswith("engine 'llama' does not answer: http://127.0.0.1:")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 2s "}, 2.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "86401"}, 86400.0),
        ({"retry-after": "9" * 30}, 86400.0),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": formatdate(100, usegmt=True)}, 60.0),
        ({"retry-after": formatdate(100)}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 02:01:40 +0200"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40"}, 60.0),
        ({"retry-after": "Thu Jan  1 00:01:40 1970"}, 60.0),
        ({"retry-after": "Thursday, 01-Jan-70 00:01:40 GMT"}, 60.0),
        ({"retry-after": "1970-01-01T00:01:40Z"}, 60.0),
        ({"retry-after": "1970-01-01T00:01:40"}, 60.0),
        ({"retry-after": formatdate(10, usegmt=True)}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86400.0),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "1_0"}, None),
        ({"retry-after": "\u0663"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form_and_never_exceeds_a_day(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, 40.0) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_date_without_a_zone_is_utc_wherever_the_computer_is(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert retry_after({"retry-after": "Thu Jan  1 00:01:40 1970"}, 40.0) == 60.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_500s_are_tried_again_with_growing_pauses(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def broken_thrice(asked: Any) -> web.Response:
            return http.bad(500) if asked.number < 3 else http.good("yes")

        fake_time.chance = 1.0
        async with serve(broken_thrice) as server:
            engine = http.make(server.url, time=fake_time)
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        assert completion.text == "yes"
        assert fake_time.slept == [0.5, 1.0, 2.0]

    run(main())


def test_500s_without_end_fail_their_request_alone_with_the_last_words(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        given_up = asyncio.Event()

        async def broken(asked: Any) -> web.Response:
            if asked.text == "fail":
                if [one.text for one in server.asked].count("fail") == 3:
                    given_up.set()
                return http.bad(500, "out of cheese")
            await given_up.wait()
            return http.good("yes")

        told: list[tuple[int, str]] = []
        async with serve(broken) as server:
            engine = http.make(server.url, time=fake_time, max_retries=2)
            await engine.open()
            _, failed = await engine.generate(
                [http.ask("slow"), http.ask("fail")], lambda index, completion: told.append((index, completion.text))
            )
            await engine.close()
        assert sorted(told) == [(0, "yes"), (1, "")]
        assert (failed.finish, failed.cause, failed.by) == (Finish.FAILED, Cause.BROKEN, f"{server.url}/v1")
        assert failed.error.endswith("answered 500 (out of cheese); given up after 3 attempts")
        assert [asked.text for asked in server.asked].count("slow") == 1
        assert engine._transport.limiter.in_flight == 0

    run(main())


def test_a_refusal_cancels_the_other_requests(http: Http, serve: Any) -> None:
    async def main() -> None:
        hanging, cancelled = asyncio.Event(), asyncio.Event()

        async def refusing(asked: Any) -> web.Response:
            if asked.text == "hang":
                hanging.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.set()
                    raise
            await hanging.wait()
            return http.bad(401, "wrong key")

        async with serve(refusing) as server:
            engine = http.make(server.url)
            await engine.open()
            with pytest.raises(EngineRefused):
                await engine.generate([http.ask("hang"), http.ask("key")])
            await cancelled.wait()
            await engine.close()

    run(main())


def test_a_refusal_after_an_answer_cancels_no_other_request(http: Http, serve: Any) -> None:
    async def main() -> None:
        refused, told = asyncio.Event(), list[str]()

        async def out_of_credit(asked: Any) -> web.Response:
            if asked.text == "late":
                asyncio.get_running_loop().call_later(0, refused.set)
                return http.bad(402, "no credit")
            if asked.text == "paid":
                await refused.wait()
            return http.good(asked.text)

        async with serve(out_of_credit) as server:
            engine = http.make(server.url, capacity=2)
            await engine.open()
            await engine.generate([http.ask("first")])
            asks = [http.ask(text) for text in ("paid", "late", "waits for its turn")]
            with pytest.raises(EngineRefused, match="no credit"):
                await engine.generate(asks, lambda _, completion: told.append(completion.text))
            assert [asked.text for asked in server.asked] == ["first", "paid", "late"]
            await engine.generate([http.ask("later")])
            await engine.close()
        assert told == ["paid"]

    run(main())


def test_a_broken_connection_and_a_body_that_is_no_answer_are_tried_again(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def clumsy(asked: Any) -> web.StreamResponse:
            if asked.number == 0:
                asked.hang_up()
            if asked.number == 1:
                return web.Response(text="<html>welcome</html>")
            return web.json_response({"choices": []}) if asked.number == 2 else http.good("yes")

        async with serve(clumsy) as server:
            engine = http.make(server.url, time=fake_time)
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        assert (completion.text, len(server.asked)) == ("yes", 4)

    run(main())


@pytest.mark.parametrize("unusable", [2, 3])
def test_unusable_answers_are_part_of_the_usage_of_their_request(http: Http, serve: Any, fake_time: Any, unusable: int) -> None:
    async def main() -> None:
        async def aborting(asked: Any) -> web.Response:
            if asked.number == 0:
                return http.bad(500)
            return http.good('{"a"', tokens=9, finish="abort") if asked.number <= unusable else http.good(tokens=3)

        async with serve(aborting) as server:
            engine = http.make(server.url, time=fake_time, max_retries=3)
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        used = completion.usage
        assert completion.finish is (Finish.STOP if unusable == 2 else Finish.FAILED)
        assert (used.requests, used.prompt_tokens) == (3, 15)
        assert used.completion_tokens == (21 if unusable == 2 else 27)

    run(main())


def test_a_request_that_hangs_fails_after_one_timeout(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def one_hangs(asked: Any) -> web.Response:
            if asked.text == "hang":
                await asyncio.Event().wait()
            return http.good("yes")

        async with serve(one_hangs) as server:
            engine = http.make(server.url, time=fake_time, request_timeout=2)
            await engine.open()
            hung, fine = await engine.generate([http.ask("hang"), http.ask("go")])
            await engine.close()
        assert (hung.finish, hung.cause, fine.text) == (Finish.FAILED, Cause.BROKEN, "yes")
        assert hung.error.endswith("gave no answer in 2 s")
        assert [asked.text for asked in server.asked].count("hang") == 1

    run(main())


@pytest.mark.parametrize(
    ("status", "words", "tries", "cause"),
    [
        (500, "out of cheese", 2, Cause.BROKEN),
        (499, "client closed", 2, Cause.BROKEN),
        (520, "unknown", 2, Cause.BROKEN),
        (204, "gave no usable answer", 2, Cause.BROKEN),
        (502, "bad gateway", 2, Cause.BUSY),
        (503, "starting", 2, Cause.BUSY),
        (504, "too slow", 2, Cause.BUSY),
        (529, "overloaded", 2, Cause.BUSY),
        (429, "slow down", 2, Cause.BUSY),
        (429, "Request too large for m on tokens per min (TPM): Limit 10000, Requested 12000", 1, Cause.DENIED),
        (403, "no permission", 1, Cause.DENIED),
        (404, "no such model", 1, Cause.DENIED),
        (406, "", 1, Cause.DENIED),
        (424, "", 1, Cause.DENIED),
        (451, "not here", 1, Cause.DENIED),
    ],
)
def test_a_request_without_an_answer_fails_with_its_cause(
    http: Http, serve: Any, fake_time: Any, status: int, words: str, tries: int, cause: Cause
) -> None:
    async def main() -> None:
        async def failing(asked: Any) -> web.Response:
            return http.bad(status, words) if asked.text == "bad" else http.good("yes")

        async with serve(failing) as server:
            engine = http.make(server.url, time=fake_time, max_retries=1)
            await engine.open()
            bad, fine = await engine.generate([http.ask("bad"), http.ask("fine")])
            await engine.close()
        assert (bad.finish, bad.cause, fine.text) == (Finish.FAILED, cause, "yes")
        assert words in bad.error and (status == 204 or f"answered {status}" in bad.error)
        assert [asked.text for asked in server.asked].count("bad") == tries

    run(main())


def test_the_next_try_prefers_another_endpoint(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def broken(asked: Any) -> web.Response:
            return http.bad(500)

        async def fine(asked: Any) -> web.Response:
            return http.good("yes")

        async with serve(broken) as one, serve(fine) as other:
            engine = http.make(one.url, other.url, time=fake_time)
            await engine.open()
            for _ in range(4):
                [completion] = await engine.generate([http.ask()])
                assert (completion.text, completion.by) == ("yes", f"{other.url}/v1")
            [completion] = await engine.generate([msgspec.structs.replace(http.ask("last"), avoid=f"{other.url}/v1")])
            await engine.close()
        assert one.asked[-1].text == "last"

    run(main())


def test_requests_that_fail_again_and_again_do_not_eject_their_endpoint(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def failing(asked: Any) -> web.Response:
            return http.bad(500) if asked.text == "bad" else http.good("yes")

        async with serve(failing) as server:
            engine = http.make(server.url, time=fake_time, max_retries=0)
            await engine.open()
            again = msgspec.structs.replace(http.ask("bad"), avoid=f"{server.url}/v1")
            await engine.generate([again] * 20)
            assert not engine._transport.pool.is_silent() and engine._transport.limiter.limit == engine.capacity
            await engine.generate([http.ask("bad")] * 20)
            assert engine._transport.pool.is_silent()
            await engine.close()

    run(main())


@pytest.mark.parametrize("max_retries", [0, 6])
def test_a_request_counts_once_towards_the_ejection_of_its_endpoint_however_often_it_is_tried(
    http: Http, serve: Any, fake_time: Any, max_retries: int
) -> None:
    async def main() -> None:
        async def failing(asked: Any) -> web.Response:
            return http.bad(500) if asked.text == "bad" else http.good("yes")

        async with serve(failing) as server:
            engine = http.make(server.url, time=fake_time, max_retries=max_retries)
            await engine.open()
            await engine.generate([http.ask("fine")] * 10)
            await engine.generate([http.ask("bad")] * 5)
            assert not engine._transport.pool.is_silent() and len(server.asked) == 10 + 5 * (max_retries + 1)
            await engine.close()

    run(main())


@pytest.mark.parametrize("status", [400, 422])
def test_a_4xx_about_the_request_is_that_requests_completion(http: Http, serve: Any, status: int) -> None:
    async def main() -> None:
        async def picky(asked: Any) -> web.Response:
            return http.bad(status, "messages[0] is odd") if asked.text == "odd" else http.good("yes")

        async with serve(picky) as server:
            engine = http.make(server.url)
            await engine.open()
            odd, fine = await engine.generate([http.ask("odd"), http.ask("fine")])
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
def test_a_prompt_that_does_not_fit_is_too_long_with_the_servers_words(http: Http, serve: Any, status: int, words: str) -> None:
    async def main() -> None:
        async def small(asked: Any) -> web.Response:
            return http.bad(status, words)

        async with serve(small) as server:
            engine = http.make(server.url)
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        assert (completion.finish, completion.error) == (Finish.TOO_LONG, words)

    run(main())


def test_the_limit_shrinks_on_429_and_grows_back(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        busy = True

        async def answer(asked: Any) -> web.Response:
            return http.bad(429) if busy else http.good()

        async with serve(answer) as server:
            engine = http.make(server.url, time=fake_time, capacity=16, max_retries=3)
            await engine.open()
            await engine.generate([http.ask()])
            shrunk = engine._transport.limiter.limit
            busy = False
            await engine.generate([http.ask() for _ in range(300)])
            await engine.close()
        assert shrunk < 16
        assert engine._transport.limiter.limit == 16

    run(main())


def test_long_answers_are_not_taken_for_slow_ones(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def timed(asked: Any) -> web.Response:
            tokens = int(asked.text)
            fake_time.now += 0.2 + tokens / 100
            return http.good(tokens=tokens)

        async with serve(timed) as server:
            engine = http.make(server.url, time=fake_time, capacity=8)
            await engine.open()
            for tokens in [10] * 16 + [1000] * 16:
                await engine.generate([http.ask(str(tokens))])
            await engine.close()
        assert engine._transport.limiter.limit == 8

    run(main())


def test_a_cancelled_generate_leaves_no_request_in_flight(http: Http, serve: Any) -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def hang(asked: Any) -> web.Response:
            if asked.number == 2:
                arrived.set()
            if asked.number < 3:
                await asyncio.Event().wait()
            return http.good()

        async with serve(hang) as server:
            engine = http.make(server.url, capacity=3)
            await engine.open()
            tasks = [asyncio.create_task(engine.generate([http.ask() for _ in range(9)]))]
            await arrived.wait()
            tasks[0].cancel()
            await asyncio.wait(tasks)
            assert tasks[0].cancelled()
            transport = engine._transport
            assert (transport.limiter.in_flight, transport.pool.endpoints[0].in_flight) == (0, 0)
            assert len(await engine.generate([http.ask() for _ in range(5)])) == 5
            await engine.close()

    run(main())


def test_completions_count_what_the_server_counted(http: Http, serve: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good("yes", tokens=11)

        async with serve(answer) as server:
            engine = http.make(server.url)
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        assert isinstance(completion, Completion)
        assert (completion.usage.requests, completion.usage.prompt_tokens, completion.usage.completion_tokens) == (1, 5, 11)
        assert completion.usage.seconds > 0

    run(main())
