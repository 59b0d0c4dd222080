"""Columns: the fixed Arrow schema of a step, from the shape of its model's JSON dump (`column_types.py`).

Text, whole numbers (int64), numbers (double), booleans, lists and structs keep their types. Dates,
times and decimals stay the text that pydantic dumped, because an Arrow timestamp would lose their
offset and precision; every tool can cast such text. Values without a fixed shape are JSON text, marked
in the field metadata of the schema. A model that allows unknown fields gets one more column,
`_extra`, which holds them as JSON text. Every column may be null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chainette.core.annotations import NONE, members, type_name
from chainette.errors import DeclarationError
from chainette.io.tables.column_types import JsonKind, Shape, shape_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "EXTRA_COLUMN",
    "MARK",
    "Columns",
    "Convert",
    "arrow_schema",
    "flattened_columns",
    "group_shape",
    "is_json",
    "json_places",
    "name_of_group",
    "require_one_type",
    "step_columns",
]

#: Unknown fields of a model that allows them, as JSON text.
EXTRA_COLUMN = "_extra"

#: Field metadata of a text column that holds JSON.
MARK = {b"chainette": b"json"}

Convert = Callable[[Any], Any]

Columns = tuple[tuple[str, Shape], ...]


def step_columns(model: Any, extra: Sequence[tuple[str, Any]] = ()) -> Columns:
    """The columns of a step's shards: the `extra` columns, then the model's, then the `extra` columns that start with `_`.

    If the model is None, there are only `extra` columns; `Any` stands for an unknown model.
    """
    shape = _row_shape(model) if model is not None else Shape(JsonKind.STRUCT)
    return _with_extra(_columns("", shape), extra, shape.open)


def _row_shape(model: Any) -> Shape:
    """The shape of a row. A row made by a serializer, a RootModel or an unknown model may have any fields."""
    shape = shape_of(model)
    return shape if shape.kind is JsonKind.STRUCT else Shape(JsonKind.STRUCT, open=True)


def flattened_columns(groups: Mapping[str, Any], extra: Sequence[tuple[str, Any]] = ()) -> Columns:
    """The columns of `flattened/`: `<name>.<field>` for a model, one column `<name>` for anything else (list joins, dicts)."""
    shapes = {name: group_shape(annotation) for name, annotation in groups.items()}
    columns = [column for name, shape in shapes.items() for column in _columns(name_of_group(name), shape)]
    return _with_extra(columns, extra, any(shape.open for shape in shapes.values()))


def name_of_group(column: str) -> str:
    """The prefix of a group's columns. A route at the end of the chain has `<route>._way` beside the columns of its values."""
    return column.removesuffix(":")


def group_shape(annotation: Any) -> Shape:
    """The shape of a group of columns. The models of a route's ways share a group that has all their fields."""
    shapes = [shape_of(part) for part in members(annotation) if part is not NONE]
    if len(shapes) < 2:
        return shapes[0] if shapes else shape_of(annotation)
    if any(shape.kind is not JsonKind.STRUCT for shape in shapes):
        return Shape(JsonKind.JSON)
    fields: dict[str, Shape] = {}
    for name, field in (pair for shape in shapes for pair in shape.fields):
        fields[name] = field if fields.get(name, field) == field else Shape(JsonKind.JSON)
    return Shape(JsonKind.STRUCT, fields=tuple(fields.items()), open=any(shape.open for shape in shapes))


def require_one_type(groups: Mapping[str, Any], format: str) -> None:
    """Checks that the ways of every route agree on the types of their fields, unless rows are JSON.

    Raises:
        DeclarationError: a field has two types, which one column cannot hold.
    """
    for group, annotation in groups.items() if format != "jsonl" else ():
        types: dict[str, tuple[Shape, str]] = {}
        for part in members(annotation):
            for name, shape in shape_of(part).fields if len(members(annotation)) > 1 and part is not NONE else ():
                known, model = types.setdefault(name, (shape, type_name(part)))
                if known != shape:
                    column, other = f"{name_of_group(group)}.{name}", type_name(part)
                    raise DeclarationError(
                        f"the column {column} would have two types: {known.kind} from {model}, {shape.kind} from {other}; "
                        "give the fields the same type or different names, or use --format jsonl"
                    )


def _columns(prefix: str, shape: Shape) -> list[tuple[str, Shape]]:
    if shape.kind is not JsonKind.STRUCT:
        return [(prefix or "value", shape)]
    return [(f"{prefix}.{name}" if prefix else name, field) for name, field in shape.fields]


def _with_extra(columns: Sequence[tuple[str, Shape]], extra: Sequence[tuple[str, Any]], is_open: bool) -> Columns:
    added = [(name, shape_of(annotation)) for name, annotation in extra]
    before = [column for column in added if not column[0].startswith("_")]
    after = [column for column in added if column[0].startswith("_")]
    rest = [(EXTRA_COLUMN, Shape(JsonKind.JSON))] if is_open else []
    return (*before, *columns, *rest, *after)


def arrow_schema(columns: Columns) -> pa.Schema:
    """The columns as an Arrow schema."""
    import pyarrow as pa

    return pa.schema([_field(name, shape) for name, shape in columns])


def _field(name: str, shape: Shape) -> pa.Field:
    import pyarrow as pa

    return pa.field(name, _type(shape), metadata=MARK if shape.kind is JsonKind.JSON else None)


def _type(shape: Shape) -> pa.DataType:
    import pyarrow as pa

    match shape.kind:
        case JsonKind.STRING | JsonKind.JSON:
            return pa.string()
        case JsonKind.INTEGER:
            return pa.int64()
        case JsonKind.NUMBER:
            return pa.float64()
        case JsonKind.BOOLEAN:
            return pa.bool_()
        case JsonKind.LIST:
            return pa.list_(_field("element", shape.item or Shape(JsonKind.JSON)))
        case JsonKind.STRUCT:
            return pa.struct([_field(name, field) for name, field in shape.fields])


def is_json(field: pa.Field) -> bool:
    """Whether a text column holds JSON."""
    return (field.metadata or {}).get(b"chainette") == b"json"


def json_places(field: pa.Field, at_json: Convert) -> Convert | None:
    """A function that applies `at_json` to the JSON parts of a value; None if there are none."""
    import pyarrow as pa

    if is_json(field):
        return at_json
    if pa.types.is_list(field.type):
        inner = json_places(field.type.value_field, at_json)
        return _map_list(inner) if inner else None
    if pa.types.is_struct(field.type):
        found = {part.name: walk for part in field.type if (walk := json_places(part, at_json))}
        return _map_struct(found) if found else None
    return None


def _map_list(inner: Convert) -> Convert:
    return lambda values: None if values is None else [inner(value) for value in values]


def _map_struct(parts: Mapping[str, Convert]) -> Convert:
    return lambda value: None if value is None else value | {name: part(value.get(name)) for name, part in parts.items()}
