"""The event loop that Chainette starts."""

from __future__ import annotations

import asyncio
import sys

import pytest

from chainette.utils.event_loop import loop_in_thread, run_loop


async def _module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_uvloop_is_taken_if_it_is_installed() -> None:
    pytest.importorskip("uvloop")
    assert run_loop(_module_of_the_loop).startswith("uvloop")
    with loop_in_thread() as portal:
        assert portal.call(_module_of_the_loop).startswith("uvloop")


def test_asyncio_runs_everything_if_uvloop_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run_loop(_module_of_the_loop).startswith("asyncio")
    with loop_in_thread() as portal:
        assert portal.call(_module_of_the_loop).startswith("asyncio")
