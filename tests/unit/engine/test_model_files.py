"""A model's files are told apart by size and sampled digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chainette.engine.config import make_config
from chainette.engine.model_files import files_of

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(b"a" * (3 * MIB))
    for folder in ("model", "tokenizer", "lora"):
        (tmp_path / folder / "part").mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"a": 1}')
        (tmp_path / folder / "part/weights.bin").write_bytes(b"w" * 100)
        (tmp_path / folder / "README.md").write_text("A model")
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    return tmp_path


def found(files: Path, backend: str) -> dict[str, str]:
    if backend == "llama_cpp":
        return files_of(make_config("e", str(files / "model.gguf"), backend))
    keys: dict[str, Any] = {"tokenizer": str(files / "tokenizer"), "lora": str(files / "lora")}
    return files_of(make_config("e", str(files / "model"), backend, **keys, chat_template=str(files / "chat.jinja")))


def at(position: int) -> Callable[[Path], None]:
    """Writes one byte in place."""

    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"X")

    return change


@pytest.mark.parametrize(
    ("backend", "file", "setting", "change"),
    [
        ("llama_cpp", "model.gguf", "model", at(0)),
        ("llama_cpp", "model.gguf", "model", at(3 * MIB - 1)),
        ("llama_cpp", "model.gguf", "model", at(3 * MIB)),
        ("vllm", "model/config.json", "model", at(3)),
        ("vllm", "model/part/weights.bin", "model", at(50)),
        ("vllm", "model/part/weights.bin", "model", lambda path: path.rename(path.with_name("other.bin"))),
        ("vllm", "model/part/weights.bin", "model", lambda path: path.unlink()),
        ("vllm", "model/added.json", "model", lambda path: path.write_text("{}")),
        ("vllm", "tokenizer/config.json", "tokenizer", at(3)),
        ("vllm", "lora/part/weights.bin", "lora", at(99)),
        ("vllm", "chat.jinja", "chat_template", at(3)),
    ],
)
def test_a_changed_file_changes_what_its_setting_names_and_nothing_else(
    files: Path, backend: str, file: str, setting: str, change: Callable[[Path], None]
) -> None:
    before = found(files, backend)
    assert setting in before
    change(files / file)
    after = found(files, backend)
    assert {name for name in before if before[name] != after[name]} == {setting}


def test_pages_for_people_hidden_files_and_times_are_left_out(files: Path) -> None:
    before = found(files, "vllm")
    (files / "model/README.md").write_text("Another page")
    (files / "model/.cache").mkdir()
    (files / "model/.cache/lock").write_text("")
    (files / "model/config.json").touch()
    assert found(files, "vllm") == before


@pytest.mark.parametrize(
    ("model", "backend"),
    [("org/model", "vllm"), ("/not/there", "vllm"), ("/not/there.gguf", "llama_cpp"), ("gpt", "openai"), ("m", "simulated")],
)
def test_what_is_not_on_this_machine_has_no_files(model: str, backend: str) -> None:
    assert files_of(make_config("e", model, backend)) == {}
