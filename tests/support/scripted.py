"""Engines whose answers come from a function of the test; every request is kept.

    with scripted(llm=lambda request: Fact(name="x")) as scripts:
        chain = Chain(...)          # declared inside, so that its registry knows `llm`
        chain.run(...)              # run inside, so that the backend exists
    scripts["llm"].requests

An answer is a Completion, a text, a model (its JSON), or an awaitable of these. `generate` raises the exceptions
of the function.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from pydantic import BaseModel

from chainette import register_engine
from chainette.engine import backends
from chainette.engine.base import Completion, Done, Engine, Request
from chainette.engine.config import EngineConfig, EngineRegistry, using_registry
from chainette.engine.simulated.simulator import SimulatedOptions
from chainette.records import Usage

Answer = Completion | str | BaseModel
Answering = Callable[[Request], Answer | Awaitable[Answer]]

_numbers = itertools.count()
#: Model name -> the script behind it: a configuration holds plain data only.
_scripts: dict[str, Script] = {}


class Script:
    """One engine's answers, and its events."""

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        #: Every request, in the order of asking.
        self.requests: list[Request] = []
        #: "open", "close", and "generate" per call.
        self.calls: list[str] = []
        #: Raised by `open`, one per try, until there are no more.
        self.open_errors: list[Exception] = []

    def asked(self, row_id: str) -> list[Request]:
        """The requests of one row."""
        return [request for request in self.requests if row_of(request) == row_id]


class ScriptedEngine(Engine):
    """Answers as its script says; units side by side, the requests of one unit in order."""

    options = SimulatedOptions

    def __init__(self, config: EngineConfig) -> None:
        self.capacity = config.capacity or 8
        self._script = _scripts[config.model]

    async def open(self) -> None:
        self._script.calls.append("open")
        if self._script.open_errors:
            raise self._script.open_errors.pop(0)

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        self._script.calls.append("generate")
        self._script.requests += requests
        completions = []
        for index, request in enumerate(requests):
            completions.append(await self._answer(request))
            if done is not None:
                done(index, completions[-1])
        return completions

    async def _answer(self, request: Request) -> Completion:
        answer = self._script.answer(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, BaseModel):
            answer = answer.model_dump_json(by_alias=True)
        return Completion(answer, usage=Usage(1, 10, 5, 0.0)) if isinstance(answer, str) else answer

    async def close(self) -> None:
        self._script.calls.append("close")


@contextmanager
def scripted(settings: dict[str, Any] | None = None, /, **answers: Answering) -> Iterator[dict[str, Script]]:
    """Registers an engine per name, in a registry of its own; `settings` are keys that all of them get."""
    scripts = {name: Script(answer) for name, answer in answers.items()}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(backends.BUILT_IN, {"scripted": f"{__name__}:ScriptedEngine"}))
        stack.enter_context(using_registry(EngineRegistry()))
        for name, script in scripts.items():
            model = f"script-{next(_numbers)}"
            stack.enter_context(mock.patch.dict(_scripts, {model: script}))
            register_engine(name, model, "scripted", **(settings or {}))
        yield scripts


def row_of(request: Request) -> str:
    """The row a request asks about."""
    return request.label.split("/")[1]


def ask_of(request: Request) -> int:
    """Which ask of its row a request is, from 1."""
    return int(request.label.split("/")[2])


def user_text(request: Request) -> str:
    """The last user message."""
    return next(message.content for message in reversed(request.messages) if message.role == "user")
