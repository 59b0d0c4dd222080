"""Converts rows to lines of a shard, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from chainette.core.annotations import members
from chainette.core.candidates import invalid_candidate, is_invalid
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode, Round
from chainette.io.tables.column_types import JsonKind
from chainette.io.tables.columns import group_shape, name_of_group
from chainette.io.tables.schemas import Added
from chainette.records import Earlier, Output, Rejection, Row, Spent, declared_of

__all__ = ["flattened_line", "output_line", "parse_earlier", "parse_output", "rejection_line"]

_Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(_Fields)
_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


def output_line(node: PlanNode, output: Output, key: bytes | None, added: Added) -> bytes:
    """One output row: `{"row_id": "17", ...model fields..., "_attempts": 1, "_reasoning": null}`."""
    head = b'{"row_id":"%b"' % output.row_id.encode()
    fields = b"," + output.value[1:-1] if len(output.value) > 2 else b""
    if node.samples > 1:
        fields = _candidate_fields(node, output.value, fields)
    tail = b',"_key":%b' % (key or b"null") if added.key else b""
    if node.round is not None:
        tail += b',"_round":%b' % round_text(node.round)
    if node.kind == "step":
        tail += b',"_attempts":%d,"_reasoning":%b' % (output.attempts, _encode(output.reasoning))
        if node.told_engine or added.engine:
            tail += b',"_engine":%b' % _encode(node.engine)
        if added.usage:
            tail += b",%b" % _encode(_usage(output.spent))[1:-1]
    if output.reused_from:
        tail += b',"_reused_from":%b' % _encode(output.reused_from)
    return b"%b%b%b}" % (head, fields, tail)


def _candidate_fields(node: PlanNode, value: bytes, fields: bytes) -> bytes:
    """The fields of a candidate; if it is invalid, null for each, and the reason."""
    if not is_invalid(value):
        return fields + b',"_reason":null,"_message":null'
    nulls = b"".join(b",%b:null" % _encode(name) for name, _ in group_shape(node.output_model).fields)
    return nulls + fields


def round_text(around: Round) -> bytes:
    """The JSON of `_round`: a number, or text such as `2~3` in a loop within a loop."""
    return around.path.encode() if around.path.isdigit() else b'"%b"' % around.path.encode()


def parse_output(line: bytes) -> Output:
    """The output row in a line of `output_line`, without its cost."""
    fields = _fields.decode(line)
    row_id: str = msgspec.json.decode(fields.pop("row_id"))
    fields.pop("_key", None)
    fields.pop("_round", None)
    attempts: int = msgspec.json.decode(fields.pop("_attempts", b"0"))
    reasoning: str | None = msgspec.json.decode(fields.pop("_reasoning", b"null"))
    for name in ("_engine", "_reused_from", *_usage(Spent())):
        fields.pop(name, None)
    told, message = fields.pop("_reason", None), fields.pop("_message", None)
    if told is not None and message is not None and bytes(told) != b"null":
        value = invalid_candidate(msgspec.json.decode(told), msgspec.json.decode(message))
        return Output(row_id, value, attempts, reasoning)
    return Output(row_id, _encode(fields), attempts, reasoning)


def _usage(spent: Spent) -> dict[str, float]:
    return {
        "_prompt_tokens": spent.prompt_tokens,
        "_completion_tokens": spent.completion_tokens,
        "_queued": round(spent.queued, 6),
        "_seconds": round(spent.seconds, 6),
    }


def parse_earlier(rejection: Mapping[str, Any], engine: int) -> Earlier:
    """The earlier attempts of a rejected row, with their cost if the run records it. `rejection` is a row of `rejected/`;
    `engine` is the number of the engine that gave the last answer."""
    spent = Spent(*(rejection.get(name, zero) for name, zero in _usage(Spent()).items()))
    return Earlier(rejection["attempts"], spent, engine)


def rejection_line(rejection: Rejection, added: Added, around: int | str | None = None, *, escalates: bool = False) -> bytes:
    """One line of `rejected/`. `around` is the round in which a node of a loop rejected the row; `escalates` says that a
    step of the chain may ask several engines."""
    plain: dict[str, Any] = {
        "row_id": rejection.row_id,
        "step_id": declared_of(rejection.step_id),
        "reason": rejection.reason,
        "message": rejection.message,
        "attempts": rejection.attempts,
        "raw": rejection.raw,
        "line": rejection.line,
    }
    if around is not None:
        plain["_round"] = around
    if added.key:
        plain["_key"] = msgspec.Raw(rejection.key or b"null")
    if escalates:
        plain["_engine"] = rejection.engine or None
    if added.usage:
        plain |= _usage(rejection.spent)
    return _encode(plain)


def flattened_line(plan: Plan, row: Row, added: Added) -> bytes:
    """One finished row with the values of all nodes: `{"row_id": "17", "chain_input.text": ..., "extract.name": ...}`."""
    flat: _Fields = {"row_id": msgspec.Raw(_encode(row.row_id))}
    for group in _groups(plan):
        value = row.values.get(group.column, b"null")
        if group.fields is None:
            flat[group.name] = msgspec.Raw(value)
        else:
            found = _fields.decode(value) if value[:1] == b"{" else group.missing
            if group.united:
                found = group.missing | found
            flat |= {f"{group.name}.{field}": raw for field, raw in found.items()}
    if added.key:
        flat["_key"] = msgspec.Raw(row.key or b"null")
    return _encode(flat)


@dataclass(frozen=True)
class _Group:
    """A name with a value in the rows of `flattened/`, and its columns."""

    #: The name of the value in the row, and the prefix of its columns.
    column: str
    name: str
    #: The fields of a model, each of which is a column; None for anything else.
    fields: tuple[str, ...] | None
    #: Whether it holds the models of several ways, each with its own fields.
    united: bool

    @cached_property
    def missing(self) -> _Fields:
        return dict.fromkeys(self.fields or (), _NULL)


def _groups(plan: Plan) -> tuple[_Group, ...]:
    found: tuple[_Group, ...] | None = plan.memo.get(("groups", ""))
    if found is None:
        found = plan.memo["groups", ""] = tuple(_group(column, plan.types[column]) for column in plan.columns)
    return found


def _group(column: str, annotation: Any) -> _Group:
    shape = group_shape(annotation)
    fields = tuple(name for name, _ in shape.fields) if shape.kind is JsonKind.STRUCT else None
    return _Group(column, name_of_group(column), fields, len(members(annotation)) > 1)
