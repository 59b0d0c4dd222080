"""Checks messages of a run before a byte of them is written: ids, JSON, numbers, keys (docs/protocol.md, 22).

Answers may be false, but the directory must not become unreadable, and every row must come from the input.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import msgspec

from chainette.core.answer_key import KEY_BYTES
from chainette.core.apply import Cardinality
from chainette.core.candidates import PASSED, invalid_candidate, is_invalid, reason_of
from chainette.core.decision import RoundEnd, decision_fault
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.core.targets import ToWays
from chainette.fleet.protocol.messages import Admission, Result, RootRecord
from chainette.records import CHAIN_INPUT, Output, Reason, Rejection, Row, Spent, Usage, child_id, parent_of, record_of
from chainette.utils.plurals import counted

__all__ = ["admission_fault", "ended_rows", "result_fault", "root_fault"]

#: The most characters in the name of an earlier run's row.
_LONGEST_ORIGIN = 1000

_decode_whole = msgspec.json.Decoder(dict[str, object]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_decode_value = msgspec.json.Decoder(msgspec.Raw).decode

_REASONS = frozenset(Reason)

#: The largest count and sum of seconds: exact in a double, and far beyond any run.
_MOST = 2**53

#: The digits of the longest number that Python reads.
_LONGEST_NUMBER = 4300

#: The most characters of a rejection's message, and of the answer or the line it quotes (64 KiB, and a mark).
_LONGEST_MESSAGE, _LONGEST_RAW = 1 << 20, 1 << 17


def result_fault(plan: Plan, rows: Mapping[str, Row], result: Result) -> str:
    """The reason why a result cannot come from these rows; "" if it can."""
    node = plan.stations.get(result.node)
    if node is None:
        empty = not (result.outputs or result.rejected or result.dropped or result.escalated)
        return "" if empty and result.node in plan.forks else f"{result.node[:80]!r} is not a step whose rows are written"
    return _id_fault(node, result) or next(_row_faults(node, rows, result), "")


def ended_rows(node: PlanNode, result: Result) -> set[str]:
    """The ids of the rows that went in."""
    outputs = (output.row_id for output in result.outputs)
    parents = map(parent_of, outputs) if node.cardinality is Cardinality.MANY else outputs
    return {*parents, *(rejection.row_id for rejection in result.rejected), *result.dropped, *result.escalated}


def _id_fault(node: PlanNode, result: Result) -> str:
    """Each row that went in ends once, and its outputs are named after it."""
    ids = [output.row_id for output in result.outputs]
    sources = ids
    if node.cardinality is Cardinality.MANY:
        children = Counter(map(parent_of, ids))
        if {*ids} != {child_id(parent, index) for parent, count in children.items() for index in range(count)}:
            return "rows do not descend from those that went in"
        sources = [*children]
    ended = [*sources, *(rejection.row_id for rejection in result.rejected), *result.dropped, *result.escalated]
    if len(ended) != result.taken or len({*ended}) != len(ended):
        return f"{counted(result.taken, 'row')} went in, and {len(ended)} came out"
    return ""


def _row_faults(node: PlanNode, rows: Mapping[str, Row], result: Result) -> Iterator[str]:
    if not _is_sane(result.usage):
        yield "its usage is not a count"
    if not 0 <= result.shared <= (len(result.outputs) + len(result.rejected) if node.dedupe else 0):
        yield f"{result.shared} of its rows took the answers of others"
    for output in result.outputs:
        if fault := _output_fault(node, output):
            yield fault
    for rejection in result.rejected:
        if fault := _rejection_fault(node.id, _REASONS, rejection) or _origin_fault(rejection, rows):
            yield fault
        if rejection.engine != node.told_engine:
            yield f"a rejection by engine {rejection.engine[:80]!r}"
    for earlier in result.escalated.values():
        if not node.escalate or earlier.engine != node.rank + 1:
            yield "a row goes on to an engine that the step does not name next"
        if not (0 <= earlier.asks <= _MOST and _is_sane(earlier.spent)):
            yield "a row's attempts are not a count"


def _output_fault(node: PlanNode, output: Output) -> str:
    if not (0 <= output.attempts <= _MOST and _is_sane(output.spent)):
        return "its attempts are not a count"
    if len(output.key) not in (0, KEY_BYTES) or len(output.reused_from) > _LONGEST_ORIGIN:
        return "a row's key or origin is malformed"
    if node.samples > 1 and is_invalid(output.value):
        return _candidate_fault(output.value)
    if node.passes and output.value != PASSED:
        return "a row that passes as it is has a value"
    if isinstance(node.next, ToWays):
        ways = [way for way, _ in node.next.ways]
        return decision_fault(output.value, ways, _round_of(node)) or _repetition(output.value)
    return _object_fault(output.value)


def _candidate_fault(value: bytes) -> str:
    """The reason why a value is not an invalid candidate; "" if it is one."""
    try:
        reason, message = reason_of(value)
    except msgspec.MsgspecError as error:
        return f"a candidate is neither valid nor invalid ({error})"
    if reason not in _REASONS or len(message) > _LONGEST_MESSAGE or value != invalid_candidate(reason, message):
        return f"an invalid candidate for {reason[:80]!r}"
    return ""


def _round_of(node: PlanNode) -> int | None:
    """The round a node ends; None if it is no loop's decision."""
    return node.round.number if node.round is not None and node.output_model is RoundEnd else None


def _object_fault(value: bytes) -> str:
    """The reason why a value is not one JSON object on one line, without fields named like the shard's own columns; "" if it
    is."""
    fields: Mapping[str, object] | None = _written_alike(value)
    if fields is None:
        try:
            value.decode()
            fields = raw = _decode_object(value)
        except (ValueError, RecursionError) as error:
            return f"a row is no JSON object ({error})"
        if b"\n" in value or value[:1] != b"{" or value[-1:] != b"}" or (not fields and value != b"{}"):
            return "a row is not JSON as a model writes it"
        if _may_repeat_a_name(value, raw) and (fault := _repetition(value)):
            return fault
    if b'"row_id"' in value or b'"_' in value or b"\\" in value:
        own = next((name for name in fields if name == "row_id" or name.startswith("_")), "")
        return f"a row has the field {own!r}, which is a column of the shard" if own else ""
    return ""


def _written_alike(value: bytes) -> Mapping[str, object] | None:
    """The fields of an object that encodes to the same bytes again, as most do: then no name occurs twice, and every number can
    be read."""
    try:
        value.decode()
        fields = _decode_whole(value)
        return fields if _encode(fields) == value else None
    except (ValueError, RecursionError):
        return None


def _may_repeat_a_name(value: bytes, fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether an object is longer than its fields, or has objects or long numbers within it."""
    names = sum(len(_encode(name)) for name in fields)
    shortest = names + sum(map(len, map(bytes, fields.values()))) + 2 * len(fields) + 1
    return len(value) > min(max(shortest, 2), _LONGEST_NUMBER) or value.count(b"{") > 1


def _repetition(value: bytes) -> str:
    """The fault of an object with two fields of one name, which most readers refuse; "" if it has none."""
    try:
        json.loads(value, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        return f"a row is not a JSON object that every tool reads ({str(error)[:200]})"
    return ""


def _distinct(pairs: list[tuple[str, object]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice")


def _rejection_fault(node: str, reasons: Collection[str], rejection: Rejection) -> str:
    if rejection.step_id != node or rejection.reason not in reasons:
        return f"a rejection at {rejection.step_id[:80]!r} for {rejection.reason[:80]!r}"
    if len(rejection.message) > _LONGEST_MESSAGE or len(rejection.raw or "") > _LONGEST_RAW:
        return "a rejection is too long"
    if not (0 <= rejection.attempts <= _MOST and 0 <= rejection.line <= _MOST and _is_sane(rejection.spent)):
        return "a rejection's attempts are not a count"
    return ""


def _origin_fault(rejection: Rejection, rows: Mapping[str, Row]) -> str:
    """A rejection repeats the line and the key of the record that it comes from."""
    row = rows.get(record_of(rejection.row_id))
    if row is None or (rejection.line, rejection.key) != (row.line, row.key):
        return "a rejection has the key or the line of another row"
    return ""


def _is_sane(cost: Usage | Spent) -> bool:
    return all([0 <= value <= _MOST for value in msgspec.structs.astuple(cost)])  # noqa: C419 - half the time


# -- admissions


def admission_fault(ids: range, rows: Mapping[str, Row], known: Collection[str], admission: Admission) -> str:
    """The reason why these cannot be the bad records of a root whose records have these `ids`; `known` are those in the log."""
    bad = [rejection.row_id for rejection in admission.rejected]
    for rejection in admission.rejected:
        if fault := _rejection_fault(CHAIN_INPUT, (Reason.INVALID_INPUT,), rejection):
            return fault
    if any(rejection.key is not None or rejection.attempts for rejection in admission.rejected):
        return "a bad record has a key or attempts"
    if {*bad, *rows, *known} != {*map(str, ids)} or len(bad) + len(rows) + len(known) != len(ids):
        return "its bad records are not those that the root lacks"
    return ""


def root_fault(ids: range, most: int, record: RootRecord) -> str:
    """The reason why these cannot be the rows of a root whose records have these `ids`; the input has at most `most` bytes."""
    if not 0 < record.records <= len(ids):
        return f"it has {counted(record.records, 'record')}; there are {len(ids)}"
    names = [row.row_id for row in record.rows]
    if names != sorted({*names} & {*map(str, ids[: record.records])}, key=int):
        return "its rows have other ids than its records"
    if record.read is not None and not (0 <= record.read.upto <= most and len(record.read.digest) == 64):
        return "the input was not read to where it says"
    return next(filter(None, map(_record_fault, record.rows)), "")


def _record_fault(row: Row) -> str:
    if not 0 <= row.line <= _MOST or row.values.keys() != {CHAIN_INPUT}:
        return "a row is not a record of the input"
    return _value_fault(row.values[CHAIN_INPUT]) or _value_fault(row.key or b"null")


def _value_fault(value: bytes) -> str:
    """The reason why a value is not JSON on one line; "" if it is."""
    try:
        value.decode()
        _decode_value(value)
    except (ValueError, RecursionError) as error:
        return f"a value is no JSON ({error})"
    return "a value has several lines" if b"\n" in value else ""
