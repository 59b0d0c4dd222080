"""The probe: a fixed question in the form of a step's requests, which shows whether an engine serves the step at all."""

from __future__ import annotations

import msgspec

from chainette.engine.base import Finish, Request
from chainette.records import Message

__all__ = ["ANSWERED", "QUESTION", "TAKEN_UP", "probe_of"]

QUESTION = 'Why do people visit Paris? Answer in one sentence, as a JSON object: {"answer": "..."}'

#: Endings of an answer that the model wrote, good or bad.
ANSWERED = (Finish.STOP, Finish.LENGTH)

#: Endings of a request that the engine took up.
TAKEN_UP = (*ANSWERED, Finish.REFUSED)

_WORDS = {"system": "You answer questions.", "assistant": '{"answer": ""}'}


def probe_of(request: Request) -> Request:
    """The request without its row: other words in the same roles, with the same sampling and schema."""
    messages = tuple(Message(message.role, _WORDS.get(message.role, QUESTION)) for message in request.messages)
    step = request.label.partition("/")[0]
    return msgspec.structs.replace(request, messages=messages, label=f"{step}/probe/1", avoid="")
