"""What every request is refused for, and that no message, description or log ever holds a secret."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from chainette.engine.http.openai import OpenAIEngine
from chainette.errors import EngineConfigError, EngineRefused, EngineUnavailable
from tests.support.patience import LONG

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Http

pytestmark = pytest.mark.usefixtures("carrier")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, LONG))


SECRETS = ("sk-top-secret-key", "pass-word-42", "query-secret", "header-secret")


def _secretive(http: Http, url: str) -> OpenAIEngine:
    endpoint = url.replace("http://", "http://${T_USER}:${T_PASS}@") + "/v1?key=${T_QUERY}"
    return http.make(endpoint, api_key_env="T_KEY", headers={"X-Token": "${T_HEADER}"}, max_retries=0, startup_timeout=1)


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
