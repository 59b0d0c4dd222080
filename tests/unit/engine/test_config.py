"""Declaring engines: refusals, the parts that may be shown, and files of engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainette.engine.config import EngineRegistry, make_config, public_url, using_registry
from chainette.engine.registry import load_engines, overlaid
from chainette.errors import EngineConfigError


@pytest.mark.parametrize(
    "url, shown",
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://user:hunter2@host:1/v1", "https://host:1/v1"),
        ("https://user:hunter@2@host/v1", "https://host/v1"),
        ("https://host/v1?api-key=hunter2#hunter2", "https://host/v1"),
        ("https://${USER}:${KEY}@host/v1", "https://host/v1"),
        ("http://user:hunter2@[::1/v1", "(not a URL)"),
        ("http://user:hunter2/x@host/v1", "(not a URL)"),
        ("http://user:12?hunter2@host/v1", "(not a URL)"),
        ("http://user:hunter2", "(not a URL)"),
        ("user:hunter2@host:1/v1", "(not a URL)"),
        (":hunter2@host/v1", "(not a URL)"),
        ("http://user:hunter2@host:port/v1", "(not a URL)"),
        ("https://${HOST}:${PORT}/v1", "https://${HOST}:${PORT}/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("localhost:8000/v1", "localhost:8000/v1"),
    ],
)
def test_secrets_in_urls_are_left_out(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert make_config("e", "m", "openai", endpoint=url).describe()["endpoint"] == [shown]


@pytest.mark.parametrize(
    "text, message",
    [
        ("engines:\n  - name: 12\n    model: m\n", "engine name 12 is int, not text; put it in quotes"),
        ("engines:\n  a: [1]\n", "expected a list of engines, or a mapping of names to their settings"),
        ("engines:\n  a: {model: 3}\n", "engine 'a': model is 3"),
        ("engines:\n  a: {model: m, backend: openai, 5: 3}\n", "unknown key '5'"),
        ("engines:\n  a: {model: m, backend: 7}\n", "unknown backend '7'"),
        ("engines:\n  a: {model: m, backend: openai, capacty: 3}\n", "did you mean 'capacity'?"),
        ("engines:\n  - model: m\n", "engine number 1 lacks name"),
        ("engines: 3\n", "expected a list of engines"),
        ("engines: [\n", "cannot be read as YAML"),
    ],
)
def test_a_file_that_cannot_be_read_as_engines_is_refused_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "engines.yml"
    path.write_text(text)
    with using_registry(EngineRegistry()), pytest.raises(EngineConfigError) as refused:
        load_engines(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)


def test_a_broken_engine_file_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "engines.yml"
    for text in ("KEY=abc\nother: CANARY: [1\n", "a: !!python/object:CANARY {}\n", "CANARY: [\n", "- &a [*a, CANARY: {\n"):
        path.write_text(text)
        with using_registry(EngineRegistry()), pytest.raises(EngineConfigError) as refused:
            load_engines(path)
        assert "CANARY" not in str(refused.value) and "\n" not in str(refused.value)


def test_engines_of_a_file_take_the_place_of_those_of_the_chain_and_leave_the_chains_own(tmp_path: Path) -> None:
    path = tmp_path / "engines.yml"
    path.write_text("engines:\n  judge: {model: small, backend: simulated}\n")
    own = EngineRegistry()
    own.add(make_config("judge", "large", "openai"))
    own.add(make_config("writer", "large", "openai"))
    assert [(config.name, config.model) for config in overlaid(own, path)] == [("judge", "small"), ("writer", "large")]
    assert own.get("judge").model == "large"
