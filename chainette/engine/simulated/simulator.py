"""An engine without a model: schema-valid answers drawn from the request's seed.

For dry runs, tests and measurements. Guarantee: the same schema and seed give the same answer in every process,
whatever else is in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import anyio
import msgspec
from pydantic import BaseModel

from chainette.engine.base import Completion, Delta, Done, Engine, Finish, Options, Request, Tell
from chainette.engine.concurrent_requests import NotSent, ask_all
from chainette.engine.config import EngineConfig
from chainette.engine.simulated.draw import compile_schema
from chainette.engine.simulated.model_draw import compile_model
from chainette.errors import EngineConfigError, EngineUnavailable, Undrawable
from chainette.records import Usage

__all__ = ["SimulatedEngine", "SimulatedOptions"]

_DEFAULT_CAPACITY = 64
#: Schemas kept compiled; a chain has one per step.
_KEPT = 256
_TOKEN = 4
_MISFIT = {"wrong": "type"}

Draw = Callable[[Random], Any]


class SimulatedOptions(Options, frozen=True):
    OPERATIONAL = frozenset({"latency", "error_rate", "load"})

    #: Seconds per request.
    latency: float = 0.0
    #: Share of answers that do not validate, drawn from the request's seed.
    invalid_rate: float = 0.0
    #: Share of calls that raise EngineUnavailable, drawn from the request's seed.
    error_rate: float = 0.0
    #: Seconds that loading takes.
    load: float = 0.0


class SimulatedEngine(Engine):
    """Draws answers; `latency`, `capacity`, `load`, `invalid_rate` and `error_rate` simulate a bad engine.

    With a latency, at most `capacity` requests are inside at once and the others wait. Without one,
    `generate` answers at once and never yields to the event loop.

    Raises:
        EngineConfigError: a rate outside 0 to 1, or negative seconds.
    """

    options = SimulatedOptions
    deterministic = True

    def __init__(self, config: EngineConfig) -> None:
        options = config.options
        if not isinstance(options, SimulatedOptions):
            raise EngineConfigError(f"engine {config.name!r}: backend {config.backend!r} has no simulated options")
        _check(config.name, options)
        self.capacity = config.capacity or _DEFAULT_CAPACITY
        self._name = config.name
        self._options = options
        self._calls = 0
        self._draws: dict[int, tuple[dict[str, Any], Draw]] = {}
        self._inside: anyio.Semaphore | None = None

    @classmethod
    def objection(cls, model: type[BaseModel]) -> str:
        try:
            compile_model(model)
        except Undrawable as error:
            return str(error)
        return ""

    async def open(self) -> None:
        await anyio.sleep(self._options.load)
        self._inside = anyio.Semaphore(self.capacity)

    async def close(self) -> None:
        self._draws.clear()

    def describe(self) -> dict[str, Any]:
        return {"simulated": True, **msgspec.structs.asdict(self._options)}

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        if requests:
            self._count_call(requests[0].seed)
        if self._options.latency > 0:
            return await ask_all([self._late_answer(request) for request in requests], done)
        found = [self._answer(request) for request in requests]
        if done is not None:
            for index, completion in enumerate(found):
                done(index, completion)
        return found

    async def count_prompts(self, requests: Sequence[Request]) -> list[int] | None:
        """See `Engine.count_prompts`."""
        return [self._usage(request, "").prompt_tokens for request in requests]

    async def stream(self, request: Request, tell: Tell) -> Completion:
        """See `Engine.stream`. The pieces are spread over the latency."""
        self._count_call(request.seed)
        completion = self._answer(request)
        pieces = [completion.text[start : start + _TOKEN] for start in range(0, len(completion.text), _TOKEN)]
        async with self._turn():
            for piece in pieces:
                await anyio.sleep(self._options.latency / len(pieces))
                tell(Delta(piece))
        return completion

    def _count_call(self, seed: int) -> None:
        """Fails a share of the calls, drawn from the seed and the call's number: the same call can succeed later."""
        self._calls += 1
        rate = self._options.error_rate
        if rate > 0 and Random(seed * 1_000_003 + self._calls).random() < rate:  # noqa: S311 (not a secret)
            raise EngineUnavailable(f"engine {self._name!r} (simulated): call {self._calls} fails, as error_rate asks")

    async def _late_answer(self, request: Request) -> Completion:
        turn = self._turn()
        try:
            await turn.acquire()
        except asyncio.CancelledError as error:
            raise NotSent(*error.args) from None
        try:
            await anyio.sleep(self._options.latency)
        finally:
            turn.release()
        return self._answer(request)

    def _turn(self) -> anyio.Semaphore:
        """One of `capacity` places."""
        if self._inside is None:
            raise EngineUnavailable(f"engine {self._name!r} (simulated) is not open")
        return self._inside

    def _answer(self, request: Request) -> Completion:
        rng = Random(request.seed)  # noqa: S311 (not a secret)
        value = self._draw(request)(rng)
        if self._options.invalid_rate > 0 and rng.random() < self._options.invalid_rate:
            text, finish = _spoiled(value, request.schema, rng)
        else:
            text, finish = _json(value), Finish.STOP
        return Completion(text, finish, usage=self._usage(request, text))

    def _usage(self, request: Request, text: str) -> Usage:
        prompt = sum([len(message.content) for message in request.messages])
        return Usage(1, 1 + prompt // _TOKEN, 1 + len(text) // _TOKEN, self._options.latency)

    def _draw(self, request: Request) -> Draw:
        """Cached by identity: keeping the schema prevents its id from being reused."""
        schema, model = request.schema, request.model
        known = self._draws.get(id(schema))
        if known is None:
            if len(self._draws) >= _KEPT:
                self._draws.clear()
            draw = compile_schema(schema) if model is None else compile_model(model)
            known = self._draws[id(schema)] = (schema, draw)
        return known[1]


def _check(name: str, options: SimulatedOptions) -> None:
    for key in ("invalid_rate", "error_rate"):
        if not 0 <= getattr(options, key) <= 1:
            raise EngineConfigError(f"engine {name!r}: {key} is {getattr(options, key)!r}; it must be between 0 and 1")
    for key in ("latency", "load"):
        if getattr(options, key) < 0:
            raise EngineConfigError(f"engine {name!r}: {key} is {getattr(options, key)!r}; it must be 0 seconds or more")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _spoiled(value: Any, schema: dict[str, Any], rng: Random) -> tuple[str, Finish]:
    """An answer that does not validate: not JSON, of wrong types, or cut off."""
    match int(rng.random() * 3):
        case 0:
            return f"Here is what I found: {_json(value)[1:-1]}", Finish.STOP
        case 1:
            return _json(_mistyped(value, schema)), Finish.STOP
        case _:
            text = _json(value)
            return text[: len(text) // 2], Finish.LENGTH


def _mistyped(value: Any, schema: dict[str, Any]) -> Any:
    """The value with an object in a field that refuses objects; a list if no field is sure to refuse one."""
    plain = ("string", "integer", "number", "boolean", "array")
    for name, part in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in schema.get("required", ()) and part.get("type") in plain:
            return {**value, name: _MISFIT}
    return [_MISFIT] if isinstance(value, dict) else _MISFIT
