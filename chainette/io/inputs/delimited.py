"""CSV and TSV as text: splits a stream into records and records into cells, and writes them.

RFC 4180, read as leniently as Python's csv module: a quote matters only at the start of a cell.
Unlike that module, it distinguishes an empty cell (None) from a quoted empty one (""), knows the line
at which a record starts, and never holds more than `max_bytes` of a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from chainette.io.inputs.readers import KEPT
from chainette.io.inputs.text_file import Line, LineSource, lines, without_mark
from chainette.utils.plurals import counted

__all__ = ["format_cells", "records", "split_cells"]

_SPECIAL = frozenset('",\r\n')


def records(stream: LineSource, separator: bytes, max_bytes: int, first: int = 1) -> Iterator[Line]:
    """The records of a CSV stream: its lines, which are joined if a quoted cell contains a line end."""
    source = lines(stream, max_bytes, first)
    for line in map(without_mark, source):
        if not line.error and b'"' in line.data and _is_open(line.data, separator, inside=False):
            yield _join_record(line, source, separator, max_bytes)
        else:
            yield line


def _join_record(start: Line, source: Iterable[Line], separator: bytes, max_bytes: int) -> Line:
    parts, size, error, last = [start.data], len(start.data), "", start.number
    for line in source:
        last, data = line.number, line.data
        size += len(data)
        error = error or line.error
        if not error and size > max_bytes:
            error = f"the record is longer than the {max_bytes:,} bytes allowed; is a quote in it never closed?"
        if error:
            parts = [b"".join(parts)[:KEPT]]
        else:
            parts.append(data)
        if not _is_open(data, separator, inside=True):
            break
    else:
        error = f"a quoted cell in it is never closed, so the record goes on for {counted(last - start.number, 'more line')}"
    data = b"".join(parts)
    if not error and not _is_well_quoted(data, separator):
        error = (
            f"it has a quote in the middle of a cell, so lines {start.number} to {last} were read as one record; "
            "is there a quote too many, or one that is not doubled?"
        )
    return Line(start.number, data, error)


def _is_well_quoted(record: bytes, separator: bytes) -> bool:
    """Whether every quoted cell ends at a separator or at the end; if not, a stray quote may have joined lines."""
    between = re.escape(separator)
    cell = rb'(?:"(?:[^"]++|"")*+"|[^"%b][^%b]*+)?+' % (between, between)
    return re.fullmatch(rb"%b(?:%b%b)*+" % (cell, between, cell), record.rstrip(b"\r\n")) is not None


def _is_open(data: bytes, separator: bytes, *, inside: bool) -> bool:
    """Whether a quoted cell is open at the end of a line."""
    at = 0
    while True:
        if not inside:
            if data[at : at + 1] != b'"':
                at = data.find(separator, at) + 1
                if at == 0:
                    return False
                continue
            at += 1
        quote = data.find(b'"', at)
        if quote < 0:
            return True
        inside = data[quote + 1 : quote + 2] == b'"'
        at = quote + 2 if inside else data.find(separator, quote + 1) + 1
        if at == 0:
            return False


def split_cells(text: str, separator: str) -> list[str | None]:
    """The cells of a record; None stands for an empty cell without quotes."""
    text = text.removesuffix("\n").removesuffix("\r")
    if '"' not in text:
        return [cell or None for cell in text.split(separator)]
    cells: list[str | None] = []
    at = 0
    while at <= len(text):
        cell, at = _quoted(text, at + 1, separator) if text.startswith('"', at) else _plain(text, at, separator)
        cells.append(cell)
    return cells


def _plain(text: str, at: int, separator: str) -> tuple[str | None, int]:
    end = text.find(separator, at)
    end = len(text) if end < 0 else end
    return text[at:end] or None, end + 1


def _quoted(text: str, at: int, separator: str) -> tuple[str, int]:
    """The quoted cell whose content starts at `at`, and the position of the next cell."""
    parts = []
    while (quote := text.find('"', at)) >= 0 and text.startswith('"', quote + 1):
        parts.append(text[at : quote + 1])
        at = quote + 2
    quote = len(text) if quote < 0 else quote
    rest, following = _plain(text, quote + 1, separator)
    return "".join([*parts, text[at:quote], rest or ""]), following


def format_cells(cells: Iterable[Any]) -> str:
    """A line of CSV. None becomes an empty cell and an empty string "", so that they can be distinguished."""
    return ",".join(["" if cell is None else _quote(cell) for cell in cells]) + "\n"


def _quote(cell: str) -> str:
    if cell and _SPECIAL.isdisjoint(cell) and cell[0] > " " and cell[-1] > " ":
        return cell
    return '"' + cell.replace('"', '""') + '"'
