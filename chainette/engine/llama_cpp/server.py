"""A GGUF model in this process: llama.cpp's server engine through xllamacpp, without torch or a child process.

Guarantees: the event loop is never blocked; a cancelled request stops at its next token; `close` frees the
model's memory and threads. Answers follow a grammar made from the request's schema if llama.cpp can express it;
the caller validates them in any case.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import secrets
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import msgspec

from chainette.engine.base import Completion, Delta, Done, Engine, Finish, Options, Request, Tell
from chainette.engine.concurrent_requests import ask_all
from chainette.engine.config import EngineConfig
from chainette.engine.grammar_fit import VALIDATED_LATER, fitted, lightened
from chainette.engine.llama_cpp.answer_chunks import Body, completion_of, delta_of
from chainette.engine.llama_cpp.gguf import marker_tokens
from chainette.engine.llama_cpp.grammar import compact_grammar, grammar_holds, marked_grammar
from chainette.engine.llama_cpp.model_path import model_path
from chainette.engine.special_tokens import Masked, SpecialTokens
from chainette.errors import EngineConfigError, EngineUnavailable

__all__ = ["LlamaCppEngine", "LlamaCppOptions"]

_log = logging.getLogger("chainette")


_DEFAULT_CAPACITY = 8
#: Tokens of context that suffice to count those of prompts.
_SMALLEST = 256
_QUIET = -1
_PROBE = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1, "temperature": 0.0}

_MISSING = "backend llama_cpp needs the package xllamacpp: pip install xllamacpp"

#: Called with each chunk of an answer; returning true stops the answer.
Receive = Callable[[Body], bool]


class LlamaCppOptions(Options, frozen=True):
    OPERATIONAL = frozenset({"threads", "n_gpu_layers"})

    #: CPU threads.
    threads: int = 1
    #: Tokens of context for each slot.
    n_ctx: int = 2048
    #: Model layers put on the GPU.
    n_gpu_layers: int = 0


class LlamaCppEngine(Engine):
    """`capacity` slots (default 8) of `n_ctx` tokens each, computed by `threads` CPU threads (default 1).

    A slot keeps the prompt it computed last, so prompts that begin alike (one system prompt) are cheap. `extra`
    sets fields of `xllamacpp.CommonParams` by name; `SamplingParams.extra` goes into the request.

    Not deterministic. Measured on SmolLM2-135M Q4_1, the same 8 requests alone and 8 at a time: equal if the
    prompts were in the cache (32 of 32), 2 to 6 of 8 equal if the prompts were computed side by side, greedy or
    seeded, with or without flash attention: the arithmetic of a prompt depends on the rest of its batch.
    """

    options = LlamaCppOptions
    remote = False
    package = "xllamacpp"
    deterministic = False

    def __init__(self, config: EngineConfig) -> None:
        if not isinstance(config.options, LlamaCppOptions):
            raise EngineConfigError(f"engine {config.name!r}: backend {config.backend!r} has no llama_cpp options")
        self.capacity = config.capacity or _DEFAULT_CAPACITY
        self._config = config
        self._options: LlamaCppOptions = config.options
        self.context = self._options.n_ctx
        self._server: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._thinks = False
        self._ask: Callable[..., Any] = partial(_ask, "", "")
        self._special = SpecialTokens(())
        self._constraints: dict[bytes, Body] = {}
        self._probing = threading.Lock()

    @classmethod
    def local_parts(cls, config: EngineConfig) -> Iterator[tuple[str, Path | bytes]]:
        yield "model", model_path(config)

    def obstacles(self) -> Iterator[str]:
        if importlib.util.find_spec("xllamacpp") is None:
            yield _MISSING
        try:
            model_path(self._config)
        except EngineConfigError as error:
            yield str(error)

    async def open(self) -> None:
        params = self._params(model_path(self._config))
        pool = ThreadPoolExecutor(self.capacity, thread_name_prefix=f"llama_cpp-{self._config.name}")
        try:
            await asyncio.get_running_loop().run_in_executor(pool, self._load, params)
        except BaseException:
            # Loading cannot be interrupted: wait for it, or its thread would keep the model forever.
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(pool.shutdown, wait=True)
            self._unload()
            raise
        self._pool = pool

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        # In-flight requests use the server, so it must outlive the last of them.
        await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(self._unload)

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"xllamacpp": version("xllamacpp"), **msgspec.structs.asdict(self._options)}

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        return await ask_all([self._one(request, None) for request in requests], done)

    async def stream(self, request: Request, tell: Tell) -> Completion:
        """See `Engine.stream`."""
        return await self._one(request, tell)

    async def count_prompts(self, requests: Sequence[Request]) -> list[int] | None:
        """See `Engine.count_prompts`. If it is not open, it is opened for that: on the CPU, with one small slot."""
        if self._pool is not None:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._counted, requests)
        if [*self.obstacles()]:
            return None
        options = msgspec.structs.replace(self._options, n_ctx=_SMALLEST, n_gpu_layers=0)
        reader = LlamaCppEngine(msgspec.structs.replace(self._config, capacity=1, options=options))
        try:
            await reader.open()
            return await reader.count_prompts(requests)
        except EngineConfigError:  # opening the engine gives the better message
            return None
        finally:
            await reader.close()

    def _counted(self, requests: Sequence[Request]) -> list[int] | None:
        try:
            return [len(self._tokens(request, self._special.mask(request.messages))) for request in requests]
        except (TypeError, KeyError):  # the template refuses the messages
            return None

    async def _one(self, request: Request, tell: Tell | None) -> Completion:
        if self._pool is None:
            raise EngineUnavailable(f"engine {self._config.name!r} (llama_cpp) is not open")
        loop, stopped = asyncio.get_running_loop(), threading.Event()

        def pass_on(delta: Delta) -> None:
            if tell is not None and not stopped.is_set():
                tell(delta)

        def receive(chunk: Body) -> bool:
            if tell is not None:
                loop.call_soon_threadsafe(pass_on, delta_of(chunk))
            return stopped.is_set()

        try:
            return await loop.run_in_executor(self._pool, self._answer, request, receive)
        except asyncio.CancelledError:
            stopped.set()
            raise

    def _params(self, path: Path) -> Any:
        try:
            import xllamacpp
        except ImportError as error:
            raise EngineConfigError(f"engine {self._config.name!r}: {_MISSING}") from error
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.verbosity = _QUIET
        params.n_parallel = self.capacity
        params.n_ctx = self._options.n_ctx * self.capacity
        params.n_gpu_layers = self._options.n_gpu_layers
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._options.threads
        # Keep no prompts of finished slots besides the slots' own (the default keeps 8 GiB of them).
        params.cache_ram_mib = 0
        params.fit_params = False
        # The library also serves HTTP on a loopback port; a random key closes it to others.
        params.n_threads_http, params.ui, params.api_keys = 1, False, [secrets.token_hex(16)]
        for key, value in self._config.extra.items():
            self._set(params, key, value)
        return params

    def _set(self, params: Any, key: str, value: Any) -> None:
        try:
            setattr(params, key, value)
        except (AttributeError, TypeError, ValueError) as error:
            raise EngineConfigError(f"engine {self._config.name!r}: extra[{key!r}] = {value!r}: {error}") from error

    def _load(self, params: Any) -> None:
        import xllamacpp

        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise EngineConfigError(
                f"engine {self._config.name!r}: llama.cpp cannot load {params.model.path}: {error}"
            ) from error
        ask = self._ask = partial(_ask, self._server.listening_address, params.api_keys[0])
        # Once it answers this, its loop runs. A server that is destroyed earlier misses the signal, and the destructor waits
        # forever (xllamacpp 2026.10, one of some hundred loads that were closed at once).
        ask("/slots")
        # the template that llama.cpp uses: it may come from the file or from `extra`
        template = str((ask("/props") or {}).get("chat_template", ""))
        self._thinks = "</think>" in template
        self._special = SpecialTokens(marker_tokens(Path(params.model.path), template))

    def _unload(self) -> None:
        self._server = None
        self._constraints.clear()

    def _answer(self, request: Request, receive: Receive) -> Completion:
        """Blocks a thread of the pool until the answer is complete."""
        began = time.perf_counter()
        try:
            chunks = self._asked(request, receive)
        except Exception as error:
            return Completion("", Finish.ERROR, error=f"llama.cpp: {error}")
        return completion_of(chunks, time.perf_counter() - began)

    def _asked(self, request: Request, receive: Receive) -> list[Body]:
        masked = self._special.mask(request.messages)
        if masked is None:
            return self._chat(self._body(request), receive)
        body = self._body(request)
        own = {key: body[key] for key in body if key not in ("messages", "response_format")}
        return self._stream(self._server.handle_completions, own | {"prompt": self._tokens(request, masked)}, receive)

    def _tokens(self, request: Request, masked: Masked | None) -> list[int]:
        """The tokens of a prompt; special tokens in its rows are masked, and count as text."""
        messages = request.messages if masked is None else masked.messages
        plain = [{"role": message.role, "content": message.content} for message in messages]
        prompt = self._ask("/apply-template", {"messages": plain, **request.sampling.extra})["prompt"]
        pieces = [prompt] if masked is None else masked.pieces(prompt)
        texts = ({"content": piece, "parse_special": True, "add_special": at == 0} for at, piece in enumerate(pieces))
        return [*chain.from_iterable(self._ask("/tokenize", text)["tokens"] for text in texts)]

    def _chat(self, body: Body, receive: Receive) -> list[Body]:
        return self._stream(self._server.handle_chat_completions, body, receive)

    def _stream(self, handle: Callable[[Body, Receive], object], body: Body, receive: Receive) -> list[Body]:
        """Every chunk of one streamed answer; `receive` gets each as it arrives, and may stop the answer."""
        chunks: list[Body] = []

        def take(chunk: Body) -> bool:
            chunks.append(chunk)
            return receive(chunk)

        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        handle(body | streamed, take)
        return chunks

    def _body(self, request: Request) -> Body:
        sampling = request.sampling
        chosen = {
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": list(sampling.stop) or None,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repeat_penalty": sampling.repetition_penalty,
        }
        return {
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed,
            **{key: value for key, value in chosen.items() if value is not None},
            **self._constraint(request),
            **sampling.extra,
        }

    def _constraint(self, request: Request) -> Body:
        """The request keys that hold the answer to the schema; found once per schema."""
        key = msgspec.json.encode(request.schema)
        with self._probing:
            if key not in self._constraints:
                self._constraints[key] = self._find_constraint(request)
            return self._constraints[key]

    def _find_constraint(self, request: Request) -> Body:
        """A grammar without blanks between tokens, which take half of an answer's tokens. A thinking model could not think
        under it, so it gets `response_format`."""
        if self._thinks:
            light, lost = lightened(request.schema)
            problem = f"too large for a grammar: {', '.join(lost)}" if lost else ""
            schema = {"name": request.schema_name, "strict": True, "schema": light}
            constraint: Body = {"response_format": {"type": "json_schema", "json_schema": schema}}
        else:
            held, problem = fitted(request.schema, self._misfit)
            constraint = {} if held is None else {"grammar": compact_grammar(held)}
        if problem:
            _log.warning("%s: %s; %s", request.schema_name, problem, VALIDATED_LATER)
        return constraint

    def _misfit(self, schema: Body) -> str:
        """The reason why llama.cpp cannot hold answers to a schema; "" if it can. It does not report this: it drops the
        grammar."""
        try:
            chunks = self._chat(_PROBE | {"grammar": marked_grammar(schema)}, lambda _chunk: False)
        except Exception as error:
            return f"llama.cpp: {error}"
        return "" if grammar_holds(completion_of(chunks, 0.0).text) else "llama.cpp cannot compile its grammar"


def _ask(address: str, key: str, path: str, body: Body | None = None) -> Any:
    """The reply of the library's own server; None if there is none."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(f"{address}{path}", data, headers)  # noqa: S310 (our own loopback port)
    # A proxy from the environment must not see, or swallow, a request to ourselves.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return msgspec.json.decode(response.read())
    except (OSError, msgspec.DecodeError):
        return None
