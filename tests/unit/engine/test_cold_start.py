"""An engine opened and asked once: the measurements, and the message if it does not work."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from chainette.engine.cold_start import process_tree_memory, warm_up
from chainette.engine.config import make_config
from chainette.errors import EngineError, EngineRefused
from tests.support.patience import LONG
from tests.support.scripted import scripted


def warm(serve: Any, response: web.Response, ready: web.Response | None = None, **keys: Any) -> Any:
    async def reply(asked: Any) -> web.Response:
        return response

    async def main() -> Any:
        async with serve(reply, lambda: ready or web.json_response({"data": []})) as server:
            return await warm_up(make_config("llm", "m", "openai", endpoint=server.url, max_retries=0, **keys), 5.0)

    return asyncio.run(asyncio.wait_for(main(), LONG))


def test_times_and_the_answer_of_a_server(serve: Any, http: Any) -> None:
    warmth = warm(serve, http.good('{"answer": "x"}', tokens=7))
    assert warmth.completion.text == '{"answer": "x"}'
    assert warmth.completion.usage.completion_tokens == 7
    assert 0 < warmth.first_seconds <= warmth.answer_seconds
    assert warmth.open_seconds > 0
    assert warmth.described["endpoints"]


def test_a_wrong_key_and_an_unknown_model_say_what_to_do(serve: Any, http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_KEY", "sesame-1234")
    with pytest.raises(EngineRefused, match="LLM_KEY") as refused:
        warm(serve, http.bad(401), ready=http.bad(401), api_key_env="LLM_KEY")
    assert "sesame" not in str(refused.value)
    with pytest.raises(EngineRefused, match="model 'm' is not there"):
        warm(serve, http.bad(404, "no such model"))


def test_an_engine_that_opens_and_refuses_the_question_is_an_error(serve: Any, http: Any) -> None:
    with pytest.raises(EngineError, match=r"opened, and did not answer \(error\): 400: bad schema"):
        warm(serve, http.bad(400, "bad schema"))


def test_the_engine_is_closed_whatever_happens() -> None:
    def fail(request: object) -> str:
        raise ValueError("broken")

    with scripted(llm=fail) as scripts:
        from chainette import get_engine_config

        with pytest.raises(ValueError, match="broken"):
            asyncio.run(warm_up(get_engine_config("llm"), 1.0))
        assert scripts["llm"].calls == ["open", "generate", "close"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_that_of_the_process_and_its_descendants() -> None:
    before = process_tree_memory()
    program = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    inner = "data = bytearray(80_000_000); data[::4096] = b'x' * len(data[::4096]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program, inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        with_child = process_tree_memory()
        child.stdin.close()
        assert child.wait(LONG) in (0, 1)
    assert before is not None and with_child is not None
    assert 80_000_000 < with_child - before < 200_000_000


def test_a_system_without_proc_gives_no_memory(tmp_path: Path) -> None:
    assert process_tree_memory(tmp_path / "proc") is None
