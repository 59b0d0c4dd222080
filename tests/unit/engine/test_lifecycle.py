"""Engines open once, when needed, and are always given back."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from chainette.engine.base import Completion, Done, Engine, Request
from chainette.engine.config import EngineConfig, make_config
from chainette.engine.lifecycle import Engines, create_engine, release_engine
from chainette.engine.simulated.simulator import SimulatedEngine, SimulatedOptions
from chainette.errors import EngineUnavailable, UnknownEngine


def config(name: str, **keys: Any) -> EngineConfig:
    simulated: dict[str, Any] = {"backend": "simulated", "options": SimulatedOptions()}
    return EngineConfig(name=name, model="m", **(simulated | keys))


@dataclass
class Log:
    """The events of a test's engines, in order."""

    lines: list[str] = field(default_factory=list)
    failures: int = 0
    stuck: bool = False
    #: Identities of engines that can never answer again.
    dead: set[int] = field(default_factory=set)

    def engines(self, *configs: EngineConfig) -> Engines:
        return Engines(
            {config.name: config for config in configs},
            create=lambda config: Recorded(config, self),
            on_loaded=lambda config, engine, seconds: self.lines.append(f"loaded {config.name} {seconds >= 0}"),
            on_released=lambda config: self.lines.append(f"released {config.name}"),
        )


class Recorded(Engine):
    capacity = 1

    def __init__(self, config: EngineConfig, log: Log) -> None:
        self.name, self.log = config.name, log

    @property
    def dead(self) -> bool:
        return id(self) in self.log.dead

    async def open(self) -> None:
        self.log.lines.append(f"open {self.name}")
        await anyio.lowlevel.checkpoint()
        if self.log.stuck:
            await anyio.sleep_forever()
        if self.log.failures:
            self.log.failures -= 1
            raise EngineUnavailable("not yet")

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        return []

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.lines.append(f"close {self.name}")


def test_concurrent_callers_share_one_engine() -> None:
    log = Log()

    async def run() -> None:
        async with log.engines(config("a")) as engines:
            got = await asyncio.gather(*(engines.get("a") for _ in range(5)))
            assert len({id(engine) for engine in got}) == 1
            assert engines.opened == ("a",)

    anyio.run(run)
    assert log.lines == ["open a", "loaded a True", "close a", "released a"]


def test_nothing_is_opened_before_it_is_asked_for() -> None:
    log = Log()

    async def run() -> None:
        async with log.engines(config("a"), config("b")) as engines:
            await engines.get("b")

    anyio.run(run)
    assert "open a" not in log.lines


def test_an_engine_makes_room_for_one_on_the_same_device_only() -> None:
    log = Log()

    async def run() -> None:
        first = config("a", exclusive=True, gpu_ids=(0,))
        second = config("b", exclusive=True, gpu_ids=(0,))
        elsewhere = config("c", exclusive=True, gpu_ids=(1,))
        async with log.engines(first, second, elsewhere, config("d")) as engines:
            for name in "acdb":
                await engines.get(name)
            assert set(engines.opened) == {"b", "c", "d"}
            assert log.lines.index("close a") < log.lines.index("open b")

    anyio.run(run)


def test_concurrent_callers_never_hold_a_device_together() -> None:
    log = Log()

    async def run() -> None:
        async with log.engines(config("a", exclusive=True), config("b", exclusive=True)) as engines:
            await asyncio.gather(engines.get("a"), engines.get("b"), engines.get("a"))
            assert len(engines.opened) == 1

    anyio.run(run)
    held = 0
    for line in log.lines:
        held += line.startswith("open") - line.startswith("close")
        assert held <= 1


def test_a_failed_open_is_closed_and_tried_again() -> None:
    log = Log(failures=1)

    async def run() -> None:
        async with log.engines(config("a")) as engines:
            with pytest.raises(EngineUnavailable):
                await engines.get("a")
            assert engines.opened == ()
            await engines.get("a")

    anyio.run(run)
    assert log.lines == ["open a", "close a", "open a", "loaded a True", "close a", "released a"]


def test_an_engine_that_never_becomes_ready_is_unavailable() -> None:
    log = Log(stuck=True)

    async def run() -> None:
        async with log.engines(config("a", startup_timeout=0.01)) as engines:
            with pytest.raises(EngineUnavailable, match=r"'a' was not ready after 0.01 s"):
                await engines.get("a")

    anyio.run(run)
    assert log.lines == ["open a", "close a"]


def test_release_of_one_leaves_the_others_and_it_opens_again() -> None:
    log = Log()

    async def run() -> None:
        async with log.engines(config("a"), config("b")) as engines:
            await engines.get("a")
            await engines.get("b")
            await engines.release("a")
            await engines.release("a")
            assert engines.opened == ("b",)
            await engines.get("a")

    anyio.run(run)
    assert log.lines.count("open a") == log.lines.count("close a") == 2


def test_a_cancelled_run_closes_its_engines() -> None:
    log = Log()

    async def run() -> None:
        with anyio.CancelScope() as scope:
            async with log.engines(config("a")) as engines:
                await engines.get("a")
                scope.cancel()
                await anyio.sleep_forever()

    anyio.run(run)
    assert log.lines[-2:] == ["close a", "released a"]


def test_every_engine_is_closed_before_an_error_of_one_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    closing = Recorded.close

    async def close(self: Recorded) -> None:
        await closing(self)
        if self.name == "a":
            raise OSError("broken")

    monkeypatch.setattr(Recorded, "close", close)

    async def run() -> None:
        async with log.engines(config("a"), config("b")) as engines:
            await engines.get("a")
            await engines.get("b")

    with pytest.raises(OSError, match="broken"):
        anyio.run(run)
    assert "released b" in log.lines


def test_an_unknown_engine_names_those_there_are() -> None:
    async def run() -> None:
        async with Log().engines(config("a")) as engines:
            await engines.get("b")

    with pytest.raises(UnknownEngine, match="no engine 'b' in this run; it has a"):
        anyio.run(run)


def test_a_backend_name_gives_its_class() -> None:
    assert isinstance(create_engine(config("a")), SimulatedEngine)


def test_an_engine_that_died_is_closed_and_opened_anew() -> None:
    log = Log()

    async def run() -> None:
        async with log.engines(config("a")) as engines:
            first = await engines.get("a")
            log.dead.add(id(first))
            second, third = await asyncio.gather(engines.get("a"), engines.get("a"))
            assert second is third is not first

    anyio.run(run)
    opened = ["open a", "loaded a True", "close a", "released a"]
    assert log.lines == opened + opened


def test_release_engine_closes_engines_of_a_run_in_another_thread() -> None:
    log = Log()
    ready, finish = threading.Event(), threading.Event()

    async def run() -> None:
        async with log.engines(config("a"), config("b")) as engines:
            await engines.get("a")
            await engines.get("b")
            ready.set()
            await asyncio.to_thread(finish.wait)

    thread = threading.Thread(target=anyio.run, args=(run,))
    thread.start()
    ready.wait()
    release_engine("a")
    assert "released a" in log.lines and "released b" not in log.lines
    release_engine()
    assert "released b" in log.lines
    finish.set()
    thread.join()
    assert log.lines.count("close a") == 1


def test_release_engine_on_the_loop_of_the_run_itself_takes_effect_when_the_loop_goes_on() -> None:
    async def run() -> None:
        released = asyncio.Event()
        async with Engines({"a": config("a")}, on_released=lambda _config: released.set()) as engines:
            await engines.get("a")
            release_engine()
            assert not released.is_set()
            await released.wait()
            assert engines.opened == ()

    anyio.run(run)


def test_release_engine_without_a_run_does_nothing() -> None:
    release_engine()


def test_an_engine_behind_http_is_silent_for_no_longer_than_the_patience_with_it() -> None:
    async def run() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            engine = create_engine(make_config("a", "m", "openai", endpoint=url), patience=0.1)
            with pytest.raises(EngineUnavailable, match="did not become ready in 0 s"):
                await engine.open()

    anyio.run(run)
