"""Converts Arrow columns to Python values that JSON can hold. A value that Python cannot hold does not affect the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["cells"]


def cells(column: pa.Array) -> tuple[list[Any], dict[int, str]]:
    """The values of a column, and the reason for each value that cannot be read (which is None in the list), by its index.

    Nanoseconds are cut to microseconds, maps become dicts, and times in a zone unknown to this machine are in UTC.
    """
    try:
        return _values(column), {}
    except Exception:  # a date after 9999, text that is not UTF-8, or a map with a duplicate key: find the rows
        return _one_by_one(column)


def _one_by_one(column: pa.Array) -> tuple[list[Any], dict[int, str]]:
    values: list[Any] = [None] * len(column)
    problems = {}
    for index in range(len(column)):
        cell = column.slice(index, 1)
        try:
            (values[index],) = _values(cell)
        except Exception as error:
            problems[index] = f"this {column.type} cannot be read{_shown(cell)}: {error}"
    return values, problems


def _shown(cell: pa.Array) -> str:
    import pyarrow as pa

    try:
        return f" ({str(cell.cast(pa.string())[0].as_py()).removeprefix('<').removesuffix('>')[:60]})"
    except Exception:  # most nested types cannot be cast to text
        return ""


def _values(column: pa.Array) -> list[Any]:
    _require_times_of_day(column)
    wanted = _plain_type(column.type)
    values: list[Any] = (column if wanted.equals(column.type) else column.cast(wanted, safe=False)).to_pylist()
    return [_with_dicts(value, wanted) for value in values] if _has_map(wanted) else values


def _require_times_of_day(column: pa.Array) -> None:
    """Raises ValueError if a time is not within a day; pyarrow would silently convert it to another time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_time(column.type):
        day = 86_400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
        found = pc.min_max(column.cast(pa.int32() if pa.types.is_time32(column.type) else pa.int64()))
        if found["min"].is_valid and not 0 <= found["min"].as_py() <= found["max"].as_py() < day:
            raise ValueError("not within a day")


def _plain_type(kind: Any) -> Any:
    """The type to which a column is cast so that Python can hold its values; the type itself if that is not needed."""
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(kind):
        return pa.timestamp("us" if kind.unit == "ns" else kind.unit, _known_zone(kind.tz))
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_map(kind):
        return pa.map_(
            kind.key_field.with_type(_plain_type(kind.key_type)), kind.item_field.with_type(_plain_type(kind.item_type))
        )
    if types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_item(kind), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_plain_item(kind))
    return pa.list_(_plain_item(kind)) if types.is_list(kind) else kind


def _plain_item(kind: Any) -> Any:
    return kind.value_field.with_type(_plain_type(kind.value_type))


def _known_zone(zone: str | None) -> str | None:
    import pyarrow as pa

    try:
        pa.scalar(0, pa.timestamp("us", zone)).as_py()
    except Exception:  # pyarrow raises any error of its own time zone database or Python's
        return "UTC"
    return zone


def _has_map(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_map(kind)) or any(_has_map(kind.field(index).type) for index in range(kind.num_fields))


def _with_dicts(value: Any, kind: Any) -> Any:
    """The value with dicts in place of the lists of pairs that Arrow returns for maps."""
    import pyarrow as pa

    if value is None or not _has_map(kind):
        return value
    if pa.types.is_struct(kind):
        return {field.name: _with_dicts(value[field.name], field.type) for field in kind}
    if not pa.types.is_map(kind):
        return [_with_dicts(item, kind.value_type) for item in value]
    found = {key: _with_dicts(item, kind.item_type) for key, item in value}
    if len(found) < len(value):
        raise ValueError("a map has the same key twice")
    return found
