"""Compressed inputs: gzip and zstd are unpacked, regardless of the name of the file."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any, cast

__all__ = ["BOM", "PACKED", "open_text", "packing_of", "text_of"]

#: Extensions that may follow those of `KINDS`.
PACKED = (".gz", ".zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 1 << 16
#: The byte-order mark of UTF-8.
BOM = b"\xef\xbb\xbf"


def packing_of(head: bytes) -> str:
    """The compression of a file with this beginning: "gzip", "zstd" or ""."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def open_text(path: Path) -> IO[bytes]:
    """The text of a file, unpacked and without a UTF-8 byte-order mark."""
    return text_of(path.open("rb"))


def text_of(stream: IO[bytes]) -> IO[bytes]:
    """The text of an open file, as `open_text`; the file is closed with the result."""
    match packing_of(cast("io.BufferedReader", stream).peek(4)[:4]):
        case "gzip":
            stream = _gunzipped(stream)
        case "zstd":
            stream = _unpacked_zstd(stream)
    try:
        if cast("io.BufferedReader", stream).peek(3).startswith(BOM):
            stream.read(3)
    except BaseException:  # the file is damaged
        stream.close()
        raise
    return stream


def _gunzipped(stream: IO[bytes]) -> IO[bytes]:
    unpacked = gzip.GzipFile(fileobj=stream)
    unpacked.myfileobj = cast("Any", stream)  # which is closed with it
    return cast("IO[bytes]", unpacked)


def _unpacked_zstd(stream: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"), _BLOCK)
