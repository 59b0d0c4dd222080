"""What the files of an engine are: a GGUF or a model's folder, an adapter, a tokenizer, a chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from chainette.engine.backends import VllmOptions
from chainette.engine.config import EngineConfig
from chainette.engine.vllm.chat_tokens import template_text
from chainette.errors import EngineConfigError

__all__ = ["files_of"]

#: Bytes at the start and at the end of a file that its digest covers, as an input's does.
_SAMPLE = 1 << 20


def files_of(config: EngineConfig) -> dict[str, str]:
    """Setting -> size and sampled digest of the local file or folder that it names; what a hub or a server has is left out."""
    found: dict[str, str] = {}
    try:
        for setting, path in _paths(config):
            if path.exists():
                found[setting] = _identity(path)
        template = config.options.chat_template if isinstance(config.options, VllmOptions) else None
        if template is not None:
            found["chat_template"] = _words(len(template), hashlib.sha256((template_text(template) or "").encode()))
    except (OSError, EngineConfigError):  # opening the engine says it better
        return {}
    return found


def _paths(config: EngineConfig) -> Iterator[tuple[str, Path]]:
    if config.backend == "llama_cpp":
        from chainette.engine.llama_cpp.server import model_path

        yield "model", model_path(config)
    elif isinstance(config.options, VllmOptions):
        named = {"model": config.model, "tokenizer": config.tokenizer, "lora": config.options.lora}
        yield from ((setting, Path(name).expanduser()) for setting, name in named.items() if name is not None)


def _identity(path: Path) -> str:
    total, size = hashlib.sha256(), 0
    for file in _files(path):
        length = file.stat().st_size
        size += length
        total.update(f"{file.relative_to(path)} {length}\n".encode())
        with file.open("rb") as stream:
            total.update(stream.read(_SAMPLE))
            stream.seek(max(0, length - _SAMPLE))
            total.update(stream.read(_SAMPLE))
    return _words(size, total)


def _files(path: Path) -> list[Path]:
    """The file, or the files of a folder that a model is made of: no hidden ones, and no pages for people."""
    if path.is_file():
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return [
        file
        for file in inside
        if file.suffix != ".md" and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]


def _words(size: int, total: hashlib._Hash) -> str:
    return f"{size} bytes, sha256 of the ends {total.hexdigest()[:32]}"
