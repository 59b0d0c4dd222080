"""Writes a Parquet file without rows, without pyarrow, whose import would cost 50 MiB and 0.2 s at the end of every run.

Such a file is only a footer. It describes the columns twice: for Parquet (in Thrift's compact protocol), and for Arrow,
under the key `ARROW:schema`, in which pyarrow looks for the metadata of fields (an IPC message in FlatBuffers, base64).
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
https://github.com/apache/arrow/blob/main/format/Schema.fbs
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from chainette.io.tables.column_types import JsonKind, Shape
from chainette.io.tables.columns import MARK, Columns

__all__ = ["schema_file"]


def schema_file(columns: Columns, format: str) -> bytes:
    """The bytes of a file from which every tool can read the column types of a JSON Lines or CSV folder."""
    footer = _footer(_flat(columns) if format == "csv" else columns)[1]
    return b"PAR1%b%bPAR1" % (footer, struct.pack("<i", len(footer)))


def _flat(columns: Columns) -> Columns:
    """The columns of a CSV file, in which lists and objects are text."""
    return tuple(
        (name, Shape(JsonKind.STRING) if shape.kind in (JsonKind.LIST, JsonKind.STRUCT) else shape) for name, shape in columns
    )


# -- Parquet

#: Kind of value -> its physical type, and the converted and logical type of text.
_TYPES = {JsonKind.BOOLEAN: 0, JsonKind.INTEGER: 2, JsonKind.NUMBER: 5, JsonKind.STRING: 6, JsonKind.JSON: 6}
_OPTIONAL, _REPEATED, _UTF8, _LIST = 1, 2, 0, 3

#: A value in Thrift: its type and its bytes.
_Value = tuple[int, bytes]


def _footer(columns: Columns) -> _Value:
    root = _structure({3: _int32(0), 4: _text("schema"), 5: _int32(len(columns))})
    elements = [root, *(element for name, shape in columns for element in _elements(name, shape))]
    arrow = _structure({1: _text("ARROW:schema"), 2: _text(base64.b64encode(_arrow_schema(columns)).decode())})
    fields = {1: _int32(2), 2: _list(elements), 3: (6, _varint(0)), 4: _list([]), 5: _list([arrow]), 6: _text("chainette")}
    return _structure(fields)


def _elements(name: str, shape: Shape) -> list[_Value]:
    """The element of a column, followed by those of the columns inside it."""
    match shape.kind:
        case JsonKind.STRUCT:
            inner = [element for field, kind in shape.fields for element in _elements(field, kind)]
            return [_group(name, len(shape.fields)), *inner]
        case JsonKind.LIST:
            a_list = {6: _int32(_LIST), 10: _structure({3: _structure({})})}
            item = _elements("element", shape.item or Shape(JsonKind.JSON))
            return [_group(name, 1, a_list), _group("list", 1, repetition=_REPEATED), *item]
        case kind:
            is_text = _TYPES[kind] == _TYPES[JsonKind.STRING]
            text = {6: _int32(_UTF8), 10: _structure({1: _structure({})})} if is_text else {}
            return [_structure({1: _int32(_TYPES[kind]), 3: _int32(_OPTIONAL), 4: _text(name)} | text)]


def _group(name: str, children: int, more: Mapping[int, _Value] | None = None, repetition: int = _OPTIONAL) -> _Value:
    return _structure({3: _int32(repetition), 4: _text(name), 5: _int32(children)} | dict(more or {}))


def _structure(fields: Mapping[int, _Value]) -> _Value:
    """A structure of fields by number, in ascending order."""
    parts, before = bytearray(), 0
    for number, (kind, data) in fields.items():
        parts += bytes([(number - before) << 4 | kind]) + data
        before = number
    return 12, bytes(parts) + b"\0"


def _list(values: Sequence[_Value]) -> _Value:
    """A list of structures."""
    head = bytes([len(values) << 4 | 12]) if len(values) < 15 else b"\xfc" + _varint(len(values))
    return 9, head + b"".join(data for _, data in values)


def _int32(number: int) -> _Value:
    return 5, _varint(2 * number)  # zigzag encoding of a number that is not negative


def _text(text: str) -> _Value:
    data = text.encode()
    return 8, _varint(len(data)) + data


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


# -- Arrow

#: Kind of value -> tag and table of its type: signed 64 bits, double, text, and so on.
_ARROW: Mapping[JsonKind, tuple[int, dict[int, Any]]] = {
    JsonKind.INTEGER: (2, {0: ("<i", 64), 1: ("<B", 1)}),
    JsonKind.NUMBER: (3, {0: ("<h", 2)}),
    JsonKind.STRING: (5, {}),
    JsonKind.JSON: (5, {}),
    JsonKind.BOOLEAN: (6, {}),
    JsonKind.LIST: (12, {}),
    JsonKind.STRUCT: (13, {}),
}


def _arrow_schema(columns: Columns) -> bytes:
    """The schema as an IPC message: format version 5, with a header of type Schema."""
    schema = {1: [_field(name, shape) for name, shape in columns]}
    data = bytearray(4)
    _refer(data, 0, {0: ("<h", 4), 1: ("<B", 1), 2: schema})
    data += bytes(-len(data) % 8)
    return b"\xff\xff\xff\xff" + struct.pack("<i", len(data)) + data


def _field(name: str, shape: Shape) -> dict[int, Any]:
    """A column as a table: name, nullable, tag and table of its type, children and metadata."""
    tag, kind = _ARROW[shape.kind]
    inner = (("element", shape.item or Shape(JsonKind.JSON)),) if shape.kind is JsonKind.LIST else shape.fields
    found = {0: name, 1: ("<B", 1), 2: ("<B", tag), 3: kind, 5: [_field(*field) for field in inner]}
    mark = [{0: key.decode(), 1: value.decode()} for key, value in MARK.items()]
    return found | {6: mark} if shape.kind is JsonKind.JSON else found


def _refer(data: bytearray, at: int, value: Any) -> None:
    """Appends a value, and writes its offset at `at`: a text, a list of tables, or the fields of a table by number."""
    data += bytes(-len(data) % 4)
    match value:
        case str(text):
            place = len(data)
            data += struct.pack("<I", len(text.encode())) + text.encode() + b"\0"
        case list(tables):
            place = len(data)
            data += struct.pack("<I", len(tables)) + bytes(4 * len(tables))
            for number, table in enumerate(tables, 1):
                _refer(data, place + 4 * number, table)
        case _:
            place = _append_table(data, value)
    struct.pack_into("<I", data, at, place - at)


def _append_table(data: bytearray, fields: Mapping[int, Any]) -> int:
    """Appends a table and returns its offset. Its index of fields comes first, then large fields, so that all are aligned."""
    sizes = {number: struct.calcsize(value[0]) if isinstance(value, tuple) else 4 for number, value in fields.items()}
    offsets, size = {}, 4
    for number in sorted(fields, key=lambda number: -sizes[number]):
        offsets[number], size = size, size + sizes[number]
    slots = [offsets.get(number, 0) for number in range(max(fields, default=-1) + 1)]
    index = len(data)
    data += struct.pack(f"<{len(slots) + 2}H", 4 + 2 * len(slots), size, *slots)
    data += bytes(-len(data) % 4)
    place = len(data)
    data += struct.pack("<i", place - index) + bytes(size - 4)
    for number, value in fields.items():
        if isinstance(value, tuple):
            struct.pack_into(value[0], data, place + offsets[number], value[1])
        else:
            _refer(data, place + offsets[number], value)
    return place
