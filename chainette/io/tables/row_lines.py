"""Rows as lines of a shard, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from chainette.core.plan import Plan, PlanNode
from chainette.io.tables.column_types import Kind, shape_of
from chainette.io.tables.schemas import Added
from chainette.records import Earlier, Output, Rejection, Row, Spent

__all__ = ["flattened_line", "output_line", "parse_earlier", "parse_output", "rejection_line"]

_Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(_Fields)
_encode = msgspec.json.Encoder().encode


def output_line(node: PlanNode, output: Output, key: bytes | None, added: Added) -> bytes:
    """One output row: `{"row_id": "17", ...model fields..., "_attempts": 1, "_reasoning": null}`."""
    head = b'{"row_id":"%b"' % output.row_id.encode()
    fields = b"," + output.value[1:-1] if len(output.value) > 2 else b""
    tail = b',"_key":%b' % (key or b"null") if added.key else b""
    if node.kind == "step":
        tail += b',"_attempts":%d,"_reasoning":%b' % (output.attempts, _encode(output.reasoning))
        if added.usage:
            tail += b",%b" % _encode(_usage(output.spent))[1:-1]
    return b"%b%b%b}" % (head, fields, tail)


def parse_output(line: bytes) -> Output:
    """The output row that `output_line` wrote, without its cost."""
    fields = _fields.decode(line)
    row_id: str = msgspec.json.decode(fields.pop("row_id"))
    fields.pop("_key", None)
    attempts: int = msgspec.json.decode(fields.pop("_attempts", b"0"))
    reasoning: str | None = msgspec.json.decode(fields.pop("_reasoning", b"null"))
    for name in _usage(Spent()):
        fields.pop(name, None)
    return Output(row_id, _encode(fields), attempts, reasoning)


def _usage(spent: Spent) -> dict[str, float]:
    return {
        "_prompt_tokens": spent.prompt_tokens,
        "_completion_tokens": spent.completion_tokens,
        "_queued": round(spent.queued, 6),
        "_seconds": round(spent.seconds, 6),
    }


def parse_earlier(rejection: Mapping[str, Any]) -> Earlier:
    """The asks of a rejection that `rejection_line` wrote, with their cost if the run records it."""
    return Earlier(rejection["attempts"], Spent(*(rejection.get(name, zero) for name, zero in _usage(Spent()).items())))


def rejection_line(rejection: Rejection, added: Added) -> bytes:
    """One line of `rejected/`."""
    plain: dict[str, Any] = {
        "row_id": rejection.row_id,
        "step_id": rejection.step_id,
        "reason": rejection.reason,
        "message": rejection.message,
        "attempts": rejection.attempts,
        "raw": rejection.raw,
        "line": rejection.line,
    }
    if added.key:
        plain["_key"] = msgspec.Raw(rejection.key or b"null")
    if added.usage:
        plain |= _usage(rejection.spent)
    return _encode(plain)


def flattened_line(plan: Plan, row: Row, added: Added) -> bytes:
    """One finished row across all nodes: `{"row_id": "17", "chain_input.text": ..., "extract.name": ...}`."""
    flat: _Fields = {"row_id": msgspec.Raw(_encode(row.row_id))}
    for column in plan.columns:
        value = row.values.get(column, b"null")
        if value[:1] == b"{" and column in _spread(plan):
            flat |= {f"{column}.{name}": raw for name, raw in _fields.decode(value).items()}
        elif column in _spread(plan):
            flat |= {f"{column}.{name}": msgspec.Raw(b"null") for name in _spread(plan)[column]}
        else:
            flat[column] = msgspec.Raw(value)
    if added.key:
        flat["_key"] = msgspec.Raw(row.key or b"null")
    return _encode(flat)


def _spread(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Column with a model, written as one column per field -> the names of the fields."""
    found: dict[str, tuple[str, ...]] | None = plan.memo.get(("spread", ""))
    if found is None:
        found = plan.memo["spread", ""] = dict(_models(plan))
    return found


def _models(plan: Plan) -> Iterable[tuple[str, tuple[str, ...]]]:
    for column in plan.columns:
        shape = shape_of(plan.types[column])
        if shape.kind is Kind.STRUCT:
            yield column, tuple(name for name, _ in shape.fields)
