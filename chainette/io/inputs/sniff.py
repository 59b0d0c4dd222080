"""Recognizes the format of a file by its name and, with precedence, by its first 64 KiB."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from chainette.errors import InputError
from chainette.io.inputs.compression import PACKED
from chainette.io.inputs.json_values import values

__all__ = ["HEAD", "KINDS", "kind_of"]

#: The bytes that are examined.
HEAD = 1 << 16
#: Extension -> kind; each may be followed by one of `PACKED`.
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_BOM = b"\xef\xbb\xbf"
#: The first bytes of a file -> its format and the remedy.
_FOREIGN = {
    b"PK\x03\x04": "is a zip archive (or an Excel workbook); unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook or another Office file; save the sheet as CSV",
    b"\x04\x22\x4d\x18": "is lz4-compressed; unpack it with `lz4 -d`",
    b"BZh": "is bzip2-compressed; unpack it with `bunzip2`",
    b"\xfd7zXZ\x00": "is xz-compressed; unpack it with `unxz`",
    b"7z\xbc\xaf\x27\x1c": "is a 7-Zip archive; unpack it with `7z x`",
    b"%PDF": "is a PDF",
    b"SQLite format 3\x00": "is an SQLite database; export the table as CSV",
    b"ARROW1": "is an Arrow (Feather) file; write it as Parquet: pyarrow.feather.read_table, pyarrow.parquet.write_table",
    b"PARE": "is an encrypted Parquet file; write it without encryption",
    b"ORC": "is an ORC file; write it as Parquet: pyarrow.orc.read_table, pyarrow.parquet.write_table",
    b"Obj\x01": "is an Avro file; write it as Parquet or JSON Lines",
    b"\x89HDF": "is an HDF5 file; write its table as Parquet",
    b"\x93NUMPY": "is a NumPy array; write it as Parquet",
    b"version https://git-lfs.github.com/": "is only the pointer of a Git LFS file; fetch its content: git lfs pull",
}
_HTML = re.compile(rb"\s*<(!doctype|html|\?xml|head|body)\b", re.IGNORECASE)
#: UTF-32 before UTF-16, because one of its marks begins like that of UTF-16.
_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}
#: The end of a line of pretty-printed JSON.
_GOES_ON = (b"{", b"[", b",", b":")


def kind_of(path: Path, head: bytes) -> str:
    """The kind of a file: jsonl, json (an array, or objects over several lines), csv, tsv or parquet.

    Raises:
        InputError: the file has another format, or its content contradicts its name.
    """
    suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    named = KINDS.get(suffix.lower(), "")
    if head.startswith(b"PAR1") and named in ("", "parquet"):
        return "parquet"
    if head.startswith(b"PAR1"):
        raise InputError(f"{path}: is a Parquet file; name it .parquet")
    _require_text(path, head)
    if named == "parquet":
        raise InputError(f"{path}: is not a Parquet file: it does not start with PAR1")
    text = head.removeprefix(_BOM).lstrip()
    if text.startswith((b"{", b"[")) and (named not in ("csv", "tsv") or _holds_json(text, len(head) < HEAD)):
        return "json" if _is_spread(text, len(head) < HEAD) else "jsonl"
    if named in ("csv", "tsv"):
        return named
    return _kind_of_lines(path, named, text, suffix)


def _kind_of_lines(path: Path, named: str, text: bytes, suffix: str) -> str:
    """The kind of a file that does not begin like JSON and is not named like a table."""
    lines = text.splitlines()
    first = lines[0] if lines else b""
    is_table = any(separator in first for separator in (b",", b";", b"\t", b"|"))
    if named == "jsonl":
        if is_table and not any(line.lstrip().startswith((b"{", b"[")) for line in islice(lines, 10)):
            shown = first[:60].decode(errors="replace")
            raise InputError(
                f"{path}: is not JSON; its first line looks like the header of a CSV file: {shown!r}; name it .csv"
            )
        return named
    if not text:
        return "jsonl"
    if is_table or not suffix:
        return "csv"
    raise InputError(
        f"{path}: its format follows neither from its name nor from its content; name it .jsonl, .csv, .tsv or .parquet"
    )


def _holds_json(text: bytes, whole: bool) -> bool:
    """Whether a text that begins with a bracket is JSON, rather than a CSV header with brackets."""
    first = text.splitlines()[0].strip()
    if isinstance(_decoded(first), dict | list):
        return True
    value = next(_values(text), b"")
    return isinstance(_decoded(value), dict) or (not whole and text.startswith((b'{"', b'[{"')))


def _is_spread(text: bytes, whole: bool) -> bool:
    """Whether JSON is an array, or objects over several lines, rather than one object per line."""
    first, *others = text.splitlines()
    first = first.strip()
    if text.startswith(b"["):
        found = _decoded(first)
        return not isinstance(found, list) or not found or any(isinstance(member, dict) for member in found)
    if isinstance(_decoded(first), dict) or not (others or whole):
        return False
    value = next(_values(text), b"")
    if not value:
        return first == b"{" or first.endswith(_GOES_ON)
    return isinstance(_decoded(value), dict) and (b"\n" in value or not any(line.strip() for line in others))


def _values(text: bytes) -> Any:
    import io

    return (line.data for line in values(io.BytesIO(text), HEAD) if not line.error)


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def _require_text(path: Path, head: bytes) -> None:
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{path}: {what}")
    if head[257:262] == b"ustar":
        raise InputError(f"{path}: is a tar archive; unpack it with `tar -xf`")
    if _HTML.match(head.removeprefix(_BOM)):
        raise InputError(f"{path}: is HTML or XML, perhaps the error page of a download; give JSONL, CSV or Parquet")
    encoding = _wide_encoding(head)
    if encoding and len(head) > 1 and _looks_like_text(head, encoding):
        raise InputError(
            f"{path}: looks like {encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"
        )
    if sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\r\f") > len(head) * 0.1:
        raise InputError(f"{path}: binary content; give JSONL, CSV or Parquet")


def _wide_encoding(head: bytes) -> str | None:
    encoding = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
    zeros = head.count(0)
    if encoding is None and len(head) > 8 and zeros > len(head) * 0.3:
        return "UTF-16LE" if head[1::2].count(0) > zeros // 2 else "UTF-16BE"
    return encoding


def _looks_like_text(head: bytes, encoding: str) -> bool:
    text = head[: len(head) // 4 * 4].decode(encoding, errors="replace")
    return sum(character.isprintable() or character.isspace() or character == "\ufeff" for character in text) > len(text) * 0.9
