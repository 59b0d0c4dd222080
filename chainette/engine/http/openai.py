"""OpenAIEngine: any server that speaks OpenAI's chat completions (OpenAI, `vllm serve`, llama.cpp, TGI).

The answer's schema is sent as `response_format`; sampling parameters under OpenAI's names, or vLLM's for those that
OpenAI lacks. `engine/http/transport.py` sends the requests.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

import msgspec

from chainette.engine.base import Completion, Done, Engine, Finish, Request, SamplingParams, Tell
from chainette.engine.concurrent_requests import ask_all
from chainette.engine.config import EngineConfig
from chainette.engine.http.adaptation import CHANGES, adapted, advice, remedy
from chainette.engine.http.chat_reply import read
from chainette.engine.http.client import Reply
from chainette.engine.http.http_options import HttpOptions, hurried
from chainette.engine.http.server_tokenizer import count_by_server
from chainette.engine.http.streamed_lines import Lines
from chainette.engine.http.strict_dialect import strict_subset
from chainette.engine.http.timing import Policy, Timing
from chainette.engine.http.transport import Listen, Protocol, Transport
from chainette.engine.probe import TAKEN_UP
from chainette.errors import EngineConfigError
from chainette.records import Message

__all__ = ["OpenAIEngine", "OpenAIOptions", "base_path", "chat_body"]

_log = logging.getLogger("chainette")

_OFFICIAL = "api.openai.com"
_KEY = "OPENAI_API_KEY"
_FORMATS = ("json_schema", "json_object", "none")
#: OpenAI's limit.
_LONGEST_NAME = 64
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_OPERATION = "/chat/completions"
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_decode_models = msgspec.json.Decoder(_Models).decode


class OpenAIOptions(HttpOptions, frozen=True):
    #: "json_schema", "json_object" (the schema is in the prompt only) or "none".
    response_format: str = "json_schema"
    #: OpenAI's strict dialect of JSON Schema; constraints it cannot express are left to validation.
    strict: bool | None = None


class OpenAIEngine(Engine):
    """Asks an OpenAI-compatible endpoint."""

    options = OpenAIOptions
    may_refuse = True

    def __init__(self, config: EngineConfig, *, timing: Timing | None = None, policy: Policy | None = None) -> None:
        options = config.options
        if not isinstance(options, OpenAIOptions) or options.response_format not in _FORMATS:
            found = getattr(options, "response_format", options)
            raise EngineConfigError(
                f"engine {config.name!r}: response_format is {found!r}, it must be one of {', '.join(_FORMATS)}"
            )
        self._config = config
        self._options = options
        self._transport = Transport(config, self._protocol(), timing or Timing(), policy or Policy())
        self._official = False
        self._model = ""
        #: Names of changes to every request, in order; and steps from which the server took up a request.
        self._changes: list[str] = []
        self._accepted: set[str] = set()
        self._formats: dict[tuple[str, bytes], msgspec.Raw | None] = {}
        self.capacity = self._transport.capacity

    @classmethod
    def create(cls, config: EngineConfig, patience: float | None = None) -> Engine:
        config, policy = hurried(config, patience)
        return cls(config, policy=policy)

    def obstacles(self) -> Iterator[str]:
        return self._transport.obstacles()

    async def open(self) -> None:
        """Reads the key and waits until an endpoint answers `GET /models`, or a question if that gets no answer.

        Raises:
            EngineConfigError: the key's environment variable is not set, or an endpoint is not a URL.
            EngineUnavailable: nothing answered within the startup timeout.
        """
        reply = await self._transport.open()
        self._official = _OFFICIAL in self._transport.hosts
        self._model = _served_model(reply, self._config.model)

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        bodies = zip(requests, self._bodies(requests), strict=True)
        return await ask_all([self._ask(request, body) for request, body in bodies], done, self._transport.has_answered)

    async def stream(self, request: Request, tell: Tell) -> Completion:
        """See `Engine.stream`."""
        lines = Lines(tell)
        body = self._fields(request, self._format(request), _STREAMED)
        completion = await self._ask(request, body, lines.listen)
        lines.end(completion)
        return completion

    async def count_prompts(self, requests: Sequence[Request]) -> list[int] | None:
        """See `Engine.count_prompts`. The servers of vLLM and llama.cpp count; OpenAI's has no tokenizer to ask."""
        if any(_OFFICIAL in text for text in self._transport.declared):
            return None
        return await count_by_server(self._config, self._transport.endpoints, base_path, requests)

    async def _ask(self, request: Request, fields: dict[str, Any], listen: Listen | None = None) -> Completion:
        """The completion of a request. The server may refuse a parameter by name before it has taken up any request of the
        step. If the meaning stays without it, this request and all later ones are changed."""
        while True:
            made = tuple(self._changes)
            body = msgspec.json.encode(adapted(fields, made))
            completion = await self._transport.ask(body, self._read, listen, request.avoid)
            if completion.finish in TAKEN_UP:
                self._accepted.add(request.schema_name)
            if completion.finish is not Finish.ERROR:
                return completion
            declared = {*self._config.extra, *request.sampling.extra}
            name = remedy(completion.error, request.sampling, fields, made, declared)
            if name is None or (name not in self._changes and request.schema_name in self._accepted):
                return msgspec.structs.replace(completion, hint=advice(completion.error))
            self._change(name, completion.error)

    def _change(self, name: str, refusal: str) -> None:
        if name not in self._changes:
            self._changes.append(name)
            self.adaptations = {**self.adaptations, name: CHANGES[name].words}
            _log.warning("engine %r: %s, since its server refuses it: %s", self._config.name, CHANGES[name].words, refusal)

    def _fields(
        self, request: Request, response_format: msgspec.Raw | None, asked: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        return chat_fields(self._config, request, response_format, self._official, asked)

    async def close(self) -> None:
        await self._transport.close()

    def describe(self) -> dict[str, Any]:
        known = {"server_model": self._model} if self._model else {}
        return {"endpoints": list(self._transport.declared), **known}

    def _bodies(self, requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
        """The requests of a unit share schema and sampling: their bodies differ in the messages and the seed."""
        for _, group in groupby(requests, lambda request: (id(request.schema), id(request.sampling))):
            first, *rest = group
            body = self._fields(first, self._format(first))
            own = {"messages", "seed"}.difference(self._config.extra, first.sampling.extra)
            yield body
            for request in rest:
                yield body | {name: getattr(request, name) for name in own}

    def _read(self, data: bytes, seconds: float) -> Completion:
        reading = read(data, seconds)
        self._model = reading.model or self._model
        return reading.completion

    def _format(self, request: Request) -> msgspec.Raw | None:
        """`response_format` as JSON, made once per schema."""
        key = (request.schema_name, msgspec.json.encode(request.schema))
        if key not in self._formats:
            made = self._make_format(request)
            self._formats[key] = None if made is None else msgspec.Raw(msgspec.json.encode(made))
        return self._formats[key]

    def _make_format(self, request: Request) -> dict[str, Any] | None:
        if self._options.response_format == "none":
            return None
        if self._options.response_format == "json_object":
            return {"type": "json_object"}
        wanted = self._official if self._options.strict is None else self._options.strict
        schema = self._strict(request) if wanted else None
        strict = schema is not None
        made = {"name": _schema_name(request.schema_name), "strict": strict, "schema": schema or request.schema}
        return {"type": "json_schema", "json_schema": made}

    def _strict(self, request: Request) -> dict[str, Any] | None:
        """The schema in the strict dialect, None if it cannot be expressed; reports lost constraints."""
        strict = strict_subset(request.schema)
        where = f"engine {self._config.name!r}, schema {request.schema_name!r}"
        if strict.schema is None:
            _log.warning("%s: OpenAI's strict dialect cannot say %s; the schema is sent without strict", where, strict.reason)
        elif strict.dropped:
            said = ", ".join(strict.dropped)
            _log.warning("%s: OpenAI's strict dialect has no %s; validated when the answer comes", where, said)
        return strict.schema

    def _protocol(self) -> Protocol:
        return Protocol(
            ready_path="/models",
            ask_path=_OPERATION,
            hello=msgspec.json.encode({"model": self._config.model, "messages": [Message("user", "Hi")], "max_tokens": 1}),
            capacity=64,
            endpoint=f"https://{_OFFICIAL}/v1",
            start_hint="start the server, or correct the engine's endpoint",
            refusal_hint=self._hint,
            base_path=base_path,
            default_keys={_OFFICIAL: _KEY},
        )

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            default = _KEY if any(_OFFICIAL in text for text in self._transport.declared) else None
            variable = self._config.api_key_env or default
            if variable is None:
                return "the server wants a key: put it in an environment variable and name that in api_key_env"
            return f"put a key that may use model {self._config.model!r} in the environment variable {variable}"
        if status == 404:
            return f"model {self._config.model!r} is not there, or the endpoint is not a base URL like http://HOST:PORT/v1"
        if 300 <= status < 400:
            return "give the URL it points to as the engine's endpoint"
        return "the engine cannot be used until that is mended at the server or in its declaration"


def base_path(path: str) -> str:
    """The path below which the operations are: `/v1` if none is given; a pasted operation is cut off."""
    return path.rstrip("/").removesuffix(_OPERATION) or "/v1"


def chat_body(config: EngineConfig, request: Request, response_format: msgspec.Raw | None, official: bool) -> bytes:
    """The JSON of a chat request."""
    return msgspec.json.encode(chat_fields(config, request, response_format, official))


def chat_fields(
    config: EngineConfig,
    request: Request,
    response_format: msgspec.Raw | None,
    official: bool,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The fields of a chat request; `asked` are keys that say how to answer. A key of `extra` replaces ours, and None
    removes it."""
    body = {
        "model": config.model,
        "messages": request.messages,
        "seed": request.seed,
        "response_format": response_format,
        **_sampling(request.sampling, official),
        **asked,
        **config.extra,
        **request.sampling.extra,
    }
    return {key: value for key, value in body.items() if value is not None}


def _schema_name(name: str) -> str:
    """The name in characters and a length that OpenAI accepts; a changed name ends in a digest, to stay distinct."""
    plain = _NOT_IN_NAMES.sub("_", name)
    if plain == name and 0 < len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain.strip('_')[: _LONGEST_NAME - 9] or 'schema'}_{digest}"


def _sampling(sampling: SamplingParams, official: bool) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens" if official else "max_tokens": sampling.max_tokens,
        "stop": sampling.stop or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
    }


def _served_model(reply: Reply | None, model: str) -> str:
    """The server's name for the model: the declared name if the server lists it, or its only one."""
    try:
        names = [each.id for each in _decode_models(reply.data).data] if reply is not None and reply.status == 200 else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return model if model in names else names[0] if len(names) == 1 else ""
