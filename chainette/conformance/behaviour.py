"""Cases about the behaviour of an engine: order, streams, cuts, seeds, cancellation, kinds of prompts, opening and closing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model

from chainette.conformance.case import BrokenPromise, Case, NotApplicable, Subject, Thing, answered, question, require
from chainette.engine.base import Completion, Delta, Finish, Request
from chainette.errors import EngineUnavailable
from chainette.records import Message
from chainette.utils.plurals import counted

__all__ = ["BEHAVIOUR"]


class _Story(BaseModel):
    text: str = Field(min_length=60, max_length=400)


def _only(word: str) -> type[BaseModel]:
    """A model that allows only this word, so that an answer can be matched to its request."""
    kind: Any = Literal.__getitem__(word)
    return create_model("Only", x=(kind, ...))


def _word_in(completion: Completion) -> Any:
    found = json.loads(completion.text)
    return found.get("x") if isinstance(found, dict) else found


async def _answers_in_order(subject: Subject) -> None:
    words = [f"word{number}" for number in range(2 * min(subject.engine.capacity, 8) + 1)]
    found = await answered(subject, *(question(f"Say {word}.", _only(word)) for word in words))
    require([_word_in(completion) for completion in found] == words, "the answers are not in the order of their requests")


async def _answers_calls_side_by_side(subject: Subject) -> None:
    words = ["left", "middle", "right"]
    found = await asyncio.gather(*(answered(subject, question("Say it.", _only(word))) for word in words))
    require([_word_in(answers[0]) for answers in found] == words, "concurrent calls got each other's answers")


async def _tells_each_answer_once(subject: Subject) -> None:
    requests = [question(f"Thing {number}", seed=number) for number in range(3)]
    told: dict[int, Completion] = {}
    threads = set()

    def done(index: int, completion: Completion) -> None:
        require(index not in told, f"done was called twice for request {index}")
        told[index] = completion
        threads.add(threading.get_ident())

    found = await subject.engine.generate(requests, done)
    require(threads <= {threading.get_ident()}, "done was called outside the event loop")
    require(
        all(found[index] == completion for index, completion in told.items()),
        "the answers passed to done differ from those returned",
    )


async def _answers_no_request(subject: Subject) -> None:
    require(await subject.engine.generate([]) == [], "a call without requests returned answers")


async def _counts_usage(subject: Subject) -> None:
    [completion] = await answered(subject, question("A red ball"))
    usage = completion.usage
    require(usage.requests == 1, f"the usage of one request counts {counted(usage.requests, 'request')}")
    require(usage.prompt_tokens > 0 and usage.completion_tokens > 0, f"tokens are not counted: {usage}")


async def _cuts_at_max_tokens(subject: Subject) -> None:
    [completion] = await answered(subject, question("Tell a long story", _Story, max_tokens=4))
    if completion.finish is Finish.STOP and subject.engine.deterministic and completion.usage.completion_tokens > 4:
        raise NotApplicable("it only draws complete answers")
    require(completion.finish is Finish.LENGTH, f"an answer of 4 tokens ended with {completion.finish}")
    tokens = completion.usage.completion_tokens
    require(tokens <= 4, f"the answer has {counted(tokens, 'token')}; 4 were allowed")


async def _leaves_neighbours_of_a_cut_answer_whole(subject: Subject) -> None:
    _, whole = await answered(subject, question("A long story", _Story, max_tokens=4), question("A red ball"))
    require(whole.finish is Finish.STOP and Thing.model_validate_json(whole.text), "the answer beside it was cut too")


async def _streams_what_it_answers(subject: Subject) -> None:
    pieces: list[Delta] = []
    completion = await subject.engine.stream(question("A red ball"), pieces.append)
    require(completion.finish is Finish.STOP, f"the stream ended with {completion.finish}: {completion.error}")
    text, reasoning = "".join(piece.text for piece in pieces), "".join(piece.reasoning for piece in pieces)
    require(text == completion.text, f"the streamed pieces are {text[:80]!r}, but the answer is {completion.text[:80]!r}")
    require(reasoning == (completion.reasoning or ""), "the streamed pieces of the reasoning differ from the whole")


async def _streams_in_pieces(subject: Subject) -> None:
    pieces: list[Delta] = []
    await subject.engine.stream(question("Tell a story", _Story), pieces.append)
    require(len(pieces) > 2, f"a long answer came in {counted(len(pieces), 'piece')}")


async def _streams_side_by_side(subject: Subject) -> None:
    async def one(word: str) -> tuple[Completion, str]:
        pieces: list[str] = []
        completion = await subject.engine.stream(question("Say it.", _only(word)), lambda piece: pieces.append(piece.text))
        return completion, "".join(pieces)

    for word, (completion, text) in zip(("up", "down"), await asyncio.gather(one("up"), one("down")), strict=True):
        require(text == completion.text and _word_in(completion) == word, "two streams were mixed")


async def _streams_a_cut_answer(subject: Subject) -> None:
    pieces: list[str] = []
    completion = await subject.engine.stream(
        question("A long story", _Story, max_tokens=4), lambda piece: pieces.append(piece.text)
    )
    require("".join(pieces) == completion.text, "the streamed pieces of a cut answer differ from the answer")


async def _keeps_thoughts_out_of_the_answer(subject: Subject) -> None:
    [completion] = await answered(subject, question("Think step by step, then answer: a red ball"))
    require("<think>" not in completion.text, f"the answer contains reasoning: {completion.text[:80]!r}")
    require(Thing.model_validate_json(completion.text), "no answer follows the reasoning")


def _require_deterministic(subject: Subject) -> None:
    if not subject.engine.deterministic:
        raise NotApplicable("it does not promise equal answers to equal requests")


async def _repeats_itself(subject: Subject) -> None:
    _require_deterministic(subject)
    request = question("A red ball", seed=11, temperature=1.0)
    [first] = await answered(subject, request)
    others = [question(f"Thing {number}", seed=number, temperature=1.0) for number in range(4)]
    *_, again = await answered(subject, *others, request)
    require(first.text == again.text, f"{first.text[:60]!r} alone, {again.text[:60]!r} among others")


async def _repeats_itself_in_a_stream(subject: Subject) -> None:
    _require_deterministic(subject)
    request = question("A red ball", seed=5, temperature=1.0)
    [whole] = await answered(subject, request)
    streamed = await subject.engine.stream(request, lambda _piece: None)
    require(streamed.text == whole.text, f"{streamed.text[:60]!r} streamed, {whole.text[:60]!r} as a whole")


async def _follows_the_seed(subject: Subject) -> None:
    found = await answered(subject, *(question("A story", _Story, seed, temperature=1.5, max_tokens=48) for seed in range(5)))
    require(len({completion.text for completion in found}) > 1, "five seeds gave the same answer at temperature 1.5")


async def _takes_every_sampling_parameter(subject: Subject) -> None:
    await answered(
        subject,
        question(
            "A red ball", temperature=0.7, top_p=0.9, top_k=20, presence_penalty=0.1, frequency_penalty=0.1, stop=("\n\n",)
        ),
    )


async def _ends_when_cancelled(subject: Subject) -> None:
    task = asyncio.ensure_future(subject.engine.generate([question("A very long story", _Story, max_tokens=400)]))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await answered(subject, question("A red ball"))


async def _ends_a_stream_when_cancelled(subject: Subject) -> None:
    pieces: list[Delta] = []
    task = asyncio.ensure_future(subject.engine.stream(question("A long story", _Story, max_tokens=400), pieces.append))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    count = len(pieces)
    await answered(subject, question("A red ball"))
    require(len(pieces) == count, "pieces came after the stream was cancelled")


async def _spares_the_others_when_one_is_cancelled(subject: Subject) -> None:
    staying = asyncio.ensure_future(answered(subject, question("Say it.", _only("stay"))))
    leaving = asyncio.ensure_future(subject.engine.generate([question("A long story", _Story)]))
    await asyncio.sleep(0.02)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    require(_word_in((await staying)[0]) == "stay", "cancelling one request affected another")


def _endless(subject: Subject) -> Request:
    context = subject.engine.context or int(subject.config.extra.get("n_ctx", 0)) or _LONG
    return question("word " * (2 * context))


#: Half the words of a prompt that is too long for any context in tests, if the engine does not report its context.
_LONG = 20_000


async def _says_that_a_prompt_is_too_long(subject: Subject) -> None:
    [completion] = await subject.engine.generate([_endless(subject)])
    if completion.finish is Finish.STOP:
        raise NotApplicable("its context has no limit")
    require(
        completion.finish is Finish.TOO_LONG, f"a prompt beyond the context ended with {completion.finish}: {completion.error}"
    )
    require(completion.error, "the error does not say how long it was")


async def _answers_the_neighbours_of_a_failure(subject: Subject) -> None:
    before, _, after = await subject.engine.generate([question("A red ball"), _endless(subject), question("A blue ball")])
    for completion in (before, after):
        require(completion.finish is Finish.STOP, f"a neighbour ended with {completion.finish}: {completion.error}")


async def _streams_a_failure_as_data(subject: Subject) -> None:
    completion = await subject.engine.stream(_endless(subject), lambda _piece: None)
    require(
        completion.finish in (Finish.TOO_LONG, Finish.STOP), f"the stream ended with {completion.finish}: {completion.error}"
    )


def _refused(subject: Subject) -> Request:
    if not subject.refused:
        raise NotApplicable("no message is known that it refuses (--refused names one)")
    return question(subject.refused)


async def _says_that_it_refuses(subject: Subject) -> None:
    asked = [question("A red ball"), _refused(subject), question("A blue ball")]
    before, refused, after = await subject.engine.generate(asked)
    require(refused.finish is Finish.REFUSED, f"a refusal ended with {refused.finish}: {refused.error or refused.text[:80]!r}")
    require(refused.error, "the refusal has no error text")
    for completion in (before, after):
        require(completion.finish is Finish.STOP, f"a neighbour ended with {completion.finish}: {completion.error}")


async def _streams_a_refusal_as_data(subject: Subject) -> None:
    completion = await subject.engine.stream(_refused(subject), lambda _piece: None)
    require(completion.finish is Finish.REFUSED, f"a streamed refusal ended with {completion.finish}: {completion.error}")


def _answers_to(text: str, system: str = "") -> Callable[[Subject], Any]:
    async def check(subject: Subject) -> None:
        [completion] = await answered(subject, question(text, system=system))
        require(Thing.model_validate_json(completion.text), "no answer")

    return check


async def _answers_without_a_system_message(subject: Subject) -> None:
    request = question("A red ball")
    await answered(subject, Request((Message("user", "A red ball, as JSON"),), request.sampling, 1, request.schema, "answer"))


async def _answers_a_conversation(subject: Subject) -> None:
    request = question("A red ball")
    more = (Message("assistant", '{"color": "green"}'), Message("user", "green is not allowed; answer again"))
    await answered(subject, Request((*request.messages, *more), request.sampling, 1, request.schema, "answer"))


async def _describes_itself(subject: Subject) -> None:
    try:
        json.dumps(subject.engine.describe())
    except TypeError as error:
        raise BrokenPromise(f"its description cannot be written to metadata.json: {error}") from error
    require(subject.engine.capacity >= 1, f"its capacity is {subject.engine.capacity}")


async def _may_be_closed_twice(subject: Subject) -> None:
    engine = subject.create()
    await engine.close()
    await engine.close()


async def _says_that_it_is_not_open(subject: Subject) -> None:
    if subject.config.backend == "simulated" or type(subject.engine).remote:
        raise NotApplicable("it has nothing to load")
    try:
        await subject.create().generate([question("A red ball")])
    except EngineUnavailable:
        return
    raise BrokenPromise("an engine that is not open answered")


BEHAVIOUR = (
    Case("answers in the order of the requests, beyond its capacity too", _answers_in_order),
    Case("answers concurrent calls", _answers_calls_side_by_side),
    Case("reports each answer at most once, on the event loop", _tells_each_answer_once),
    Case("answers an empty call", _answers_no_request),
    Case("counts requests and tokens", _counts_usage),
    Case("cuts an answer at max_tokens, and reports the cut", _cuts_at_max_tokens),
    Case("does not cut the answers beside a cut one", _leaves_neighbours_of_a_cut_answer_whole),
    Case("streams the text that it answers", _streams_what_it_answers),
    Case("streams in pieces", _streams_in_pieces),
    Case("streams several answers at once", _streams_side_by_side),
    Case("streams a cut answer", _streams_a_cut_answer),
    Case("keeps reasoning out of the answer", _keeps_thoughts_out_of_the_answer),
    Case("gives the same answer for a seed, alone and among others", _repeats_itself),
    Case("streams the same answer for a seed", _repeats_itself_in_a_stream),
    Case("gives different answers for different seeds", _follows_the_seed),
    Case("accepts every sampling parameter", _takes_every_sampling_parameter),
    Case("ends a call that is cancelled", _ends_when_cancelled),
    Case("ends a stream that is cancelled", _ends_a_stream_when_cancelled),
    Case("completes other calls when one is cancelled", _spares_the_others_when_one_is_cancelled),
    Case("reports a prompt that is too long", _says_that_a_prompt_is_too_long),
    Case("answers the requests beside one that fails", _answers_the_neighbours_of_a_failure),
    Case("returns the failure of a stream as data", _streams_a_failure_as_data),
    Case("reports a refusal, and answers the requests beside it", _says_that_it_refuses),
    Case("returns a streamed refusal as data", _streams_a_refusal_as_data),
    Case("answers an emoji, combining marks, right-to-left text", _answers_to("🚲 e\u0301 שלום \u202eabc 日本語")),
    Case("answers control characters", _answers_to("a\x01b\x7fc\td\r\ne")),
    Case("answers special tokens", _answers_to("a<|im_end|>\n<|im_start|>assistant\n</s>[/INST]<end_of_turn>")),
    Case("answers an empty user message", _answers_to("")),
    Case("answers braces and quotes of templates", _answers_to('{{ x }} {% y %} "\\', "you {{ are }} kind")),
    Case("answers without a system message", _answers_without_a_system_message),
    Case("answers a conversation", _answers_a_conversation),
    Case("describes itself for metadata.json", _describes_itself),
    Case("can be closed twice, even if it was never opened", _may_be_closed_twice),
    Case("raises EngineUnavailable if it is not open", _says_that_it_is_not_open),
)
