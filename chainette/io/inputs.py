"""Inputs: what a path holds, and the reader for it.

JSONL, CSV, TSV (each also as .gz) or Parquet: a file, a folder, a pattern, or several of these. The kind is taken from
the extension, else from the content. An input that cannot be read as a whole is an `InputError` before
anything runs; a bad record never is one. An empty file is an input of no records.
"""

from __future__ import annotations

import difflib
import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from chainette.errors import InputError
from chainette.io.parquet import ParquetFile
from chainette.io.readers import DelimitedFile, InputFile, JsonLinesFile, Record
from chainette.io.several import KINDS, SeveralFiles, expand
from chainette.io.spool import spool
from chainette.io.validate import BadRecord, InputModel

__all__ = ["MAX_LINE_BYTES", "BadRecord", "InputFile", "InputModel", "Record", "open_input", "spool"]

#: The longest line or CSV record that is read; a longer one is a bad record.
MAX_LINE_BYTES = 16 << 20

_KINDS = KINDS | {".json": "json"}
#: A file, a folder or a pattern.
Source = str | os.PathLike[str]
_HEAD = 1 << 16
#: What a file starts with -> what it is and what to do.
_FOREIGN = {
    b"PK\x03\x04": "is a zip archive (or an Excel workbook); unpack it, or save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed; unpack it with `zstd -d`",
    b"BZh": "is bzip2-compressed; unpack it with `bunzip2`",
    b"\xfd7zXZ\x00": "is xz-compressed; unpack it with `unxz`",
    b"%PDF": "is a PDF",
    b"SQLite format 3\x00": "is an SQLite database; export the table as CSV",
}
#: UTF-32 before UTF-16: one starts like the other.
_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}


def open_input(
    source: Source | Sequence[Source], *, limit: int | None = None, max_line_bytes: int = MAX_LINE_BYTES
) -> InputFile:
    """The reader for a file, a folder, a pattern, or several of them in the order given; cut at `limit` records.

    Raises:
        InputError: there is nothing that can be read; the message says what was found and what to do.
    """
    sources = [Path(source)] if isinstance(source, str | os.PathLike) else [Path(item) for item in source]
    files = [file for path in sources for file in expand(path)]
    if files == sources and len(files) == 1:
        return _open_file(files[0], limit, max_line_bytes)
    _require_once(files)
    parts = [_open_file(file, None, max_line_bytes) for file in files]
    _require_one_kind(parts)
    return SeveralFiles(sources, parts, limit)


def _open_file(path: Path, limit: int | None, max_line_bytes: int) -> InputFile:
    head = _head(path)
    kind = _kind(path, head)
    if kind == "parquet":
        return ParquetFile(path, limit)
    _require_text(path, head)
    if kind in ("csv", "tsv"):
        return DelimitedFile(path, limit, max_line_bytes, kind)
    _require_lines(path, kind, head)
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
    """The first 64 KiB, unpacked."""
    if not path.exists():
        raise InputError(f"{path}: no such file{_nearest(path)}")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file; to read a stream give `-` and pipe it in")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                head = packed.read(_HEAD)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: a damaged gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return head


def _nearest(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:
        return f"; the folder {path.parent} is not there either"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else f" (the current folder is {Path.cwd()})"


def _kind(path: Path, head: bytes) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    kind = _KINDS.get(suffix.lower()) or _kind_of_content(path, head)
    if (kind == "parquet") != head.startswith(b"PAR1"):
        found = (
            "is a Parquet file; name it .parquet" if kind != "parquet" else "is not a Parquet file: it does not start with PAR1"
        )
        raise InputError(f"{path}: {found}")
    return kind


def _kind_of_content(path: Path, head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    _require_text(path, head)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = text.partition(b"\n")[0]
    if not text or text.startswith((b"{", b"[")):
        return "jsonl"
    if b"\t" in first and b"," not in first:
        return "tsv"
    if b"," in first or b";" in first:
        return "csv"
    raise InputError(f"{path}: neither the name nor the content says what it is; name it .jsonl, .csv, .tsv or .parquet")


def _require_text(path: Path, head: bytes) -> None:
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{path}: {what}")
    encoding = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
    zeros = head.count(0)
    if encoding is None and len(head) > 8 and zeros > len(head) * 0.3:
        encoding = "UTF-16LE" if head[1::2].count(0) > zeros // 2 else "UTF-16BE"
    if encoding and len(head) > 1 and _looks_like_text(head, encoding):
        raise InputError(
            f"{path}: looks like {encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"
        )
    if sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\r\f") > len(head) * 0.1:
        raise InputError(f"{path}: binary content; give JSONL, CSV or Parquet")


def _looks_like_text(head: bytes, encoding: str) -> bool:
    text = head[: len(head) // 4 * 4].decode(encoding, errors="replace")
    return sum(character.isprintable() or character.isspace() or character == "\ufeff" for character in text) > len(text) * 0.9


def _require_lines(path: Path, kind: str, head: bytes) -> None:
    """Refuses one JSON value that is spread over the whole file."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = text.partition(b"\n")[0].strip()
    target = path.with_suffix(".jsonl").name if kind == "json" else f"lines-{path.name}"
    if text.startswith(b"[") and (kind == "json" or first == b"[" or first.startswith((b"[{", b"[ {"))):
        raise InputError(f"{path}: one JSON array; one object per line is needed: jq -c '.[]' {path.name} > {target}")
    if kind == "json" and first == b"{":
        raise InputError(
            f"{path}: a JSON object over several lines; one object per line is needed: jq -c . {path.name} > {target}"
        )
