"""The one form of a value outside a node: its JSON dump (docs/protocol.md, 20).

A dump that does not validate back to its value is refused here, before it can reach a queue, a shard or another
node. So are integers beyond 64 bits, which no Parquet column and few JSON readers hold, and NaN and the
infinities, which JSON does not have, unless the model writes them as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from math import isnan
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError

from chainette.utils.json_schema import json_schema_of
from chainette.utils.user_errors import RAISED, told

__all__ = ["NotRoundTrip", "dump_model", "dump_row", "explain", "schema_nodes", "short"]

_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_SHOWN_ERRORS = 3
_SHOWN_CHARACTERS = 60


class NotRoundTrip(ValueError):
    """A value does not survive its own dump; the message names the first field that differs."""


def dump_model(instance: BaseModel) -> bytes:
    """`model_dump_json(by_alias=True, round_trip=True)`, checked to validate back to an equal model.

    Raises:
        NotRoundTrip: it does not.
    """
    model = type(instance)
    try:
        dump: bytes = model.__pydantic_serializer__.to_json(
            instance, by_alias=True, round_trip=True, warnings="error" if _declares_dumps(model) else False
        )
        back = model.__pydantic_validator__.validate_json(dump)
    except ValidationError as error:
        raise NotRoundTrip(f"the dump of {model.__name__} does not validate back: {explain(error)}") from error
    except RAISED as error:  # validators and serializers are the user's code
        raise NotRoundTrip(f"{model.__name__} cannot be dumped as JSON: {' '.join(told(error).split())}") from error
    if back != instance:
        _require_same(instance, back, dump)
    if b"Infinity" in dump or b"NaN" in dump:
        _require_json(dump, model)
    if _LONG_NUMBER.search(dump) and _has_integers(model):
        _require_64_bits(dump)
    return dump


def dump_row(instance: BaseModel) -> bytes:
    """`dump_model` of a node's output: a JSON object without names that shards use themselves.

    Raises:
        NotRoundTrip: its dump is no such object, or does not validate back to it.
    """
    dump = dump_model(instance)
    if not dump.startswith(b"{"):
        raise NotRoundTrip(f"{type(instance).__name__} is written as {short(dump.decode())}; a row must be a JSON object")
    if b'"row_id"' in dump or b'"_' in dump:
        own = [name for name in msgspec.json.decode(dump) if name == "row_id" or name.startswith("_")]
        if own:
            raise NotRoundTrip(f"the field {own[0]!r} is a column that every output row has already")
    return dump


def explain(error: ValidationError) -> str:
    """Pydantic's findings in one line: `price: Input should be a valid number, got 'abc'; ...`, the first three."""
    findings = error.errors(include_url=False, include_context=False)
    shown = "; ".join(_finding(dict(finding)) for finding in findings[:_SHOWN_ERRORS])
    hidden = len(findings) - _SHOWN_ERRORS
    return f"{shown}; and {hidden} more" if hidden > 0 else shown


def _finding(finding: dict[str, Any]) -> str:
    where = ".".join(map(str, finding["loc"]))
    message = f"{where}: {finding['msg']}" if where else str(finding["msg"])
    return message if finding["type"] in ("missing", "json_invalid") else f"{message}, got {short(finding['input'])}"


def short(value: object) -> str:
    """A short form of a value for a message."""
    try:
        text = repr(value)
    except RAISED as error:  # a user's __repr__ must not hide the fault
        text = f"<{type(value).__name__}: {told(error)}>"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _require_same(instance: BaseModel, back: BaseModel, dump: bytes) -> None:
    difference = _difference(instance, back, type(instance).__name__)
    if difference:
        raise NotRoundTrip(difference)
    again = back.__pydantic_serializer__.to_json(back, by_alias=True, round_trip=True, warnings=False)
    # a set may come back in another order, with the same bytes
    if again != dump and sorted(again) != sorted(dump):
        raise NotRoundTrip(f"{type(instance).__name__} dumps differently once it was read back")


def _difference(one: Any, two: Any, path: str) -> str:
    """The first place where two values differ; "" if they are equal or cannot be compared."""
    if type(one) is type(two):
        if one == two or "__eq__" not in _own_methods(type(one)):
            return ""
        pairs = _parts(one, two)
        if isinstance(one, (float, Decimal)) and isnan(one) and isnan(two):
            return ""
        if pairs is not None:
            found = (_difference(left, right, f"{path}.{name}") for name, left, right in pairs)
            return next(filter(None, found), "")
    elif one == two and not isinstance(one, BaseModel):
        return ""
    return f"{path}: {short(one)} comes back from JSON as {short(two)}"


def _own_methods(kind: type) -> set[str]:
    return {name for base in kind.__mro__[:-1] for name in vars(base)}


def _parts(one: Any, two: Any) -> list[tuple[object, Any, Any]] | None:
    """The parts of two values of one type, in pairs; None if their parts do not correspond."""
    if isinstance(one, BaseModel):
        left, right = ({**value.__dict__, **(value.__pydantic_extra__ or {})} for value in (one, two))
        names = [*type(one).model_fields, *(one.__pydantic_extra__ or {})]
        return [(name, left.get(name), right.get(name)) for name in names]
    if isinstance(one, Mapping) and one.keys() == two.keys():
        return [(key, one[key], two[key]) for key in one]
    if isinstance(one, (list, tuple)) and len(one) == len(two):
        return [(index, *pair) for index, pair in enumerate(zip(one, two, strict=True))]
    return None


def _require_json(dump: bytes, model: type[BaseModel]) -> None:
    try:
        msgspec.json.decode(dump)
    except msgspec.DecodeError as error:
        raise NotRoundTrip(f"{model.__name__} is written with Infinity or NaN, which are not JSON") from error


def schema_nodes(model: type[BaseModel]) -> Iterator[Mapping[str, Any]]:
    """Every part of a model's pydantic-core schema."""
    pending: list[Any] = [model.__pydantic_core_schema__]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            yield part
            pending += [value for key, value in part.items() if key != "metadata"]
        elif isinstance(part, (list, tuple)):
            pending += part


@lru_cache(maxsize=256)
def _declares_dumps(model: type[BaseModel]) -> bool:
    """Whether a serializer of the model declares its type, from which columns are made."""
    return any("return_schema" in node for node in schema_nodes(model) if str(node.get("type", "")).startswith("function-"))


@lru_cache(maxsize=256)
def _has_integers(model: type[BaseModel]) -> bool:
    try:
        return b'"integer"' in msgspec.json.encode(json_schema_of(model))
    except Exception:  # a model without a JSON Schema may hold anything
        return True


def _require_64_bits(dump: bytes) -> None:
    pending = [msgspec.json.decode(dump)]
    while pending:
        value = pending.pop()
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise NotRoundTrip(f"the integer {short(value)} does not fit 64 bits; use a str field for such numbers")
        pending.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
