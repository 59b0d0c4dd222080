"""Refusals of every request, and that no message, description or log ever holds a secret."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from chainette.engine.base import Request
from chainette.engine.http.endpoints import address
from chainette.engine.http.openai import OpenAIEngine
from chainette.errors import EngineConfigError, EngineRefused, EngineUnavailable
from tests.support.patience import LONG
from tests.support.slow_server import SlowServer

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Http

pytestmark = pytest.mark.usefixtures("carrier")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, LONG))


SECRETS = ("sk-top-secret-key", "pass-word-42", "query-secret", "header-secret")


def _secretive(http: Http, url: str) -> OpenAIEngine:
    endpoint = url.replace("http://", "http://${T_USER}:${T_PASS}@") + "/v1?key=${T_QUERY}"
    return http.make(endpoint, api_key_env="T_KEY", headers={"X-Token": "${T_HEADER}"}, max_retries=0)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 301, 429, 500, 200])
def test_no_secret_is_ever_said(
    http: Http, serve: Any, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
            engine = _secretive(http, server.url)
            await engine.open()
            said = repr(engine) + repr(engine.describe()) + repr(vars(engine._transport))
            try:
                [completion] = await engine.generate([http.ask()])
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


def _filled(text: str, secret: str) -> str:
    return f"{text:x<490} {secret}"


CUT_BODIES = {
    "an error": lambda secret: {"error": {"message": _filled("no", secret)}},
    "an error about the request": lambda secret: {"error": _filled("blocked by the content filter", secret)},
    "an unknown end": lambda secret: {"choices": [{"message": {"content": "{"}, "finish_reason": f"{'x' * 190}{secret}"}]},
    "no JSON": lambda secret: _filled("<html>", secret),
    "a large body": lambda secret: "<html>" + " " * ((1 << 16) - 16) + secret,
}


@pytest.mark.parametrize("status", [400, 402, 403, 429, 500, 301, 200])
@pytest.mark.parametrize("body", CUT_BODIES.values(), ids=CUT_BODIES)
def test_no_part_of_a_secret_is_said_when_a_long_reply_is_shortened(
    http: Http, serve: Any, status: int, body: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T_KEY", SECRETS[0])

    async def main() -> None:
        async def tell_tale(asked: Any) -> web.Response:
            told = body(asked.headers["Authorization"].removeprefix("Bearer "))
            text = told if isinstance(told, str) else json.dumps(told)
            location = {"Location": f"https://elsewhere.example/{SECRETS[0]}"} if status == 301 else {}
            return web.Response(text=text, status=status, headers=location)

        async with serve(tell_tale) as server:
            engine = http.make(server.url, api_key_env="T_KEY", max_retries=0)
            await engine.open()
            try:
                said = repr(await engine.generate([http.ask()]))
            except EngineRefused as error:
                said = str(error)
            await engine.close()
        assert SECRETS[0][:8] not in said

    run(main())


def test_a_missing_key_names_the_variable_before_anything_is_sent(
    http: Http, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("T_KEY", raising=False)

    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good()

        async with serve(answer) as server:
            with pytest.raises(EngineConfigError, match="environment variable T_KEY is not set"):
                await http.make(server.url, api_key_env="T_KEY").open()
            assert server.checked == []

    run(main())


def test_an_endpoint_that_is_no_url_is_a_config_error(http: Http) -> None:
    with pytest.raises(
        EngineConfigError, match=r"endpoint 'localhost:8000/v1' is not a URL that can be asked; write http://HOST:PORT"
    ):
        run(http.make("localhost:8000/v1").open())


def test_a_refusal_stops_at_once_and_is_not_tried_again(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.bad(402, "pay first")

        async with serve(answer) as server:
            engine = http.make(server.url, time=fake_time)
            await engine.open()
            with pytest.raises(EngineRefused, match=r"answered 402 \(pay first\)"):
                await engine.generate([http.ask()])
            await engine.close()
        assert len(server.asked) == 1

    run(main())


def test_a_429_for_an_empty_account_is_a_refusal(http: Http, serve: Any, fake_time: Any) -> None:
    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            error = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
            return web.json_response({"error": error}, status=429)

        async with serve(answer) as server:
            engine = http.make(server.url, time=fake_time)
            await engine.open()
            with pytest.raises(EngineRefused, match=r"answered 429 \(You exceeded your current quota\)"):
                await engine.generate([http.ask()])
            await engine.close()
        assert len(server.asked) == 1

    run(main())


def test_a_redirect_is_not_followed_with_the_key(http: Http, serve: Any) -> None:
    async def main() -> None:
        async def moved(asked: Any) -> web.Response:
            return web.Response(status=308, headers={"Location": "https://elsewhere.example/v1/chat/completions?x=1"})

        async with serve(moved) as server:
            engine = http.make(server.url)
            await engine.open()
            with pytest.raises(
                EngineRefused, match=r"308 and points to https://elsewhere.example/v1/chat/completions; give the URL"
            ):
                await engine.generate([http.ask()])
            await engine.close()

    run(main())


@pytest.mark.parametrize("secret", ["sk-top\nsecret", "sk-top-secret\udcff"], ids=["line break", "not UTF-8"])
@pytest.mark.parametrize(
    ("name", "keys"), [("T_KEY", {"api_key_env": "T_KEY"}), ("X-Token", {"headers": {"X-Token": "${T_KEY}"}})]
)
def test_a_secret_that_no_header_can_carry_is_refused_unseen(
    http: Http, monkeypatch: pytest.MonkeyPatch, name: str, keys: dict[str, Any], secret: str
) -> None:
    monkeypatch.setenv("T_KEY", secret)
    with pytest.raises(EngineConfigError, match=f"{name}.* holds a line break") as caught:
        run(http.make("http://127.0.0.1:1", **keys).open())
    assert "sk-top" not in str(caught.value)


def test_a_proxy_that_is_not_http_is_refused_before_the_run(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://proxy.example:1080")
    [obstacle] = http.make("http://llm.example").obstacles()
    assert "HTTP_PROXY names a socks5 proxy" in obstacle and "add llm.example to NO_PROXY" in obstacle


@pytest.mark.parametrize("name", ["X Token", "", "X:Token", "X-Tökén", "X\n", "(x)"])
def test_a_name_that_no_header_has_is_refused_before_the_run(http: Http, name: str) -> None:
    [obstacle] = http.make("http://llm.example", headers={name: "1"}).obstacles()
    assert f"{name!r} is not a name of a header" in obstacle


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "CONNECTION", "Upgrade", "Expect", "TE"])
def test_a_header_of_the_connection_is_refused_before_the_run(http: Http, name: str) -> None:
    [obstacle] = http.make("http://llm.example", headers={name: "5"}).obstacles()
    assert f"the header {name!r} belongs to the connection; remove it" in obstacle


def test_a_key_may_end_in_a_line_break(http: Http, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T_KEY", " sk-top-secret\r\n")

    async def main() -> None:
        async def answer(asked: Any) -> web.Response:
            return http.good(asked.headers["Authorization"])

        async with serve(answer) as server:
            engine = http.make(server.url, api_key_env="T_KEY")
            await engine.open()
            [completion] = await engine.generate([http.ask()])
            await engine.close()
        assert completion.text == "Bearer sk-top-secret"

    run(main())


@pytest.mark.parametrize(
    ("url", "listed", "direct"),
    [
        ("http://llm.example", "", False),
        ("http://llm.example", "*", True),
        ("http://llm.example", "llm.example", True),
        ("http://llm.example", "LLM.example", True),
        ("http://llm.example", "other.example, .example", True),
        ("http://llm.example", "example", True),
        ("http://llm.example", "ample", False),
        ("http://llm.example:8000", "llm.example:8000", True),
        ("http://llm.example:8001", "llm.example:8000", False),
        ("http://10.1.2.3", "10.1.2.3", True),
        ("http://10.1.2.3:8000", "192.168.0.0/16,10.0.0.0/8", True),
        ("http://11.1.2.3", "10.0.0.0/8", False),
        ("http://[fd00::1]:8000", "fd00::/8", True),
        ("http://127.0.0.1:8000", "", True),
        ("http://localhost:8000", "", True),
        ("http://[::1]:8000", "", True),
    ],
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_no_proxy_lists_hosts_domains_ports_and_networks(
    http: Http, variable: str, url: str, listed: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", listed)
    client = http.make(url)._transport._client
    assert client._proxy(address("llm", url)) == (None if direct else "http://proxy.example:3128")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_was_left_open_on_a_closed_loop_can_be_used_and_closed(http: Http) -> None:
    with SlowServer(_echo) as server:
        _use_on_two_loops(http.make(server.url), http.ask("hello"))
    gc.collect()  # the loop that was closed first left sockets behind, which warn when they go


def _use_on_two_loops(engine: OpenAIEngine, request: Request) -> None:
    async def use() -> None:
        await engine.open()
        [completion] = await engine.generate([request])
        assert completion.text == "hello"

    for _ in range(2):
        run(use())
    for _ in range(2):
        run(engine.close())


async def _echo(text: str) -> str:
    return text
