"""Steps: a unit's rows become questions, answers are judged, and bad ones asked again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from pydantic import ValidationError

from chainette.core.dump import NotRoundTrip, dump_row, explain
from chainette.core.plan import Plan, PlanNode
from chainette.core.prompt import Prompter, prompter
from chainette.core.step import Step
from chainette.core.streaming import Asked, Unusable
from chainette.engine.base import Completion, Engine, Finish, Request
from chainette.errors import TemplateError
from chainette.hooks import Hook, Laps, Stage
from chainette.records import Message, Output, Reason, Row, Spent
from chainette.run.unit_result import Tally, excess, raised, streamed, writable
from chainette.utils.foreign import RAISED, told
from chainette.utils.together import together

__all__ = ["Asking", "row_seed"]


def row_seed(run_seed: int, step_id: str, row_id: str, ask: int) -> int:
    """The sampling seed of one ask, 0 <= seed < 2**31: a hash, so that scheduling cannot change it."""
    text = f"{run_seed}\0{step_id}\0{row_id}\0{ask}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) & 0x7FFFFFFF


@dataclass(frozen=True)
class _Ask:
    """One row's question, and how often it was asked."""

    row: Row
    messages: tuple[Message, ...]
    number: int
    #: What the answers so far took.
    spent: Spent

    @classmethod
    def first(cls, row: Row, messages: tuple[Message, ...]) -> _Ask:
        """The first ask for a row, or the next one if `--retry` opened it again."""
        return cls(row, messages, row.asks + 1, row.earlier.spent if row.earlier else Spent())

    @property
    def attempt(self) -> int:
        """The number of this ask among those since the row was opened."""
        return self.number - self.row.asks

    @property
    def corrects(self) -> bool:
        """Whether the messages end in a bad answer and a complaint about it."""
        return self.attempt > 1 and len(self.messages) > 2 and self.messages[-2].role == "assistant"

    def answered(self, spent: Spent) -> _Ask:
        return replace(self, spent=self.spent + spent)

    def again(self, messages: tuple[Message, ...]) -> _Ask:
        return replace(self, messages=messages, number=self.number + 1)


@dataclass(frozen=True)
class _Bad:
    """An answer that is not an output."""

    reason: Reason
    message: str


@dataclass
class Asking:
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
                asks.append(_Ask.first(row, prompts.messages(row)))
            except TemplateError as error:
                self.result.reject(row, Reason.TEMPLATE_ERROR, str(error))
            except ValidationError as error:
                self.result.reject(row, Reason.TEMPLATE_ERROR, f"the input does not fit {error.title}: {explain(error)}")
            except RAISED as error:  # validators of the input models are the user's code
                self.result.reject(row, Reason.TEMPLATE_ERROR, raised(error))
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
        ask = ask.answered(completion.usage.spent)
        verdict = self.read(completion, ask)
        if isinstance(verdict, Output):
            self.result.keep(ask.row, verdict)
            return None
        messages = self.next_messages(ask, completion, verdict) if ask.attempt < self.step.max_attempts else None
        if messages is None:
            self.result.reject(ask.row, verdict.reason, verdict.message, ask.number, completion.text, ask.spent)
            return None
        if self.hook.streams:
            self.hook.on_stream(Unusable(self.node.id, ask.row.row_id, ask.number, verdict.reason, writable(verdict.message)))
        return ask.again(messages)

    def next_messages(self, ask: _Ask, completion: Completion, verdict: _Bad) -> tuple[Message, ...] | None:
        """The messages of the next ask; None if asking again cannot give another answer."""
        match verdict.reason:
            case Reason.NOT_JSON | Reason.INVALID_OUTPUT:
                complaint = f"That answer cannot be used: {verdict.message}\nAnswer again, with the JSON object only."
                return _corrected(ask.messages, self.kept(completion, complaint), complaint)
            case Reason.TRUNCATED:  # only the seed differs, which does nothing at temperature 0
                return ask.messages if self.step.sampling.temperature > 0 else None
            case Reason.PROMPT_TOO_LONG if ask.corrects:
                *messages, _, complained = ask.messages
                return _corrected(tuple(messages), "", complained.content)
            case _:
                return None

    def kept(self, bad: Completion, complaint: str) -> str:
        """A bad answer, cut to the room that the context leaves beside the prompt and the next answer."""
        if self.engine.context is None or not bad.usage.completion_tokens:
            return bad.text
        per_token = len(bad.text) / bad.usage.completion_tokens
        tokens = self.engine.context - bad.usage.prompt_tokens - self.step.sampling.max_tokens
        return bad.text[: max(0, int(tokens * per_token) - len(complaint))]

    def read(self, completion: Completion, ask: _Ask) -> Output | _Bad:
        match completion.finish:
            case Finish.REFUSED:
                return _Bad(Reason.REFUSED, completion.error or "the model declined to answer")
            case Finish.TOO_LONG:
                return _Bad(Reason.PROMPT_TOO_LONG, completion.error)
            case Finish.ERROR:
                return _Bad(Reason.ENGINE_ERROR, completion.error)
            case Finish.LENGTH:
                whole = self.read_whole(completion, ask)
                return whole if isinstance(whole, Output) else self.truncated(completion)
            case Finish.STOP:
                return self.read_whole(completion, ask)

    def read_whole(self, completion: Completion, ask: _Ask) -> Output | _Bad:
        reasoning, text = _split_reasoning(completion)
        try:
            value = dump_row(self.step.output_model.model_validate_json(text))
        except ValidationError as error:
            return _bad_answer(error)
        except NotRoundTrip as error:
            return _Bad(Reason.INVALID_OUTPUT, str(error))
        except RAISED as error:  # a validator of the user's own
            return _Bad(Reason.INVALID_OUTPUT, told(error))
        output = Output(ask.row.row_id, value, ask.number, reasoning, ask.spent)
        large = excess([output])
        return _Bad(Reason.TOO_LARGE, large) if large else output

    def truncated(self, completion: Completion) -> _Bad:
        limit = self.step.sampling.max_tokens
        cut = completion.error or f"the answer was cut at max_tokens={limit}; raise SamplingParams.max_tokens"
        bound = f"Field(max_length=...) on the strings and lists of {self.step.output_model.__name__}"
        return _Bad(Reason.TRUNCATED, f"{cut}, or bound the answer: {bound}")


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


def _corrected(messages: tuple[Message, ...], bad: str, complaint: str) -> tuple[Message, ...]:
    """The messages with a bad answer and a complaint about it.

    Without the answer, the complaint joins the last user message: many chat templates refuse two in a row.
    """
    if bad.strip():
        return *messages, Message("assistant", bad), Message("user", complaint)
    *before, last = messages
    if last.role != "user":
        return *messages, Message("user", complaint)
    return *before, Message("user", f"{last.content}\n\n{complaint}")


def _bad_answer(error: ValidationError) -> _Bad:
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return _Bad(Reason.NOT_JSON, f"not JSON: {problems[0]['msg']}")
    return _Bad(Reason.INVALID_OUTPUT, explain(error))
