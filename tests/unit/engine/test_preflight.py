"""Obstacles to opening an engine, found without opening it."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from chainette.engine.config import make_config
from chainette.engine.preflight import foreseen, require_openable
from chainette.errors import EnginesCannotOpen


def found(model: str, backend: str | None = None, **keys: Any) -> list[str]:
    return [*foreseen(make_config("llm", model, backend, **keys))]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("T_KEY", "T_HEADER", "T_HOST", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec

    def find_spec(name: str, package_of: str | None = None) -> ModuleSpec | None:
        return None if name == package else find(name, package_of)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    monkeypatch.setattr("chainette.engine.vllm.async_llm.find_spec", find_spec)


def test_an_endpoint_that_is_down_is_no_obstacle() -> None:
    assert found("m", "openai", endpoint="http://127.0.0.1:9/v1") == found("m", "ollama", endpoint="http://127.0.0.1:9") == []


def test_every_variable_that_is_missing_is_named() -> None:
    keys = {"api_key_env": "T_KEY", "headers": {"X-Token": "${T_HEADER}"}, "endpoint": ["http://${T_HOST}:1", "ftp://x"]}
    words = found("m", "openai", **keys)
    assert len(words) == 4 and all(line.startswith("engine 'llm': ") for line in words)
    text = "\n".join(words)
    assert "T_KEY is not set here" in text and "T_HEADER is not set" in text and "T_HOST is not set" in text
    assert "'ftp://x/v1' is not a URL" in text


def test_openai_itself_wants_its_usual_key(monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = found("gpt", "openai")
    assert "OPENAI_API_KEY is not set here" in words
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    assert found("gpt", "openai") == []


def test_a_key_that_the_backend_never_reads_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert found("m", "simulated", api_key_env="T_KEY") == found(str(tmp_path / "a.gguf"), api_key_env="T_KEY") == []


def test_a_gguf_that_is_not_there_and_its_package_are_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "xllamacpp")
    package, file = found("/nowhere/x.gguf")
    assert "pip install xllamacpp" in package
    assert "there is no model file /nowhere/x.gguf" in file


def test_vllm_its_folders_and_its_template_are_obstacles_and_an_id_of_the_hub_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "vllm")
    words = found("./nowhere", "vllm", lora="~/no-such-adapter", tokenizer="some/tokenizer", chat_template="no-such.jinja")
    assert len(words) == 4
    assert "needs the package vllm" in words[0] and "there is no model at nowhere" in words[1]
    assert "there is no lora at" in words[2] and "no-such.jinja" in words[3]
    assert len(found("some/model", "vllm")) == 1


def test_values_that_cannot_work_are_obstacles() -> None:
    (words,) = found("m", "simulated", invalid_rate=2.0)
    assert words == "engine 'llm': invalid_rate is 2.0; it must be between 0 and 1"


def test_all_obstacles_of_all_engines_come_at_once() -> None:
    configs = [make_config("a", "/nowhere/x.gguf"), make_config("b", "m", "openai", api_key_env="T_KEY")]
    with pytest.raises(EnginesCannotOpen) as caught:
        require_openable(configs)
    assert [words[:11] for words in caught.value.obstacles] == ["engine 'a':", "engine 'b':"]
    require_openable([make_config("c", "m", "simulated")])
