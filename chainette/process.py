"""process(): the only executor of nodes. A unit goes in; what became of each of its rows comes out.

It knows nothing of queues, files or other units: local runs and the fleet call it alike.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
from pydantic import BaseModel, ValidationError

from chainette.core.apply import ApplyNode, Cardinality
from chainette.core.dump import NotRoundTrip, dump_model, dump_row, explain
from chainette.core.flow import advance, join_rows, row_of
from chainette.core.history import History, received
from chainette.core.plan import Fork, NodeKind, Plan, PlanNode
from chainette.core.prompt import Prompter, prompter
from chainette.core.step import Step
from chainette.engine.base import Completion, Engine, Finish, Request
from chainette.errors import TemplateError
from chainette.hooks import Hook, Laps, Stage
from chainette.records import Message, Outcome, Output, Reason, Rejection, Row, Unit, Usage, owner_of
from chainette.streaming import Asked, Joined, Unusable
from chainette.tally import Tally, excess, streamed, writable
from chainette.utils.together import together

__all__ = ["MAX_FAN_OUT", "concluded", "poisoned", "process", "row_seed", "too_large"]

#: Rows that one row may become in one Apply.
MAX_FAN_OUT = 100_000

_QUIET = Hook()


async def process(plan: Plan, unit: Unit, engine: Engine | None, *, seed: int = 0, hook: Hook = _QUIET) -> Outcome:
    """Runs a unit through its node.

    Every row of the unit is in the outcome once: as outputs, as a rejection, or as dropped.

    Raises:
        EngineUnavailable: the engine does not answer; nothing is known about any row.
    """
    laps = Laps()
    outcome = await _outcome(plan, unit, engine, seed, hook, laps)
    laps.tell(hook, unit.node)
    return outcome


async def _outcome(plan: Plan, unit: Unit, engine: Engine | None, seed: int, hook: Hook, laps: Laps) -> Outcome:
    if unit.node in plan.forks:
        joined = _join(plan, plan.forks[unit.node], unit, hook)
        laps.lap(Stage.GENERATE)
        return joined
    node = plan.nodes[unit.node]
    if node.kind is NodeKind.STEP:
        assert engine is not None
        result = await _Asking(plan, node, engine, seed, hook, laps).run(unit.rows)
    else:
        result = await _call(plan, node, unit.rows, hook)
        laps.lap(Stage.GENERATE)
    rejected = [rejection.row_id for rejection in result.rejected]
    effects = advance(plan, unit, [row_of(node, row, output) for row, output in result.outputs], node.next, rejected)
    return Outcome([output for _, output in result.outputs], result.rejected, result.dropped, result.usage, effects)


def concluded(plan: Plan, unit: Unit, outputs: list[Output], rejected: list[Rejection], dropped: list[str]) -> Outcome:
    """The outcome of a unit whose function ran elsewhere: with what follows from what its rows came to."""
    node = plan.nodes[unit.node]
    rows = {row.row_id: row for row in unit.rows}
    made = [row_of(node, rows[str(owner_of(output.row_id, rows))], output) for output in outputs]
    effects = advance(plan, unit, made, node.next, [rejection.row_id for rejection in rejected])
    return Outcome(outputs, rejected, dropped, Usage(), effects)


def _join(plan: Plan, fork: Fork, unit: Unit, hook: Hook) -> Outcome:
    joined, lost = join_rows(fork, unit.rows, unit.partials, unit.stopped)
    if hook.streams:
        aliases = tuple(join.alias for join in fork.joins)
        for row in joined:
            hook.on_stream(Joined(aliases, row))
    return Outcome([], [], [], Usage(), advance(plan, unit, joined, fork.after, lost))


def poisoned(plan: Plan, unit: Unit) -> Outcome:
    """The outcome of a unit of one row that killed every worker that took it."""
    return _without(plan, unit, Reason.POISON, "the processes that took this row died, also when they took nothing else")


def too_large(plan: Plan, unit: Unit, message: str) -> Outcome:
    """The outcome of a unit of one row whose outcome no queue takes."""
    return _without(plan, unit, Reason.TOO_LARGE, message)


def _without(plan: Plan, unit: Unit, reason: Reason, message: str) -> Outcome:
    [row] = unit.rows
    rejection = Rejection(row.row_id, unit.node, reason, message, 0, None, row.line, row.key)
    return Outcome([], [rejection], [], Usage(), advance(plan, unit, [], plan.nodes[unit.node].next, [row.row_id]))


def row_seed(run_seed: int, step_id: str, row_id: str, ask: int) -> int:
    """The sampling seed of one ask, 0 <= seed < 2**31: a hash, so that scheduling cannot change it."""
    text = f"{run_seed}\0{step_id}\0{row_id}\0{ask}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) & 0x7FFFFFFF


# -- steps


@dataclass(frozen=True)
class _Ask:
    """One row's question, and how often it was asked."""

    row: Row
    messages: tuple[Message, ...]
    number: int = 1

    def again(self, *appended: Message) -> _Ask:
        return _Ask(self.row, self.messages + appended, self.number + 1)


@dataclass(frozen=True)
class _Bad:
    """An answer that is not an output."""

    reason: Reason
    message: str
    #: Whether another ask may do better.
    final: bool = False


@dataclass
class _Asking:
    """Asks, judges, asks again: the life of one unit of a step."""

    plan: Plan
    node: PlanNode
    engine: Engine
    seed: int
    hook: Hook
    laps: Laps
    result: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.result = Tally(self.node, self.hook)

    async def run(self, rows: Sequence[Row]) -> Tally:
        prompts = prompter(self.plan, self.node)
        asks = self.first_asks(prompts, rows)
        while asks:
            requests = [self.request(prompts, ask) for ask in asks]
            self.laps.lap(Stage.RENDER)
            completions = await self.watched(asks, requests)
            self.laps.lap(Stage.GENERATE)
            self.hook.on_answers(self.node.id, requests, completions)
            asks = [again for ask, completion in zip(asks, completions, strict=True) if (again := self.judge(ask, completion))]
            self.laps.lap(Stage.VALIDATE)
        place = {row.row_id: index for index, row in enumerate(rows)}
        self.result.outputs.sort(key=lambda pair: place[pair[0].row_id])
        return self.result

    async def watched(self, asks: Sequence[_Ask], requests: Sequence[Request]) -> list[Completion]:
        self.hook.on_generating(self.node.engine, len(requests))
        try:
            return [_readable(completion) for completion in await self.answers(asks, requests)]
        finally:
            self.hook.on_generated(self.node.engine, len(requests))

    async def answers(self, asks: Sequence[_Ask], requests: Sequence[Request]) -> list[Completion]:
        if not self.hook.streams:
            return await self.engine.generate(requests)
        asked = [Asked(self.node.id, ask.row.row_id, ask.number, ask.messages) for ask in asks]
        return await together([streamed(self.engine, *pair, self.hook) for pair in zip(requests, asked, strict=True)])

    @property
    def step(self) -> Step[Any, Any]:
        assert isinstance(self.node.node, Step)
        return self.node.node

    def first_asks(self, prompts: Prompter, rows: Sequence[Row]) -> list[_Ask]:
        asks = []
        for row in rows:
            try:
                asks.append(_Ask(row, prompts.messages(row)))
            except TemplateError as error:
                self.result.reject(row, Reason.TEMPLATE_ERROR, str(error))
            except ValidationError as error:
                self.result.reject(row, Reason.TEMPLATE_ERROR, f"the input does not fit {error.title}: {explain(error)}")
            except Exception as error:  # validators of the input models are the user's code
                self.result.reject(row, Reason.TEMPLATE_ERROR, f"{type(error).__name__}: {error}{_where(error)}")
        return asks

    def request(self, prompts: Prompter, ask: _Ask) -> Request:
        sampling = self.step.sampling
        base = self.seed if sampling.seed is None else sampling.seed
        return Request(
            messages=ask.messages,
            sampling=sampling,
            seed=row_seed(base, self.node.id, ask.row.row_id, ask.number),
            schema=prompts.schema,
            schema_name=self.node.id,
            label=f"{self.node.id}/{ask.row.row_id}/{ask.number}",
        )

    def judge(self, ask: _Ask, completion: Completion) -> _Ask | None:
        """Takes an answer in, or gives the next ask."""
        self.result.usage += completion.usage
        verdict = self.read(completion, ask)
        if isinstance(verdict, Output):
            self.result.keep(ask.row, verdict)
            return None
        if verdict.final or ask.number >= self.step.max_attempts:
            self.result.reject(ask.row, verdict.reason, verdict.message, ask.number, completion.text)
            return None
        if self.hook.streams:
            self.hook.on_stream(Unusable(self.node.id, ask.row.row_id, ask.number, verdict.reason, writable(verdict.message)))
        if verdict.reason is Reason.TRUNCATED:
            return ask.again()
        return ask.again(
            Message("assistant", completion.text),
            Message("user", f"That answer cannot be used: {verdict.message}\nAnswer again, with the JSON object only."),
        )

    def read(self, completion: Completion, ask: _Ask) -> Output | _Bad:
        match completion.finish:
            case Finish.REFUSED:
                return _Bad(Reason.REFUSED, completion.error or "the model declined to answer", final=True)
            case Finish.TOO_LONG:
                return _Bad(Reason.PROMPT_TOO_LONG, completion.error, final=True)
            case Finish.ERROR:
                return _Bad(Reason.ENGINE_ERROR, completion.error, final=True)
            case Finish.LENGTH:
                limit = self.step.sampling.max_tokens
                return _Bad(
                    Reason.TRUNCATED,
                    completion.error
                    or f"the answer was cut at max_tokens={limit}; raise SamplingParams.max_tokens or ask for less",
                )
            case Finish.STOP:
                reasoning, text = _split_reasoning(completion)
                try:
                    value = dump_row(self.step.output_model.model_validate_json(text))
                except ValidationError as error:
                    return _bad_answer(error)
                except NotRoundTrip as error:
                    return _Bad(Reason.INVALID_OUTPUT, str(error))
                except Exception as error:  # a validator of the user's own
                    return _Bad(Reason.INVALID_OUTPUT, f"{type(error).__name__}: {error}")
                output = Output(ask.row.row_id, value, ask.number, reasoning)
                large = excess([output])
                return _Bad(Reason.TOO_LARGE, large, final=True) if large else output


def _readable(completion: Completion) -> Completion:
    """The answer as text that can be written: models cut by their tokenizer end in half a character."""
    text, error = writable(completion.text), writable(completion.error)
    reasoning = None if completion.reasoning is None else writable(completion.reasoning)
    return msgspec.structs.replace(completion, text=text, error=error, reasoning=reasoning)


def _split_reasoning(completion: Completion) -> tuple[str | None, str]:
    """(reasoning, answer): strips `<think>` blocks and a fence around the JSON."""
    reasoning, text = completion.reasoning, completion.text.strip()
    if text.startswith("<think>") and "</think>" in text:
        thought, _, text = text.removeprefix("<think>").partition("</think>")
        reasoning, text = reasoning or thought.strip(), text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removeprefix("```json").strip("`").strip()
    return reasoning, text


def _bad_answer(error: ValidationError) -> _Bad:
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return _Bad(Reason.NOT_JSON, f"not JSON: {problems[0]['msg']}")
    return _Bad(Reason.INVALID_OUTPUT, explain(error))


# -- Python functions


async def _call(plan: Plan, node: PlanNode, rows: Sequence[Row], hook: Hook) -> Tally:
    """Runs the function for every row: coroutines side by side, others in one thread."""
    apply = node.node
    assert isinstance(apply, ApplyNode)
    returned: list[Any] = [None] * len(rows)
    if _is_async(apply.fn):

        async def call(index: int) -> None:
            try:
                returned[index] = await apply.fn(*_arguments(plan, node, rows[index]))
            except (Exception, SystemExit) as error:
                returned[index] = _Raised(error)

        async with anyio.create_task_group() as group:
            for index in range(len(rows)):
                group.start_soon(call, index)
    else:
        returned = await anyio.to_thread.run_sync(_call_each, apply.fn, [(plan, node, row) for row in rows])
    result = Tally(node, hook)
    for row, value in zip(rows, returned, strict=True):
        _take(result, apply, row, value)
    return result


def _is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; objects with an `async def __call__` count."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


@dataclass(frozen=True)
class _Raised:
    error: BaseException


def _call_each(fn: Callable[..., Any], calls: list[tuple[Plan, PlanNode, Row]]) -> list[Any]:
    returned: list[Any] = []
    for plan, node, row in calls:
        anyio.from_thread.check_cancelled()  # an interrupt waits for one row, not for the whole unit
        try:
            value = fn(*_arguments(plan, node, row))
            returned.append(_at_most(value) if isinstance(value, Iterator) else value)
        except (Exception, SystemExit) as error:
            returned.append(_Raised(error))
    return returned


def _at_most(items: Iterator[Any]) -> list[Any]:
    """The items of a generator, cut just above the limit: it may have no end."""
    return list(islice(items, MAX_FAN_OUT + 1))


def _arguments(plan: Plan, node: PlanNode, row: Row) -> tuple[Any, ...]:
    assert isinstance(node.node, ApplyNode)
    item = received(node, row)
    return (item, History(plan, node, row)) if node.node.wants_history else (item,)


def _take(result: Tally, apply: ApplyNode[Any, Any], row: Row, value: Any) -> None:
    """What the function returned for one row, as outputs, a drop or a rejection."""
    try:
        if isinstance(value, _Raised):
            raise _Unusable(f"{type(value.error).__name__}: {value.error}{_where(value.error)}")
        outputs = _outputs(apply, row, value)
    except _Unusable as error:
        result.reject(row, Reason.APPLY_ERROR, str(error))
        return
    if large := excess(outputs):
        result.reject(row, Reason.TOO_LARGE, large)
        return
    for output in outputs:
        result.keep(row, output)
    if not outputs:
        result.drop(row)


class _Unusable(Exception):
    """What a function gave cannot become rows."""


def _outputs(apply: ApplyNode[Any, Any], row: Row, value: Any) -> list[Output]:
    if apply.cardinality is not Cardinality.MANY:
        if value is None and apply.cardinality is Cardinality.OPTIONAL:
            return []
        return [Output(row.row_id, _dump(apply, value))]
    if not apply.annotated and (value is None or isinstance(value, BaseModel)):
        value = [] if value is None else [value]
    if isinstance(value, BaseModel | dict | str | bytes) or not hasattr(value, "__iter__"):
        raise _Unusable(f"{apply.id!r} must return a list of rows, it returned {_short(value)}")
    try:
        items = _at_most(iter(value))
    except Exception as error:  # a generator of the user's own
        raise _Unusable(f"{type(error).__name__}: {error}{_where(error)}") from error
    if len(items) > MAX_FAN_OUT:
        raise _Unusable(f"{apply.id!r} made more than {MAX_FAN_OUT:,} rows of one, which is the limit")
    return [Output(f"{row.row_id}.{index}", _dump(apply, item)) for index, item in enumerate(items)]


def _dump(apply: ApplyNode[Any, Any], item: Any) -> bytes:
    model = apply.output_model
    try:
        if isinstance(item, dict) and model is not None:
            item = model.model_validate(item)
        if not isinstance(item, model or BaseModel):
            wanted = model.__name__ if model is not None else "a pydantic model"
            raise _Unusable(f"{apply.id!r} returned {_short(item)}, not {wanted}")
        if model is not None and type(item) is not model:  # a subclass: its own fields have no column
            item = model.model_validate_json(dump_model(item))
        return dump_row(item)
    except ValidationError as error:
        raise _Unusable(explain(error)) from error
    except NotRoundTrip as error:
        raise _Unusable(str(error)) from error


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text[:80]}..." if len(text) > 80 else text


def _where(error: BaseException) -> str:
    """The user's line that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
