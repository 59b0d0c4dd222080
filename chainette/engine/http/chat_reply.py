"""Reading of chat replies: a body, whole or streamed, becomes a completion. One reader for OpenAI's and Ollama's dialects.

A body without an answer raises `NoAnswer`; no body raises any other error.
"""

from __future__ import annotations

import re

import msgspec

from chainette.engine.base import Completion, Delta, Finish
from chainette.engine.http import reply_fields as fields
from chainette.engine.http.error_replies import NoAnswer, finish_said, words_of
from chainette.engine.http.reply_fields import Object
from chainette.engine.http.server_events import Events, lines_of
from chainette.engine.http.usual_reply import usual_reply
from chainette.engine.unwrapped_answer import holds_object
from chainette.records import Usage

__all__ = ["Pieces", "Reading", "read"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: Characters of a model's name that are kept.
_LONGEST_NAME = 200

#: The ends of an answer, in lower case with "_" between words. A server may have any number of names for its own failures, so
#: an unlisted end counts as a failure unless the answer is complete.
_NAMES = {
    Finish.STOP: "stop stopped stop_sequence stop_token eos eos_token eos_found end_turn end complete completed finished done"
    " success tool_calls tool_call tool_use function_call",
    Finish.LENGTH: "length max_length max_tokens model_length max_output_tokens max_new_tokens max_completion_tokens"
    " token_limit truncated incomplete model_context_window_exceeded context_length_exceeded",
    Finish.REFUSED: "content_filter content_filtered content_policy_violation refusal refused safety image_safety recitation"
    " blocklist prohibited_content spii sensitive blocked guardrail_intervened guardrails moderation error_toxic",
}
_FINISHES = {name: finish for finish, names in _NAMES.items() for name in names.split()}
_UNREADABLE = (msgspec.DecodeError, RecursionError)
_BETWEEN_WORDS = re.compile(r"[^a-z0-9]+")


class Reading(msgspec.Struct, frozen=True):
    """A completion, and the server's name for its model, "" if it gives none."""

    completion: Completion
    model: str


def read(data: bytes, seconds: float) -> Reading:
    """The answer in a body that arrived `seconds` after its question.

    Raises:
        NoAnswer: it holds none.
    """
    usual = usual_reply(data, seconds)
    if usual is not None and fields.BROKEN not in usual[0].text:
        return Reading(usual[0], _model_name(usual[1]))
    answer = _Answer()
    try:
        answer.take_all(data.removeprefix(_BYTE_ORDER_MARK).lstrip())
        return Reading(answer.completion(seconds), answer.model)
    except RecursionError:
        words = "nested too deep"
    except (msgspec.DecodeError, NoAnswer) as error:
        words = str(error)
    raise NoAnswer(words, answer.usage(seconds) if any(answer.tokens) else Usage())


class Pieces:
    """The pieces of a streamed answer, line by line as they arrive. Whether it is whole shows at its end."""

    def __init__(self) -> None:
        self._events = Events(fields.document)

    def of(self, line: bytes) -> Delta:
        """The piece a line completes; an empty one for a line that cannot be read."""
        try:
            found = [choice for document in self._events.feed(line) if (choice := _choice(document, streamed=True))]
            messages = [message for choice in found if (message := fields.message(choice))]
            text = "".join(fields.said(message.get("content")) for message in messages)
            return Delta(text, "".join(fields.thoughts(message) for message in messages))
        except _UNREADABLE:
            return Delta()


class _Answer:
    """Everything that a body says about its answer."""

    def __init__(self) -> None:
        self.model = ""
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._refusal: list[str] = []
        #: Tool calls by their index: the pieces of their arguments.
        self._calls: dict[int, list[str]] = {}
        self.tokens = fields.TokenCounts()
        self._error = b""
        #: Why the answer ended, in the server's words.
        self._reason = ""
        #: Whether the server said that nothing follows.
        self._ended = False
        self._has_message = False

    def take_all(self, data: bytes) -> None:
        """Takes in one JSON object, one on each line, or server-sent events."""
        first, _, rest = data.partition(b"\n")
        if data.startswith(b"{") and not (rest.strip() and _is_object(first)):
            document = fields.document(data)
            self._take(document, streamed=False)
            self._ended = document.get("done") is not False
            return
        events = Events(fields.document)
        for line in lines_of(data):
            for document in events.feed(line):
                self._take(document, streamed=True)
        for document in events.end():
            self._take(document, streamed=True)

    def usage(self, seconds: float) -> Usage:
        return Usage(1, self.tokens.prompt, self.tokens.answer, seconds, cached_tokens=self.tokens.cached)

    def completion(self, seconds: float) -> Completion:
        """Judges the answer.

        Raises:
            NoAnswer: there is none, or not all of it.
        """
        usage = self.usage(seconds)
        text, thoughts = self._answer()
        finish = _FINISHES.get(_BETWEEN_WORDS.sub("_", self._reason.lower()).strip("_").removeprefix("finish_reason_"))
        refusal = _whole("".join(self._refusal)).strip()
        if refusal or finish is Finish.REFUSED:
            said = refusal or "stopped by the provider's content filter"
            return Completion(_whole(text), Finish.REFUSED, thoughts or None, usage, said)
        if self._error and not holds_object(text):
            return _failed(self._error, usage)
        if fields.BROKEN in text:
            raise NoAnswer("a broken character in the answer")
        if finish is None or not (self._has_message or text):
            finish = self._unnamed_finish(text)
        return Completion(text, finish, thoughts or None, usage)

    def _take(self, document: Object, *, streamed: bool) -> None:
        self.model = _model_name(fields.word(document.get("model")) or self.model)
        tokens = fields.tokens(document)
        if tokens is not None and any(tokens):
            self.tokens = tokens
        self._ended = self._ended or document.get("done") is True
        choice = _choice(document, streamed=streamed) or {}
        self._error = self._error or fields.error(document.get("error") or choice.get("error"))
        self._reason = fields.word(choice.get("finish_reason")) or self._reason
        if (message := fields.message(choice)) is not None:
            self._take_message(message)

    def _take_message(self, message: Object) -> None:
        self._has_message = True
        self._text.append(fields.said(message.get("content")))
        self._thoughts.append(fields.thoughts(message))
        self._refusal.append(fields.word(message.get("refusal")))
        for index, arguments in fields.calls(message):
            self._calls.setdefault(index, []).append(arguments)

    def _answer(self) -> tuple[str, str]:
        """(text, thoughts). The answer may be the arguments of the one tool call, or stand where thoughts belong."""
        text, thoughts = "".join(self._text), _whole("".join(self._thoughts))
        if len(self._calls) == 1 and not holds_object(text):
            [arguments] = self._calls.values()
            return "".join(arguments) or text, thoughts
        if not text.strip() and holds_object(thoughts):
            return thoughts, ""
        return text, thoughts

    def _unnamed_finish(self, text: str) -> Finish:
        """The end of an answer that the server does not name, or by a name that may mean a failure.

        Raises:
            NoAnswer: the answer is not complete.
        """
        if holds_object(text) or (self._ended and not self._reason and text.strip()):
            return Finish.STOP
        if self._reason:
            raise NoAnswer(f"it ended as {self._reason!r}")
        raise NoAnswer("it ended before the answer did" if self._has_message else "no message in it")


def _choice(document: Object, *, streamed: bool) -> Object | None:
    """The first choice; in a stream, pieces of other ones may come between. Ollama's reply is a choice itself."""
    if found := fields.choices(document):
        return next((each for each in found if not fields.count(each.get("index"))), None if streamed else found[0])
    if "message" in document or "done" in document:
        return {"message": document.get("message"), "finish_reason": document.get("done_reason")}
    return None


def _failed(error: bytes, usage: Usage) -> Completion:
    """Reads an error in place of an answer, or after a part of it.

    Raises:
        NoAnswer: it may succeed at another try.
    """
    words = _whole(words_of(error))
    finish = finish_said(words)
    if finish is None:
        raise NoAnswer(f"an error: {words}")
    return Completion("", finish, usage=usage, error=words)


def _model_name(words: str) -> str:
    return _whole(words)[:_LONGEST_NAME]


def _whole(words: str) -> str:
    """Words beside an answer, with broken characters as "?"."""
    return words.replace(fields.BROKEN, "?")


def _is_object(line: bytes) -> bool:
    try:
        fields.document(line)
    except msgspec.DecodeError:
        return False
    return True
