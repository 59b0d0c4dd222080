"""Identity of an engine's local parts: a GGUF or a model's folder, an adapter, a tokenizer, a chat template."""

from __future__ import annotations

import hashlib
from pathlib import Path

from chainette.engine.backends import backend_class
from chainette.engine.config import EngineConfig
from chainette.errors import EngineConfigError

__all__ = ["files_of"]

#: Bytes at the start and at the end of a file its digest covers, as an input's does.
_SAMPLE = 1 << 20


def files_of(config: EngineConfig) -> dict[str, str]:
    """Setting -> size and digest of the files it names on this machine; hubs and servers are left out."""
    found: dict[str, str] = {}
    try:
        for setting, part in backend_class(config.backend).local_parts(config):
            if isinstance(part, bytes):
                found[setting] = _words(len(part), hashlib.sha256(part))
            elif part.exists():
                found[setting] = _identity(part)
    except (OSError, EngineConfigError):  # opening the engine gives a better message
        return {}
    return found


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
    """The file, or the model files of a folder: no hidden files and no documentation."""
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
