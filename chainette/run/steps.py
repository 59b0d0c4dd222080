"""Steps: rows become questions, each answer is judged as it arrives, and a bad one is asked again at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup
from pydantic import ValidationError

from chainette.core.answer_key import step_keys
from chainette.core.dump import explain
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.core.prompt import Prompter, prompter
from chainette.core.step import Step
from chainette.core.streaming import Asked, Unusable
from chainette.engine.base import UNSENT, Completion, Done, Engine, Finish, Request
from chainette.engine.budget import Amounts
from chainette.engine.concurrent_requests import ask_all
from chainette.errors import EngineRefused, EngineUnavailable, RequestsFailed, TemplateError
from chainette.hooks import Hook, Laps, Stage
from chainette.records import Message, Output, Reason, Row, Usage
from chainette.run.ask import FRESH, Ask
from chainette.run.blame import Evidence
from chainette.run.budget_reservation import BudgetReservation
from chainette.run.read_answer import BadAnswer, read_answer, readable
from chainette.run.reask import next_corrections
from chainette.run.shared_answers import Questions
from chainette.run.unit_result import RAW_LIMIT, UnitResult, raised, streamed, writable
from chainette.run.unit_sharing import UnitSharing
from chainette.utils.plurals import counted
from chainette.utils.user_errors import RAISED

__all__ = ["Asking", "row_seed"]


@dataclass
class Asking:
    """Asks, judges, asks again: the life of a unit's rows in a step."""

    plan: Plan
    node: PlanNode
    engine: Engine
    seed: int
    hook: Hook
    laps: Laps
    result: UnitResult
    evidence: Evidence
    #: The run's budget; None if it has none.
    reservation: BudgetReservation | None = None
    #: The questions that rows share; None: every row asks for itself.
    questions: InitVar[Questions | None] = None
    prompts: Prompter = field(init=False)
    sharing: UnitSharing | None = field(init=False, default=None)
    #: Rows to ask again as soon as the event loop turns: answers that arrive together are asked again together.
    _again: list[Ask] = field(default_factory=list)
    _rounds: TaskGroup = field(init=False)
    _failure: EngineUnavailable | None = None
    #: Row -> the amounts reserved for its request, until that ends.
    _reserved: dict[str, Amounts] = field(default_factory=dict)
    #: Row -> the completion of its request that got no answer.
    _failed: dict[str, Completion] = field(default_factory=dict)
    #: Refused before the step had any answer.
    _refused: list[tuple[Ask, Request, Completion]] = field(default_factory=list)
    #: Of a hook, or of our own code.
    _error: BaseException | None = None

    def __post_init__(self, questions: Questions | None) -> None:
        if questions is not None:
            self.sharing = UnitSharing(questions, self.step, self.result, self.put_off)

    async def run(self, rows: Sequence[Row]) -> None:
        """Puts every row into the result.

        Raises:
            RequestsFailed: some rows got no answer; the result has the others.
            EngineUnavailable: the engine does not answer; the result has the rows that were answered before.
        """
        asks = await self.needed(rows)
        try:
            async with anyio.create_task_group() as self._rounds:
                if self.sharing is None:
                    await self.begin(asks)
                else:
                    await self.sharing.ask_once(asks, self.begin, self._rounds)
        except BaseExceptionGroup as errors:
            raise self._error or errors.exceptions[0] from None
        finally:
            if self.sharing is not None:
                self.sharing.leave()
            if self.reservation is not None:
                self.reservation.abandon(len(self._reserved))
                self._reserved = {}
        if not (self._error or self._failure):
            await self.settle()
        if failed := self._error or self._failure or self.failure():
            raise failed

    async def requests(self, rows: Sequence[Row]) -> list[Request]:
        """The first requests of the rows that are in need of one, unsent; the other rows are in the result."""
        return self.requests_of(await self.needed(rows))

    async def needed(self, rows: Sequence[Row]) -> list[Ask]:
        """The questions to ask, without those whose answer an earlier run has."""
        self.prompts = prompter(self.plan, self.node)
        asks = self.first_asks(rows)
        unknown = {row.row_id for row in await self.result.take_stored([ask.row for ask in asks])}
        return [ask for ask in asks if ask.row.row_id in unknown]

    def put_off(self, ask: Ask, trouble: Completion | EngineUnavailable) -> None:
        """The row that asked in place of this one got no answer."""
        if isinstance(trouble, Completion):
            self._failed[ask.row.row_id] = trouble
        else:
            self._failure = self._failure or trouble

    # -- asking

    async def begin(self, asks: Sequence[Ask]) -> None:
        """Asks for all rows; a few go first if nobody knows yet whether the engine takes the step."""
        if not asks:
            return
        first = self.evidence.ahead_of(asks, self.engine)
        if len(first) == len(asks):
            await self.ask(asks)
            return
        self._rounds.start_soon(self.go_ahead, first)
        await self.evidence.opened()
        await self.ask(asks[len(first) :])

    async def go_ahead(self, asks: Sequence[Ask]) -> None:
        try:
            await self.ask(asks)
            await self.settle()
        finally:
            if asks:
                self.evidence.open()

    async def settle(self) -> None:
        """Judges refusals and denials that came before the step had any answer: a probe tells whether they concern the rows.

        Raises:
            EngineUnavailable: it does not serve the step; then nothing is known about the rows.
        """
        refused, self._refused = self._refused, []
        denied = any(completion.is_refusal for completion in self._failed.values())
        if (refused or denied) and not self.evidence.is_accepted:
            await self.evidence.probe(self.engine, self.node.engine)
        for ask, request, completion in refused:
            self.take_in(ask, request, completion)

    async def ask(self, asks: Sequence[Ask]) -> None:
        """Asks for rows, in as many calls of the engine as the run's budget makes of them.

        Raises:
            BudgetExhausted: some of them do not fit it.
        """
        if self.reservation is None:
            await self.send(asks)
            return
        longest, seconds = self.step.sampling.max_tokens, self.engine.time.per_request
        needs = [self.reservation.need(ask.messages, longest, seconds) for ask in asks]
        while needs:
            granted = await self.reservation.take(needs)
            now, asks = asks[:granted], asks[granted:]
            self._reserved |= zip((ask.row.row_id for ask in now), needs, strict=False)
            if needs := needs[granted:]:
                self._rounds.start_soon(self.send, now)
            else:
                await self.send(now)

    async def send(self, asks: Sequence[Ask]) -> None:
        """One call of the engine; each answer is judged when it arrives."""
        if not asks:
            return
        requests = self.requests_of(asks)
        self.laps.lap(Stage.RENDER)
        unanswered = dict(enumerate(asks))
        clock, time = self.evidence.lane.clock, self.engine.time
        mark, unsent = time.begin(clock(), len(requests)), list[str]()

        def done(index: int, completion: Completion) -> None:
            if completion is UNSENT:
                unsent.append(asks[index].row.row_id)
            elif index in unanswered:
                self.hook.on_generated(self.node.engine, 1)
                used = completion.usage.busy_for(time.end(clock(), mark))
                answer = msgspec.structs.replace(completion, usage=used)
                need = self._reserved.pop(asks[index].row.row_id, None)
                if self.reservation is not None and need is not None:
                    self.reservation.settle(need, answer.usage)
                self.take_in(unanswered.pop(index), requests[index], answer)

        self.hook.on_generating(self.node.engine, len(requests))
        failed = {ask.row.row_id for ask in asks if ask.before.tries}
        self.evidence.asked((ask.row.row_id for ask in asks), failed)
        try:
            for index, completion in enumerate(await self.answers(asks, requests, done)):
                done(index, completion)
            if unanswered:  # else the rows would wait for ever
                given = len(asks) - len(unanswered)
                raise RuntimeError(
                    f"engine {self.node.engine!r} gave {counted(given, 'answer')} to {counted(len(asks), 'request')}"
                )
        except EngineUnavailable as error:
            if isinstance(error, EngineRefused) and not self.evidence.is_accepted:
                self.evidence.refuse(error)
                self.result.cancelled += Usage(requests=len(unanswered) - len(unsent) - 1)  # all but the one that was refused
                raise
            self._failure = self._failure or error
            if self.sharing is not None:
                for ask in unanswered.values():
                    self.sharing.put_off(ask, error)
            if self.reservation is not None:
                self.reservation.forgo([self._reserved.pop(ask.row.row_id) for ask in unanswered.values()])
        except anyio.get_cancelled_exc_class():
            self.result.cancelled += Usage(requests=len(unanswered) - len(unsent))
            raise
        finally:
            if self.reservation is not None:
                self.reservation.forgo([self._reserved.pop(row_id) for row_id in unsent])
            self.result.cancelled += Usage(busy=sum(time.end(clock(), mark) for _ in unanswered))
            self.evidence.cancelled(ask.row.row_id for ask in unanswered.values())
            self.hook.on_generated(self.node.engine, len(unanswered))

    async def answers(self, asks: Sequence[Ask], requests: Sequence[Request], done: Done) -> list[Completion]:
        if not self.hook.streams:
            return await self.engine.generate(requests, done)
        asked = [Asked(self.node.id, ask.row.row_id, ask.number, ask.messages) for ask in asks]
        answers = [streamed(self.engine, *pair, self.hook) for pair in zip(requests, asked, strict=True)]
        return await ask_all(answers, done, lambda: self.evidence.is_accepted)

    def take_in(self, ask: Ask, request: Request, completion: Completion) -> None:
        """Judges an answer. Called by the engine, which must not mistake an error in here for one of its own."""
        try:
            self.laps.lap(Stage.GENERATE)
            completion = readable(completion)
            if completion.finish is Finish.FAILED:
                self.fail(ask, request, completion)
                return
            if completion.finish is Finish.ERROR and not self.evidence.is_accepted:
                self.evidence.refused(request)
                self._refused.append((ask, request, completion))
                if self.sharing is not None:
                    self.sharing.settle(ask, BadAnswer(Reason.ENGINE_ERROR, completion.error))
                return
            self.evidence.answered(ask.row.row_id, completion)
            again = self.judge(ask, completion)  # first of all, so that a hook that fails costs no answer
            self.hook.on_answers(self.node.id, [request], [completion])
            self.laps.lap(Stage.VALIDATE)
        except BaseException as error:
            self._error = self._error or error
            self._rounds.cancel_scope.cancel()
            return
        if again is not None:
            self._again.append(again)
            if len(self._again) == 1:
                self._rounds.start_soon(self.ask_again)

    def fail(self, ask: Ask, request: Request, completion: Completion) -> None:
        """A request got no answer: its row is rejected if it is at fault itself, and else waits for another try."""
        row_id = ask.row.row_id
        counts = self.evidence.failed(row_id, request, completion)
        failures = ask.before.failures + counts
        usage = ask.before.usage + completion.usage
        if self.evidence.convicts(row_id, failures):
            raw = completion.text or None
            self.result.reject(ask.row, Reason.ENGINE_ERROR, completion.error, ask.number, raw, usage)
            if self.sharing is not None:
                self.sharing.settle(ask, BadAnswer(Reason.ENGINE_ERROR, completion.error))
        else:
            tries, by = ask.before.tries + 1, completion.by
            is_billed = completion.usage.prompt_tokens or completion.usage.completion_tokens
            spent = usage if is_billed else ask.before.usage
            before = msgspec.structs.replace(ask.before, failures=failures, usage=spent, tries=tries, by=by)
            self.result.unfinished[row_id] = before
            self._failed[row_id] = completion
            if self.sharing is not None:
                self.sharing.put_off(ask, completion)

    def failure(self) -> RequestsFailed | None:
        """The error for the rows that failed, if there are any."""
        if not self._failed:
            return None
        first = next(iter(self._failed.values()))
        denied = all(completion.is_refusal for completion in self._failed.values())
        return RequestsFailed(f"engine {self.node.engine!r}: {first.error}", self._failed.keys(), denied=denied)

    async def ask_again(self) -> None:
        asks, self._again = self._again, []
        self.laps.lap(Stage.GENERATE)
        await self.ask(asks)

    @property
    def step(self) -> Step[Any, Any]:
        assert isinstance(self.node.node, Step)
        return self.node.node

    def first_asks(self, rows: Sequence[Row]) -> list[Ask]:
        """The questions to ask, with their keys in the result: none for rows that no prompt can be made for."""
        asks, known = [], dict[str, tuple[Message, ...]]()
        for row in rows:
            try:
                before = self.result.unfinished.get(row.row_id, FRESH)
                asks.append(Ask(row, self.question(row, known), row.asks + before.asks + 1, before))
            except TemplateError as error:
                self.result.reject(row, Reason.TEMPLATE_ERROR, str(error))
            except ValidationError as error:
                self.result.reject(row, Reason.TEMPLATE_ERROR, f"the input does not fit {error.title}: {explain(error)}")
            except RAISED as error:  # validators of the input models are the user's code
                self.result.reject(row, Reason.TEMPLATE_ERROR, raised(error))
        keys = step_keys(self.plan, self.node, self.seed, self.engine.identity).of_all([ask.question for ask in asks])
        self.result.keys |= {ask.row.row_id: key for ask, key in zip(asks, keys, strict=True)}
        return asks

    def question(self, row: Row, known: dict[str, tuple[Message, ...]]) -> tuple[Message, ...]:
        """The messages of a row's first ask; candidates share those of the row they are about."""
        if self.node.samples == 1:
            return self.prompts.messages(row)
        about, _ = self.node.asked_about(row.row_id)
        if about not in known:
            known[about] = self.prompts.messages(msgspec.structs.replace(row, row_id=about))
        return known[about]

    def requests_of(self, asks: Sequence[Ask]) -> list[Request]:
        node, step, schema = self.node, self.step, self.prompts.schema
        name, sampling, model = step.id, step.sampling, step.output_model
        seed = self.seed if sampling.seed is None else sampling.seed
        rounds, found = node.id.partition("#")[2], []
        for ask in asks:
            row_id, number = ask.row.row_id, ask.number
            row, sample = (row_id, 0) if node.samples == 1 else node.asked_about(row_id)
            if node.dedupe:
                row = self.result.keys[row_id].hex()
            own = row_seed(seed, name, row, number, rounds, node.rank, sample=sample)
            label = f"{node.id}/{row_id}/{number}"
            messages = ask.messages if ask.before.corrections else ask.question
            found.append(Request(messages, sampling, own, schema, name, label, model, ask.before.by))
        return found

    def judge(self, ask: Ask, completion: Completion) -> Ask | None:
        """Finishes the row, or returns its next ask."""
        usage = completion.usage if ask.before is FRESH else ask.before.usage + completion.usage
        verdict = read_answer(self.step, completion, ask, usage, self.result.keys[ask.row.row_id])
        if isinstance(verdict, Output):
            self.result.keep(ask.row, verdict, usage)
            if self.sharing is not None:
                self.sharing.settle(ask, verdict)
            return None
        corrections = next_corrections(self.step, ask, completion, verdict, self.engine.context)
        if corrections is None:
            self.result.reject(ask.row, verdict.reason, verdict.message, ask.number, completion.text, usage)
            if self.sharing is not None:
                self.sharing.settle(ask, verdict, completion.text[:RAW_LIMIT])
            return None
        again = ask.again(corrections, usage)
        self.result.unfinished[ask.row.row_id] = again.before
        if self.hook.streams:
            self.hook.on_stream(Unusable(self.node.id, ask.row.row_id, ask.number, verdict.reason, writable(verdict.message)))
        return again


def row_seed(run_seed: int, step_id: str, row_id: str, ask: int, rounds: str = "", engine: int = 0, *, sample: int = 0) -> int:
    """The sampling seed of one ask, 0 <= seed < 2**31: a hash, so that scheduling cannot change it.

    `rounds` is the round of a loop, if it is not the first, `engine` the number of an escalated engine, and `sample` that of
    a candidate.
    """
    text = f"{run_seed}\0{step_id}\0{row_id}\0{ask}"
    text += (f"\0{rounds}" if rounds else "") + (f"\0engine {engine}" if engine else "")
    text += f"\0sample {sample}" if sample else ""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) & 0x7FFFFFFF
