"""The vocabulary in a GGUF file, as far as prompts need it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

__all__ = ["marker_tokens"]

_TOKENS, _KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
#: Kinds of tokens that are found in any text: control tokens, and those that the model's makers added.
_CONTROL, _ADDED = 3, 4

#: Type number of a value -> its `struct` format.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def marker_tokens(path: Path, template: str) -> list[str]:
    """The texts the model's tokenizer turns into one token wherever they are: its control tokens, and others that its
    chat template writes. llama.cpp must have loaded the file, so it is known to be whole.
    """
    with path.open("rb") as file:
        found = _metadata(file, {_TOKENS, _KINDS})
    pairs = zip(found.get(_TOKENS, ()), found.get(_KINDS, ()), strict=False)
    decoded = [(token.decode(errors="replace"), kind) for token, kind in pairs if kind in (_CONTROL, _ADDED)]
    return [token for token, kind in decoded if kind == _CONTROL or token in template]


def _metadata(file: BufferedReader, wanted: set[str]) -> dict[str, Any]:
    _magic, _version, _tensors, count = struct.unpack("<4sIQQ", file.read(24))
    found = {}
    for _ in range(count):
        name = _string(file).decode(errors="replace")
        value = _value(file, _number(file, "I"))
        if name in wanted:
            found[name] = value
    return found


def _value(file: BufferedReader, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _SCALARS[kind])
    inner, size = _number(file, "I"), _number(file, "Q")
    if inner in _SCALARS:
        form = f"<{size}{_SCALARS[inner]}"
        return struct.unpack(form, file.read(struct.calcsize(form)))
    read: Callable[[BufferedReader], Any] = _string if inner == _STRING else lambda stream: _value(stream, inner)
    return [read(file) for _ in range(size)]


def _string(file: BufferedReader) -> bytes:
    return file.read(_number(file, "Q"))


def _number(file: BufferedReader, form: str) -> Any:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0]
