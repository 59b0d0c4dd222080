"""Functions: called for every row of a unit, or once for all of them, in this process."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import anyio
import anyio.from_thread
from pydantic import BaseModel, ValidationError

from chainette.core.answer_key import key_of_call
from chainette.core.apply import ApplyNode, Cardinality
from chainette.core.batch_apply import BatchApply
from chainette.core.decision import RoundEnd, Undecided, Way
from chainette.core.dump import NotRoundTrip, dump_model, dump_row, explain, short
from chainette.core.history import History, received
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.records import Output, Reason, Row, child_id
from chainette.run.unit_result import UnitResult, excess, raised
from chainette.utils.process_state import put_back
from chainette.utils.user_errors import RAISED, is_stray

__all__ = ["MAX_FAN_OUT", "Away", "call", "take_stored"]

#: Rows that one row may become in one Apply.
MAX_FAN_OUT = 100_000


#: Runs a function with these arguments without holding up the event loop.
Away = Callable[..., Awaitable[Any]]


async def call(result: UnitResult, rows: Sequence[Row], away: Away) -> None:
    """Runs the function for every row: async ones side by side, others one after the other by `away`; a BatchApply at once."""
    plan, node = result.plan, result.node
    apply = node.node
    assert isinstance(apply, ApplyNode)
    rows = await take_stored(result, rows)
    if not rows:
        return
    values = _Values(result, apply, dict(enumerate(rows)))
    result.pull = values.take_in
    if isinstance(apply, BatchApply):
        await _Batch(plan, node, apply.fn, rows, away, values.returned).run(range(len(rows)))
    else:
        await _call_rows(plan, node, apply.fn, rows, away, values.returned)
    values.take(list(values.waiting))
    result.pull = None


async def take_stored(result: UnitResult, rows: Sequence[Row]) -> Sequence[Row]:
    """Finishes the rows whose values an earlier run has; returns the others."""
    result.keys |= {row.row_id: key_of_call(result.plan, result.node, row) for row in rows}
    return await result.take_stored(rows)


async def _call_rows(
    plan: Plan, node: PlanNode, fn: Callable[..., Any], rows: Sequence[Row], away: Away, returned: dict[int, Any]
) -> None:
    if _is_async(fn):
        pending = {index: partial(_call_here, fn, plan, node, row) for index, row in enumerate(rows)}
    else:
        await away(_call_each, fn, [(plan, node, row) for row in rows], returned)
        # a lambda around an async function, say
        pending = {index: partial(_awaited, value) for index, value in returned.items() if _is_pending(value)}
    await _settle(returned, pending)


@dataclass
class _Values:
    """The values a function has returned so far, maybe in another thread, on their way into the result."""

    result: UnitResult
    apply: ApplyNode[Any, Any]
    #: Rows that are not in the result, by place.
    waiting: dict[int, Row]
    returned: dict[int, Any] = field(default_factory=dict)

    def take_in(self) -> None:
        """Takes the values that have been returned so far."""
        self.take([index for index in self.waiting if index in self.returned and not _is_pending(self.returned[index])])

    def take(self, indexes: list[int]) -> None:
        for index in indexes:
            _take(self.result, self.apply, self.waiting.pop(index), self.returned.pop(index))


def _is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine or an async generator; objects with an `async def __call__` count."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return any(kind(called) for kind in kinds for called in (fn, getattr(fn, "__call__", None)))  # noqa: B004


async def _call_here(fn: Callable[..., Any], plan: Plan, node: PlanNode, row: Row) -> Any:
    try:
        return await _awaited(fn(*_arguments(plan, node, row)))
    finally:
        put_back()


def _is_pending(value: Any) -> bool:
    return inspect.isawaitable(value) or isinstance(value, AsyncIterable)


async def _settle(returned: dict[int, Any], pending: Mapping[int, Callable[[], Awaitable[Any]]]) -> None:
    """Awaits pending values side by side, and puts the results in their places."""

    async def settle(index: int, finish: Callable[[], Awaitable[Any]]) -> None:
        try:
            returned[index] = await finish()
        except RAISED as error:
            if not is_stray(error):
                raise
            returned[index] = _Raised(error)

    async with anyio.create_task_group() as group:
        for index, finish in pending.items():
            group.start_soon(settle, index, finish)


async def _awaited(value: Any) -> Any:
    """The result of a coroutine, the items of an async generator, cut just above the limit; others as they are."""
    if inspect.isawaitable(value):
        value = await value
    if not isinstance(value, AsyncIterable):
        return value
    items: list[Any] = []
    iterator = aiter(value)
    try:
        while len(items) <= MAX_FAN_OUT:
            items.append(await anext(iterator))
    except StopAsyncIteration:
        return items
    if isinstance(iterator, AsyncGenerator):
        await iterator.aclose()
    return items


@dataclass(frozen=True)
class _Raised:
    error: BaseException


def _call_each(fn: Callable[..., Any], calls: list[tuple[Plan, PlanNode, Row]], returned: dict[int, Any]) -> None:
    for index, (plan, node, row) in enumerate(calls):
        with suppress(RuntimeError):  # raised in a process for functions, which is ended and never cancelled
            anyio.from_thread.check_cancelled()  # an interrupt waits for one row, not for the whole unit
        try:
            value = fn(*_arguments(plan, node, row))
            returned[index] = _at_most(value) if isinstance(value, Iterator) else value
        except BaseException as error:  # no signal is raised in a thread
            returned[index] = _Raised(error)
        finally:
            put_back()


def _at_most(items: Iterator[Any]) -> list[Any]:
    """The items of a generator, cut just above the limit: it may have no end."""
    return list(islice(items, MAX_FAN_OUT + 1))


@dataclass(frozen=True)
class _Batch:
    """A function over all rows at once."""

    plan: Plan
    node: PlanNode
    fn: Callable[..., Any]
    rows: Sequence[Row]
    away: Away
    returned: dict[int, Any]

    async def run(self, places: Sequence[int]) -> None:
        """Calls the function with these rows; if it fails, with each half of them, so that a bad row fails alone."""
        read, value = self._called(places) if _is_async(self.fn) else await self.away(self._called, places)
        if _is_pending(value):
            settled = {0: value}
            await _settle(settled, {0: partial(_awaited, value)})
            value = settled[0]
        value = self._as_many(value, len(read))
        if not isinstance(value, _Raised):
            self.returned.update(zip(read, value, strict=True))
        elif len(read) == 1:
            self.returned[read[0]] = value
        else:
            for half in (read[: len(read) // 2], read[len(read) // 2 :]):
                await self.run(half)

    def _called(self, places: Sequence[int]) -> tuple[list[int], Any]:
        """(rows that could be read, the function's value for them). Each call reads anew: a function may change its rows."""
        items = {}
        for place in places:
            try:
                items[place] = received(self.node, self.rows[place])
            except RAISED as error:  # a validator of the user's own
                self.returned[place] = _Raised(error)
        try:
            value = self.fn([*items.values()]) if items else []
            return [*items], _at_most(value) if isinstance(value, Iterator) else value
        except BaseException as error:  # no signal is raised in a thread
            return [*items], _Raised(error)
        finally:
            put_back()

    def _as_many(self, value: Any, wanted: int) -> Any:
        """The value, if it is a list of as many rows as the function got."""
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if isinstance(value, _Raised) or (several and len(value) == wanted):
            return value
        found = f"{len(value):,}" if several else short(value)
        return _Raised(
            _Unusable(f"{self.node.id!r} must return as many rows as it gets: it got {wanted:,} and returned {found}")
        )


def _arguments(plan: Plan, node: PlanNode, row: Row) -> tuple[Any, ...]:
    assert isinstance(node.node, ApplyNode)
    item = received(node, row)
    return (item, History(plan, node, row)) if node.node.wants_history else (item,)


def _take(result: UnitResult, apply: ApplyNode[Any, Any], row: Row, value: Any) -> None:
    """Turns the value the function returned for one row into outputs, a drop or a rejection."""
    try:
        if isinstance(value, _Raised):
            if isinstance(value.error, Undecided):
                raise _Unusable(str(value.error), value.error.reason)
            raise _Unusable(_told(value.error))
        outputs = _outputs(apply, row, value, result.keys[row.row_id])
    except _Unusable as error:
        result.reject(row, error.reason, str(error))
        return
    if large := excess(*outputs):
        result.reject(row, Reason.TOO_LARGE, large)
        return
    for output in outputs:
        result.keep(row, output)
    if not outputs:
        result.drop(row)


def _told(error: BaseException) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    words = raised(error)
    if isinstance(error, ValueError) and str(error).startswith("signal only works in main thread"):
        return (
            f"{words}; functions of a local run are called in threads, which cannot set signals: use `--workers 1`, with which "
            "they have processes of their own, or bound their time in another way"
        )
    return words


class _Unusable(Exception):
    """A function's value cannot become rows."""

    def __init__(self, message: str, reason: Reason = Reason.APPLY_ERROR) -> None:
        super().__init__(message)
        self.reason = reason


def _outputs(apply: ApplyNode[Any, Any], row: Row, value: Any, key: bytes) -> list[Output]:
    if apply.cardinality is not Cardinality.MANY:
        if value is None and apply.cardinality is Cardinality.OPTIONAL:
            return []
        return [Output(row.row_id, _dump(apply, value), key=key)]
    if not apply.annotated and (value is None or isinstance(value, BaseModel)):
        value = [] if value is None else [value]
    if isinstance(value, BaseModel | dict | str | bytes) or not hasattr(value, "__iter__"):
        raise _Unusable(f"{apply.id!r} must return a list of rows, it returned {short(value)}")
    try:
        items = _at_most(iter(value))
    except RAISED as error:  # a generator of the user's own
        raise _Unusable(raised(error)) from error
    if len(items) > MAX_FAN_OUT:
        raise _Unusable(f"{apply.id!r} made more than {MAX_FAN_OUT:,} rows of one, which is the limit")
    return [Output(child_id(row.row_id, index), _dump(apply, item), key=key) for index, item in enumerate(items)]


def _dump(apply: ApplyNode[Any, Any], item: Any) -> bytes:
    model = apply.output_model
    try:
        if isinstance(item, dict) and model is not None:
            item = model.model_validate(item)
        if not isinstance(item, model or BaseModel):
            wanted = model.__name__ if model is not None else "a pydantic model"
            raise _Unusable(f"{apply.id!r} returned {short(item)}, not {wanted}")
        if model is not None and type(item) is not model:  # a subclass: its own fields have no column
            item = model.model_validate_json(dump_model(item))
        return dump_model(item) if isinstance(item, Way | RoundEnd) else dump_row(item)
    except ValidationError as error:
        raise _Unusable(explain(error)) from error
    except (NotRoundTrip, _Unusable) as error:
        raise _Unusable(str(error)) from error
    except RAISED as error:  # a validator of the user's own
        raise _Unusable(raised(error)) from error
