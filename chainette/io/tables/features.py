"""Converts columns to the plain data that `datasets` writes as YAML, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainette.io.tables.column_types import JsonKind, Shape
from chainette.io.tables.columns import EXTRA_COLUMN, Columns

__all__ = ["columns_of", "dataset_features", "differ_in_case", "is_loose", "is_open"]

_DTYPES = {
    JsonKind.STRING: "string",
    JsonKind.INTEGER: "int64",
    JsonKind.NUMBER: "float64",
    JsonKind.BOOLEAN: "bool",
    JsonKind.JSON: "json",
}
_KINDS = {dtype: kind for kind, dtype in _DTYPES.items()}


def dataset_features(columns: Columns) -> list[dict[str, Any]]:
    """The columns as entries of `dataset_info`."""
    return [_feature(name, shape) for name, shape in columns]


def _feature(name: str, shape: Shape) -> dict[str, Any]:
    return {"name": name, **_described(shape)}


def _described(shape: Shape) -> dict[str, Any]:
    match shape.kind:
        case JsonKind.LIST:
            item = _described(shape.item or Shape(JsonKind.JSON))
            return {"list": item.get("dtype") or item.get("struct") or item}
        case JsonKind.STRUCT:
            return {"struct": [_feature(name, field) for name, field in shape.fields]}
        case kind:
            return {"dtype": _DTYPES[kind]}


def columns_of(features: Sequence[dict[str, Any]]) -> Columns:
    """The columns described by `dataset_features`."""
    return tuple((feature["name"], _shape(feature)) for feature in features)


def _shape(described: Any) -> Shape:
    match described:
        case str(dtype) | {"dtype": dtype}:
            return Shape(_KINDS[dtype])
        case {"struct": fields} | list(fields):
            return Shape(JsonKind.STRUCT, fields=columns_of(fields))
        case {"list": item}:
            return Shape(JsonKind.LIST, item=_shape(item))
    raise ValueError(f"no feature: {described!r}")


def is_open(columns: Columns) -> bool:
    """Whether rows may have fields that have no column."""
    return any(name == EXTRA_COLUMN for name, _ in columns)


def is_loose(columns: Columns) -> bool:
    """Whether some value has no fixed shape: in JSON it may be anything, in an Arrow column it is text."""
    return any(_holds_json(shape) for _, shape in columns)


def _holds_json(shape: Shape) -> bool:
    inner = [field for _, field in shape.fields] + ([shape.item] if shape.item else [])
    return shape.kind is JsonKind.JSON or any(map(_holds_json, inner))


def differ_in_case(columns: Columns) -> bool:
    """Whether two names of one object, at any depth, differ only in case."""
    return len({name.lower() for name, _ in columns}) < len(columns) or any(_clash_in(shape) for _, shape in columns)


def _clash_in(shape: Shape) -> bool:
    return differ_in_case(shape.fields) or (shape.item is not None and _clash_in(shape.item))
