"""The contract between a step and a model: requests in, completions out, in order."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import msgspec
from pydantic import BaseModel

from chainette.engine.shared_time import SharedTime
from chainette.errors import DeclarationError, WrongArguments
from chainette.records import Message, Usage
from chainette.utils.argument_advice import advice
from chainette.utils.call_site import caller_place

if TYPE_CHECKING:
    from chainette.engine.config import EngineConfig

__all__ = [
    "UNSENT",
    "Cause",
    "Completion",
    "Delta",
    "Done",
    "Engine",
    "Finish",
    "Options",
    "Request",
    "SamplingParams",
    "Tell",
    "tell_whole",
]


_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_NUMBERS = ("temperature", "top_p", "top_k", "max_tokens", "seed", *_PENALTIES)

_HINTS = {
    "max_new_tokens": "max_tokens={value}",
    "max_completion_tokens": "max_tokens={value}",
    "stop_sequences": "stop={value}",
    "guided_decoding": "nothing: each answer follows its step's output_model",
    "structured_outputs": "nothing: each answer follows its step's output_model",
    "response_format": "nothing: each answer follows its step's output_model",
}


class _Explained(msgspec.StructMeta):
    """Construction that gives advice for an unknown parameter."""

    def __call__(cls, *arguments: Any, **keys: Any) -> Any:
        fields = cls.__struct_fields__
        unknown = {key: value for key, value in keys.items() if key not in fields}
        if arguments or unknown:
            form = f"it takes no positional arguments; write {cls.__name__}({fields[0]}=...)"
            said = form if arguments else advice(unknown, fields, _HINTS)
            raise WrongArguments(f"{caller_place()}: {cls.__name__}: {said}")
        return super().__call__(**keys)


class SamplingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, metaclass=_Explained
):
    """Sampling parameters of an answer. Each backend maps them to its own names; None keeps the backend's default.

    Raises:
        DeclarationError: a value is out of its range.
    """

    #: 0 takes the likeliest token each time.
    temperature: float = 0.0
    #: Draws among the likeliest tokens whose probabilities add up to this share.
    top_p: float | None = None
    #: Draws among this many of the likeliest tokens.
    top_k: int | None = None
    #: The most tokens of an answer; a longer one is `truncated`.
    max_tokens: int = 1024
    #: Texts at which an answer ends.
    stop: tuple[str, ...] = ()
    #: Replaces the run's seed for this step; rows still get different seeds.
    seed: int | None = None
    #: Above 0, tokens that have occurred are less likely.
    presence_penalty: float | None = None
    #: The same, for each time a token has occurred.
    frequency_penalty: float | None = None
    #: Divides the scores of tokens that have occurred, above 1; prompts count too.
    repetition_penalty: float | None = None
    #: Passed through to the backend under its own names.
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number and (value is not None or name in ("temperature", "max_tokens")):
                raise _wrong(name, value, "it must be a number")
            if isinstance(value, float) and not math.isfinite(value):  # requests are JSON, which has no word for it
                raise _wrong(name, value, "it must be a finite number")
        checks = (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
        )
        for name, good, wanted in checks:
            if not good:
                raise _wrong(name, getattr(self, name), f"it must be {wanted}")
        if isinstance(self.stop, str):
            raise _wrong("stop", self.stop, "give a list of strings")


def _wrong(name: str, value: object, wanted: str) -> DeclarationError:
    return DeclarationError(f"{caller_place()}: SamplingParams.{name} is {value!r}; {wanted}")


class Request(msgspec.Struct, frozen=True):
    """One question to a model."""

    messages: tuple[Message, ...]
    sampling: SamplingParams
    #: The seed of this ask, 0 <= seed < 2**31.
    seed: int
    #: JSON Schema the answer must follow.
    schema: dict[str, Any]
    #: A name for the schema if a backend wants one: letters, digits, "_".
    schema_name: str
    #: For logs and hooks: step, row and ask.
    label: str = ""
    #: The class the answer must be an instance of; it never leaves the process.
    model: type[BaseModel] | None = None
    #: The endpoint at which it failed before (`Completion.by`): another one is preferred, since a failure there proves nothing
    #: new.
    avoid: str = ""


class Finish(StrEnum):
    """Why an answer ended."""

    #: the model ended it, or a stop string did
    STOP = "stop"
    #: cut by max_tokens
    LENGTH = "length"
    #: the model or the provider declined
    REFUSED = "refused"
    #: the prompt does not fit the context; `error` holds the counts
    TOO_LONG = "too_long"
    #: the engine refuses this one request, and would again; `error` holds its message
    ERROR = "error"
    #: no usable answer came, though another try may get one; `error` holds the engine's last words. Only a comparison with
    #: other requests shows whose fault it is (`run/blame.py`).
    FAILED = "failed"


class Cause(StrEnum):
    """Why no usable answer came."""

    #: the server broke off, was silent, or sent something that is not an answer
    BROKEN = "broken"
    #: the server gives the answer of any server under load
    BUSY = "busy"
    #: the server will not answer this request, or any: 403 and its like
    DENIED = "denied"


class Completion(msgspec.Struct, frozen=True):
    """One answer. A request that failed by its own fault is a completion too."""

    text: str
    finish: Finish = Finish.STOP
    reasoning: str | None = None
    usage: Usage = Usage(requests=1)
    #: The engine's words about this request, for REFUSED, TOO_LONG, ERROR and FAILED.
    error: str = ""
    #: The endpoint that answered or failed; "" if the engine has only one.
    by: str = ""
    #: For FAILED: why another try may help, or may not.
    cause: Cause | None = None
    #: For ERROR and FAILED: the change to make if every request ends like this, one clause.
    hint: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether the engine would not take the request up."""
        return self.finish is Finish.ERROR or self.cause is Cause.DENIED


#: For `done`, before `generate` is cancelled: the request waited for its turn in the engine, and cost nothing.
UNSENT: Final = Completion("", Finish.FAILED, usage=Usage(), error="it was cancelled before it was sent")


class Delta(msgspec.Struct, frozen=True):
    """A piece of an answer, as the engine gives it."""

    text: str = ""
    reasoning: str = ""
    #: Whether the answer starts again: the pieces before this one are void.
    anew: bool = False


#: Called with the pieces of one answer in order, on the event loop; must not block.
Tell = Callable[[Delta], None]


#: Called with the answer to `requests[index]` as it arrives, on the event loop; must not block or raise.
Done = Callable[[int, Completion], None]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of one backend: a subclass has a typed field with a default for each.

    Unless the class says otherwise, a key decides rows: another value makes them stale.
    """

    #: Keys that may change freely: they affect how an answer is computed, never its content.
    OPERATIONAL: ClassVar[frozenset[str]] = frozenset()
    #: Keys that can only turn rejected rows into good ones if they are raised, or lowered.
    RESCUING: ClassVar[Mapping[str, Literal["raised", "lowered"]]] = {}


class Engine(ABC):
    """A model that is, or can be, loaded. A backend is a subclass; its constructor takes the `EngineConfig` alone.

    `generate` may be called concurrently; it answers every request, in order. A failure of one request is
    that request's completion; a failure of the engine itself raises.
    """

    #: The backend's own keys.
    options: ClassVar[type[Options]] = Options

    #: Whether it asks a server; an engine that loads the model in this process takes no `endpoint`.
    remote: ClassVar[bool] = True

    #: Whether its server may refuse a step's declaration: if so, the step's first requests go ahead of the others.
    may_refuse: ClassVar[bool] = False

    #: Whether its engines share the device with others unless they say `exclusive=False`.
    exclusive: ClassVar[bool] = False

    #: The extra package it needs, as `pip install` and `import` name it.
    package: ClassVar[str] = ""

    #: Requests the engine answers at once; callers keep at least this many in flight.
    capacity: int

    #: Tokens a prompt and its answer may have together; None if the engine does not know.
    context: int | None = None

    #: Whether the same request gives the same answer, regardless of other requests in flight.
    deterministic: bool = False

    #: Changes to requests, since the server refuses them as declared: name -> words. Grows while requests are answered.
    adaptations: Mapping[str, str] = MappingProxyType({})

    #: The origin of the model, by setting: digest of a local file, revision of a hub, digest of a server. Known once open.
    identity: Mapping[str, str] = MappingProxyType({})

    @cached_property
    def time(self) -> SharedTime:
        """The seconds in which this engine has requests; kept by its callers."""
        return SharedTime()

    @classmethod
    def create(cls, config: EngineConfig, patience: float | None = None) -> Engine:
        """An unopened engine; if it asks a server, it gives up after `patience` seconds of silence.

        Raises:
            EngineConfigError: the values of the configuration cannot work.
        """
        del patience
        return cls(config)  # type: ignore[call-arg]

    @classmethod
    def local_parts(cls, config: EngineConfig) -> Iterator[tuple[str, Path | bytes]]:
        """Setting -> the file, folder or text it names on this machine; their digests are part of the identity."""
        del config
        return iter(())

    @classmethod
    def gpus(cls, config: EngineConfig) -> int:
        """The number of GPUs a worker of `run --workers` needs for itself; 0 if it needs none or names its own."""
        del config
        return 0

    @classmethod
    def spread(cls, config: EngineConfig, gpus: int) -> EngineConfig:
        """The configuration spread over all GPUs of a worker, unless it names its own."""
        del gpus
        return config

    @classmethod
    def objection(cls, model: type[BaseModel]) -> str:
        """The reason why no answer of such an engine can be an instance of `model`; "" if there is none."""
        del model
        return ""

    @property
    def dead(self) -> bool:
        """Whether it can never answer again; `Engines` then closes it and opens another."""
        return False

    def obstacles(self) -> Iterator[str]:
        """The reasons why it cannot open on this machine, as far as they show without opening it."""
        return iter(())

    @abstractmethod
    async def open(self) -> None:
        """Loads the model, or checks that the endpoint answers. Called once before `generate`.

        Raises:
            EngineUnavailable: it did not become ready within the startup timeout.
            EngineConfigError: it never will (no such model file, a missing package).
        """

    @abstractmethod
    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        """One completion per request, in the order of the requests.

        `done(index, completion)` is called for each answer as it arrives, at most once per request, so that a row need
        not wait for the slowest one. These answers count even if `generate` then raises or is cancelled. An engine that is
        cancelled may call `done(index, UNSENT)` for requests that it has not sent; else they count as sent.
        An engine may skip calls of `done`; for those requests the returned list counts.

        Raises:
            EngineUnavailable: the engine does not answer; nothing is known about requests without a call of `done`.
        """

    async def stream(self, request: Request, tell: Tell) -> Completion:
        """One answer, passed to `tell` piece by piece. The joined pieces of a complete answer are its text and reasoning.

        An engine that cannot stream passes the whole answer at the end. Cancelling stops the generation.

        Raises:
            EngineUnavailable: as `generate`; `tell` may have got pieces by then.
        """
        [completion] = await self.generate([request])
        tell_whole(completion, tell)
        return completion

    async def count_prompts(self, requests: Sequence[Request]) -> list[int] | None:
        """The tokens of each request's prompt by the model's own tokenizer; None if there is none here. Nothing is generated,
        and the engine need not be open."""
        del requests
        return None

    @abstractmethod
    async def close(self) -> None:
        """Frees the model, its memory, its connections and its child processes. Safe to repeat."""

    def revisions(self) -> dict[str, str]:
        """The part of the identity that only an open engine knows: the revision a hub or a server gave it."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The engine's entry in metadata.json: versions, model revision. No secrets."""
        return {}


def tell_whole(completion: Completion, tell: Tell) -> None:
    """Passes a whole answer as one piece."""
    if completion.text or completion.reasoning:
        tell(Delta(completion.text, completion.reasoning or ""))
