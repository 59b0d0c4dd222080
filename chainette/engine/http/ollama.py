"""OllamaEngine: a model on an Ollama server.

The answer's schema is sent as `format`, sampling parameters as `options`. A prompt that does not fit is
refused (`truncate: false`) instead of being cut silently. `engine/http/transport.py` sends the requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from chainette.engine.base import Completion, Done, Engine, Request, SamplingParams, Tell
from chainette.engine.concurrent_requests import ask_all
from chainette.engine.config import EngineConfig
from chainette.engine.http.chat_reply import read
from chainette.engine.http.client import Reply
from chainette.engine.http.http_options import HttpOptions, hurried
from chainette.engine.http.streamed_lines import Lines
from chainette.engine.http.timing import Policy, Timing
from chainette.engine.http.transport import Protocol, Transport
from chainette.errors import EngineConfigError, EngineRefused

__all__ = ["OllamaEngine", "OllamaOptions", "chat_body"]

#: Keys of `extra` that go next to `options` in a request; all others are options.
_BESIDE_OPTIONS = frozenset({"format", "keep_alive", "logprobs", "shift", "think", "tools", "top_logprobs", "truncate"})


class _Tag(msgspec.Struct):
    name: str
    digest: str = ""


class _Tags(msgspec.Struct):
    models: list[_Tag] | None = None


_decode_models = msgspec.json.Decoder(_Tags).decode


class OllamaOptions(HttpOptions, frozen=True):
    OPERATIONAL = HttpOptions.OPERATIONAL | {"keep_alive"}

    #: How long Ollama keeps the model loaded after a request, in its own notation.
    keep_alive: str | None = None
    #: Context length.
    num_ctx: int | None = None


class OllamaEngine(Engine):
    """Asks an Ollama server."""

    options = OllamaOptions
    may_refuse = True

    def __init__(self, config: EngineConfig, *, timing: Timing | None = None, policy: Policy | None = None) -> None:
        if not isinstance(config.options, OllamaOptions):
            raise EngineConfigError(f"engine {config.name!r}: its backend is {config.backend!r}, not 'ollama'")
        self._config = config
        self._transport = Transport(config, self._protocol(), timing or Timing(), policy or Policy())
        self._known: dict[str, Any] = {}
        self.capacity = self._transport.capacity

    @classmethod
    def create(cls, config: EngineConfig, patience: float | None = None) -> Engine:
        config, policy = hurried(config, patience)
        return cls(config, policy=policy)

    def obstacles(self) -> Iterator[str]:
        return self._transport.obstacles()

    async def open(self) -> None:
        """Waits until the server answers, and checks that it has the model.

        Raises:
            EngineConfigError: an environment variable is missing, or an endpoint is not a URL.
            EngineRefused: the server does not have the model, or is not an Ollama server.
            EngineUnavailable: nothing answered within the startup timeout.
        """
        reply = await self._transport.open()
        try:
            model = _Tag(self._config.model) if reply is None else self._find(reply)
        except BaseException:
            await self.close()
            raise
        self._known = {"server_model": model.name, "digest": model.digest}

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        bodies = [(chat_body(self._config, request, stream=False), request.avoid) for request in requests]
        asks = [self._transport.ask(body, _read, avoid=avoid) for body, avoid in bodies]
        return await ask_all(asks, done, self._transport.has_answered)

    async def stream(self, request: Request, tell: Tell) -> Completion:
        """See `Engine.stream`."""
        lines = Lines(tell)
        body = chat_body(self._config, request, stream=True)
        completion = await self._transport.ask(body, _read, lines.listen, request.avoid)
        lines.end(completion)
        return completion

    async def close(self) -> None:
        await self._transport.close()

    def revisions(self) -> dict[str, str]:
        """The server's digest of the model."""
        return {"model": str(self._known["digest"])} if self._known.get("digest") else {}

    def describe(self) -> dict[str, Any]:
        return {"endpoints": list(self._transport.declared), **self._known}

    def _find(self, reply: Reply) -> _Tag:
        """Finds the model in the server's list.

        Raises:
            EngineRefused: it is not there.
        """
        if reply.status in (401, 403):  # a key may be valid for questions only
            return _Tag(self._config.model)
        if reply.status != 200:
            raise self._transport.refusal(reply)
        name = self._config.model
        try:
            models = _decode_models(reply.data).models or []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise EngineRefused(
                f"engine {self._config.name!r}: {reply.shown} is not an Ollama server; correct its endpoint"
            ) from None
        for model in models:
            if model.name in (name, f"{name}:latest"):
                return model
        has = ", ".join(model.name for model in models[:8]) or "none"
        raise EngineRefused(
            f"engine {self._config.name!r}: the Ollama server does not have model {name!r} ({reply.shown} lists {has}); "
            f"run `ollama pull {name}`"
        )

    def _protocol(self) -> Protocol:
        return Protocol(
            ready_path="/api/tags",
            ask_path="/api/chat",
            hello=msgspec.json.encode({"model": self._config.model, "messages": [], "stream": False}),  # loads the model
            capacity=8,
            endpoint="http://127.0.0.1:11434",
            start_hint="start it with `ollama serve`, or correct the engine's endpoint",
            refusal_hint=self._hint,
        )

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            variable = self._config.api_key_env
            named = (
                f"the environment variable {variable}" if variable else "an environment variable, and name it in api_key_env"
            )
            return f"put a key that the server accepts in {named}"
        if status == 404:
            return f"run `ollama pull {self._config.model}`, or correct the engine's endpoint (without /api or /v1)"
        return "the engine cannot be used until that is mended at the server or in its declaration"


def chat_body(config: EngineConfig, request: Request, *, stream: bool) -> bytes:
    """The JSON of a chat request. A key of `extra` replaces ours, and None removes it."""
    assert isinstance(config.options, OllamaOptions)
    extra = config.extra | request.sampling.extra
    options = _options(request.sampling, request.seed, config.options.num_ctx)
    options |= {key: value for key, value in extra.items() if key not in _BESIDE_OPTIONS}
    body = {
        "model": config.model,
        "messages": request.messages,
        "stream": stream,
        "format": request.schema,
        "options": _given(options),
        "keep_alive": config.options.keep_alive,
        "truncate": False,
        "shift": False,
    }
    return msgspec.json.encode(_given(body | {key: value for key, value in extra.items() if key in _BESIDE_OPTIONS}))


def _options(sampling: SamplingParams, seed: int, num_ctx: int | None) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "seed": seed,
        "num_predict": sampling.max_tokens,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": sampling.stop or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": sampling.repetition_penalty,
        "num_ctx": num_ctx,
    }


def _given(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


def _read(data: bytes, seconds: float) -> Completion:
    return read(data, seconds).completion
