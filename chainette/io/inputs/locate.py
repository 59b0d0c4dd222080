"""Finds the reader for an input.

An input is JSONL, CSV, TSV (each also as .gz or .zst) or Parquet: a file, a folder, a pattern, or several of these. Its kind
follows from the extension or, failing that, from the content. An unreadable input raises `InputError` before anything runs; a
bad record never does. An empty file is an input without records.
"""

from __future__ import annotations

import difflib
import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from chainette.core.dump import short
from chainette.errors import InputError
from chainette.io.inputs.compression import open_text, packing_of
from chainette.io.inputs.delimited_file import DelimitedFile
from chainette.io.inputs.growing_file import GrowingFile
from chainette.io.inputs.json_values import JsonFile
from chainette.io.inputs.many_files import SeveralFiles, expand
from chainette.io.inputs.parquet import ParquetFile
from chainette.io.inputs.readers import InputFile, Record
from chainette.io.inputs.sniff import HEAD, kind_of
from chainette.io.inputs.spool import spool
from chainette.io.inputs.text_file import JsonLinesFile, TextFile
from chainette.io.inputs.validate import BadRecord, InputModel

__all__ = ["MAX_LINE_BYTES", "BadRecord", "InputFile", "InputModel", "Record", "open_growing", "open_input", "spool"]

#: The most bytes of a line or CSV record; a longer one is a bad record.
MAX_LINE_BYTES = 16 << 20

#: A file, a folder or a pattern.
Source = str | os.PathLike[str]


def open_input(
    source: Source | Sequence[Source], *, limit: int | None = None, max_line_bytes: int = MAX_LINE_BYTES
) -> InputFile:
    """The reader for a file, a folder, a pattern, or several of them in this order; it stops after `limit` records.

    Raises:
        InputError: the input cannot be read; the message names its content and the next step.
    """
    sources = [Path(source)] if isinstance(source, str | os.PathLike) else [Path(item) for item in source]
    files = [file for path in sources for file in _files(path)]
    if files == sources and len(files) == 1:
        return _open_file(files[0], limit, max_line_bytes)
    _require_once(files)
    parts = [_open_file(file, None, max_line_bytes) for file in files]
    _require_one_kind(parts)
    return SeveralFiles(sources, parts, limit)


def open_growing(growing: GrowingFile, *, limit: int | None = None) -> InputFile:
    """The reader for a file that grows as it is read, if it holds text; any other source is read to its end first.

    Raises:
        InputError: as for `open_input`.
    """
    growing.begin()
    with growing.path.open("rb") as file:
        is_packed = bool(packing_of(file.read(4)))
    found = None if is_packed else _open_file(growing.path, limit, MAX_LINE_BYTES)
    if isinstance(found, TextFile):
        found.grow(growing)
        return found
    growing.drain()
    found = _open_file(growing.path, limit, MAX_LINE_BYTES)
    found.origin = growing.origin
    return found


def _files(path: Path) -> list[Path]:
    try:
        return expand(path)
    except OSError as error:  # for example, a text that was meant as a row
        raise InputError(f"{short(str(path))}: cannot be read: {error.strerror}; a row is a model or a dict") from error


def _open_file(path: Path, limit: int | None, max_line_bytes: int) -> InputFile:
    match kind_of(path, _head(path)):
        case "parquet":
            return ParquetFile(path, limit)
        case "csv" | "tsv" as kind:
            return DelimitedFile(path, limit, max_line_bytes, kind)
        case "json":
            return JsonFile(path, limit, max_line_bytes)
        case _:
            return JsonLinesFile(path, limit, max_line_bytes)


def _require_once(files: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for file in files:
        first = seen.setdefault(file.resolve(), file)
        if first is not file:
            raise InputError(f"{file}: given twice" + ("" if first == file else f", also as {first}"))


def _require_one_kind(parts: list[InputFile]) -> None:
    first = parts[0]
    for part in parts:
        if part.kind.replace("tsv", "csv") != first.kind.replace("tsv", "csv"):
            raise InputError(
                f"{first.path} is {first.kind}, {part.path} is {part.kind}; give files of one format, "
                f"for instance '{first.path.parent}/*{first.path.suffix}'"
            )


def _head(path: Path) -> bytes:
    """The first 64 KiB of a file, unpacked."""
    if not path.exists():
        raise InputError(f"{path}: no such file{_nearest(path)}")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file; to read a stream, give `-` and pipe it in")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if packing := packing_of(head):
            with open_text(path) as unpacked:
                head = unpacked.read(HEAD)
            if head.startswith(b"PAR1"):
                raise InputError(f"{path}: is a Parquet file inside {packing}; unpack it first: Parquet is compressed already")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: a damaged gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return head


def _nearest(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:
        return f"; the folder {path.parent} does not exist either"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else f" (the current folder is {Path.cwd()})"
