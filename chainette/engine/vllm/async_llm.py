"""vLLM: its AsyncLLM in this process, the model in a child process.

Guarantees: the event loop is never blocked; a cancelled request is aborted; `close` ends the child and thus frees
the device's memory; the child ends when this process is killed; a child that dies costs no row (EngineUnavailable).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import anyio
import msgspec

from chainette.engine.base import Cause, Completion, Done, Engine, Finish, Request, Tell
from chainette.engine.concurrent_requests import ask_all
from chainette.engine.config import EngineConfig
from chainette.engine.vllm.arguments import VllmOptions, environment, in_environment, missing_files, passes_on
from chainette.engine.vllm.chat_tokens import ChatTokens, cut, encoded_apart, prefix_order, template_text, too_long
from chainette.engine.vllm.child import PIPE, ChildWords, spawned_here
from chainette.engine.vllm.installed import MISSING, arguments_here, computes_on_cpu, imported_vllm, lora_request, typed
from chainette.engine.vllm.sampling import AnswerSchemas, sampling_of
from chainette.engine.vllm.thoughts import ThinkingAnswer, thinking
from chainette.errors import EngineConfigError, EngineUnavailable
from chainette.records import Usage
from chainette.utils.user_errors import first_line

__all__ = ["VllmEngine"]

_log = logging.getLogger("chainette")

#: Concurrent requests until vLLM reports its limit.
_USUAL_CAPACITY = 256

#: The environment and the main module are the process's own: one engine starts at a time.
_starting = threading.Lock()

#: Errors of a starting child after which trying again may help.
_PASSING = ("out of memory", "free memory on device", "address already in use")


class VllmEngine(Engine):
    """`capacity` follows vLLM's `max_num_seqs`, and the number of requests of the lengths so far that fit its KV cache.

    Deterministic on a CPU in float32. Measured on SmolLM2-135M, under a grammar: greedy and seeded answers alone, again,
    and among 64 others.
    """

    options = VllmOptions
    remote = False
    exclusive = True
    package = "vllm"

    def __init__(self, config: EngineConfig) -> None:
        if not isinstance(config.options, VllmOptions):
            raise EngineConfigError(f"engine {config.name!r}: backend {config.backend!r} has no vllm options")
        self._config = config
        self._options: VllmOptions = config.options
        self._engine: Any = None
        self._children: list[BaseProcess] = []
        self._words: ChildWords | None = None
        self._tokenizing: ThreadPoolExecutor | None = None
        self._given_up = False
        self._chat: ChatTokens | None = None
        self._lora: Any = None
        self._details: dict[str, Any] = {}
        self._limit = 0
        self._seats = self.capacity = config.capacity or self._options.max_num_seqs or _USUAL_CAPACITY
        self._kv_tokens = 0
        self._numbers = itertools.count()
        self._answered, self._tokens = 0, 0
        self._schemas = AnswerSchemas()

    @classmethod
    def local_parts(cls, config: EngineConfig) -> Iterator[tuple[str, Path | bytes]]:
        options = config.options
        assert isinstance(options, VllmOptions)
        named = {"model": config.model, "tokenizer": config.tokenizer, "lora": options.lora}
        yield from ((setting, Path(name).expanduser()) for setting, name in named.items() if name is not None)
        if options.chat_template is not None:
            yield "chat_template", (template_text(options.chat_template) or "").encode()

    @classmethod
    def gpus(cls, config: EngineConfig) -> int:
        assert isinstance(config.options, VllmOptions)
        return 0 if config.gpu_ids else config.options.tensor_parallel_size or 1

    @classmethod
    def spread(cls, config: EngineConfig, gpus: int) -> EngineConfig:
        options = config.options
        assert isinstance(options, VllmOptions)
        if gpus <= 1 or options.tensor_parallel_size is not None or config.gpu_ids:
            return config
        return msgspec.structs.replace(config, options=msgspec.structs.replace(options, tensor_parallel_size=gpus))

    @property
    def dead(self) -> bool:
        return self._engine is not None and (bool(self._engine.errored) or not self._lives())

    def _lives(self) -> bool:
        return all(child.is_alive() for child in self._children)

    def revisions(self) -> dict[str, str]:
        """The commit a hub gave; a local folder has none."""
        return {"model": str(self._details["commit"])} if self._details.get("commit") else {}

    def describe(self) -> dict[str, Any]:
        return self._details

    # -- from closed to open, and back

    def obstacles(self) -> Iterator[str]:
        if find_spec("vllm") is None:
            yield MISSING
        yield from missing_files(self._config, self._options)

    async def open(self) -> None:
        self._given_up = False
        loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            self._given_up = True
            with anyio.CancelScope(shield=True):  # a load cannot be interrupted; it ends with its child
                while not loading.done():
                    self._kill_children()
                    await asyncio.wait([loading], timeout=0.1)
                loading.exception()
            raise

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if self._tokenizing is not None:
            self._tokenizing.shutdown(wait=False, cancel_futures=True)
            self._tokenizing = self._chat = None
        await asyncio.to_thread(self._unload, engine)

    def _load(self) -> None:
        """Blocks until the engine is ready. Hides its libraries' warnings, which do not concern our users."""
        with _starting, warnings.catch_warnings(action="ignore"):
            vllm = imported_vllm(self._config.name)
            from vllm.platforms import current_platform

            cpu = computes_on_cpu(self._config, vllm, current_platform)
            arguments = arguments_here(self._config, self._options, cpu=cpu)
            lora = lora_request(self._config, self._options)
            self._words = ChildWords(sys.stderr if passes_on() else None)
            before = set(_cores(()))
            # for its sockets, which vLLM does not delete
            ours = {PIPE: self._words.path, "VLLM_RPC_BASE_PATH": self._words.folder}
            environ = environment(self._config, self._options, os.environ, cpu=cpu) | ours
            try:
                with in_environment(environ), spawned_here():
                    self._engine = self._started(arguments, before)
            except BaseException:
                self._words.close()
                raise
            self._words.connected()
        self._settle(vllm, current_platform, lora)

    def _started(self, arguments: dict[str, Any], before: set[BaseProcess]) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._children = []
        finding = threading.Event()
        finder = threading.Thread(target=self._find_children, args=(before, finding), daemon=True)
        finder.start()
        try:
            if self._given_up:
                raise EngineUnavailable(f"engine {self._config.name!r} was given up while it started")
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**typed(arguments)))
        except Exception as error:
            raise self._failed_start(error) from error
        finally:
            finding.set()
            finder.join()
            self._children = _cores(before)

    def _find_children(self, before: set[BaseProcess], found: threading.Event) -> None:
        """Records child processes as they appear, so that an abandoned load can be ended."""
        while not found.wait(0.1):
            self._children = _cores(before)

    def _failed_start(self, error: Exception) -> EngineConfigError | EngineUnavailable:
        """A start that cannot succeed is a configuration error; a lack of memory may pass."""
        if isinstance(error, EngineUnavailable):
            return error
        said = self._words.last_error() if self._words is not None else ""
        reason = said or first_line(error)
        where = f"engine {self._config.name!r}: vllm cannot load {self._config.model}"
        killed = not said and "core initialization failed" in str(error)
        if killed or any(words in reason.lower() for words in _PASSING):
            return EngineUnavailable(f"{where}: {reason}")
        return EngineConfigError(f"{where}: {reason}")

    def _settle(self, vllm: Any, platform: Any, lora: Any) -> None:
        """Reads the values the rest of this class needs from the loaded engine."""
        # the EngineUnavailable already reports a dead child
        logging.getLogger("vllm.v1.engine.async_llm").setLevel(logging.CRITICAL)
        config = self._engine.vllm_config
        model, cache = config.model_config, config.cache_config
        dtype = str(model.dtype).removeprefix("torch.")
        self._lora = lora
        self.context = self._limit = int(model.max_model_len)
        self._kv_tokens = int(getattr(cache, "kv_cache_size_tokens", 0) or (cache.num_gpu_blocks or 0) * cache.block_size)
        self._seats = self.capacity = self._config.capacity or int(config.scheduler_config.max_num_seqs)
        self.deterministic = platform.is_cpu() and dtype == "float32"
        self._chat = ChatTokens(self._engine.get_tokenizer(), self._options.chat_template, self._config.name)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix=f"vllm-{self._config.name}")
        self._details = {
            "vllm": vllm.__version__,
            "platform": platform.device_type,
            "device": platform.get_device_name(),
            "commit": getattr(model.hf_config, "_commit_hash", None),
            "dtype": dtype,
            "max_model_len": self._limit,
            "max_num_seqs": int(config.scheduler_config.max_num_seqs),
            "kv_cache_tokens": self._kv_tokens,
            "prefix_caching": bool(cache.enable_prefix_caching),
        }
        self._try_parser()

    def _try_parser(self) -> None:
        """Raises EngineConfigError if vLLM has no such parser, or if the model's tokenizer lacks the tokens it looks for."""
        try:
            self._pieces()
        except Exception as error:
            raise EngineConfigError(
                f"engine {self._config.name!r}: reasoning_parser={self._options.reasoning_parser!r} does not fit "
                f"{self._config.model}: {first_line(error)}; leave it out for a model that does not think"
            ) from error

    def _unload(self, engine: Any) -> None:
        if engine is not None:
            engine.shutdown()
        self._kill_children()
        for child in self._children:
            child.join(10)
        if self._words is not None:
            self._words.close()
        del engine
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _kill_children(self) -> None:
        for child in self._children:
            if child.is_alive():
                child.kill()

    # -- requests

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        prompts = await self._encoded(requests)
        order = prefix_order(prompts) if self._options.enable_prefix_caching else range(len(prompts))
        tell = None if done is None else lambda index, completion: done(order[index], completion)
        found = await ask_all([self._one(requests[at], prompts[at]) for at in order], tell)
        by_request = dict(zip(order, found, strict=True))
        return [by_request[at] for at in range(len(requests))]

    async def stream(self, request: Request, tell: Tell) -> Completion:
        """See `Engine.stream`."""
        [prompt] = await self._encoded([request])
        return await self._one(request, prompt, tell)

    async def count_prompts(self, requests: Sequence[Request]) -> list[int] | None:
        """See `Engine.count_prompts`. If it is not open, transformers has to have the tokenizer on this machine."""
        if self._tokenizing is not None:
            prompts = await self._encoded(requests)
        else:
            template, trusted = self._options.chat_template, self._options.trust_remote_code
            prompts = await asyncio.to_thread(encoded_apart, self._config, template, requests, trusted=trusted)
        counted = [len(prompt) for prompt in prompts if not isinstance(prompt, str)]
        return counted if len(counted) == len(requests) else None

    async def _encoded(self, requests: Sequence[Request]) -> list[list[int] | str]:
        """The tokens of each prompt, or why there are none; off the event loop."""
        if self._engine is None or self._tokenizing is None or self._chat is None:
            raise EngineUnavailable(f"engine {self._config.name!r} (vllm) is not open")
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._chat.encode, requests)

    async def _one(self, request: Request, prompt: list[int] | str, tell: Tell | None = None) -> Completion:
        if isinstance(prompt, str):
            return Completion("", Finish.ERROR, error=prompt)
        if len(prompt) >= self._limit:
            return Completion("", Finish.TOO_LONG, error=too_long(len(prompt), self._limit))
        engine, began, pieces = self._engine, time.perf_counter(), self._pieces()
        try:
            output = await self._asked(engine, request, prompt, pieces, tell)
        except Exception as error:
            if engine.errored or not self._lives():
                raise self._died() from error
            return Completion("", Finish.ERROR, error=f"vllm: {first_line(error.__cause__ or error)}")
        if output.outputs[0].finish_reason == "abort":  # not by us: another process told the child to end
            raise self._died()
        return self._completion(request, output, pieces, len(prompt), time.perf_counter() - began)

    async def _asked(self, engine: Any, request: Request, prompt: list[int], pieces: ThinkingAnswer, tell: Tell | None) -> Any:
        """The last output, once `pieces` has the answer."""
        from vllm.inputs import tokens_input

        name = f"{request.label or 'request'}-{next(self._numbers)}"
        sampling = sampling_of(request, self._schemas.of(request), streams=tell is not None)
        output = None
        async for output in engine.generate(tokens_input(prompt), sampling, name, lora_request=self._lora):
            delta = pieces.take(output.outputs[0].text, output.outputs[0].token_ids)
            if tell is not None and (delta.text or delta.reasoning):
                tell(delta)
        return output

    def _died(self) -> EngineUnavailable:
        said = self._words.last_error() if self._words is not None else ""
        codes = ", ".join(f"{child.name} ended with code {child.exitcode}" for child in self._children if child.exitcode)
        return EngineUnavailable(f"engine {self._config.name!r} (vllm) died: {said or codes or 'it said nothing'}")

    def _completion(
        self, request: Request, output: Any, pieces: ThinkingAnswer, prompt_tokens: int, seconds: float
    ) -> Completion:
        stats = output.metrics
        queued = max(0.0, stats.scheduled_ts - stats.queued_ts) if stats is not None else 0.0
        cached = min(prompt_tokens, getattr(output, "num_cached_tokens", None) or 0)
        usage = Usage(1, prompt_tokens, pieces.tokens, seconds, queued, cached)
        self._learn(prompt_tokens + pieces.tokens)
        reasoning, text = pieces.whole()
        match output.outputs[0].finish_reason:
            case "stop":
                return Completion(text, Finish.STOP, reasoning, usage)
            case "length":
                by_limit = usage.completion_tokens >= request.sampling.max_tokens
                error = "" if by_limit else cut(usage, self._limit)
                return Completion(text, Finish.LENGTH, reasoning, usage, error)
            case "error":  # retryable, as vLLM says; a child that was told to end gives it before it aborts the others
                return Completion(
                    text, Finish.FAILED, reasoning, usage, "vllm could not compute the answer", cause=Cause.BROKEN
                )
            case reason:
                return Completion(text, Finish.ERROR, reasoning, usage, f"vllm ended the answer: {reason}")

    def _learn(self, tokens: int) -> None:
        """Estimates how many requests fit the KV cache from those seen so far."""
        self._answered, self._tokens = self._answered + 1, self._tokens + tokens
        self.capacity = max(1, min(self._seats, self._kv_tokens * self._answered // self._tokens))

    def _pieces(self) -> ThinkingAnswer:
        if self._options.reasoning_parser is None:
            return ThinkingAnswer()
        return thinking(self._options.reasoning_parser, self._engine.get_tokenizer())


def _cores(known: Collection[BaseProcess]) -> list[BaseProcess]:
    """vLLM's child processes, except known ones: other parts of this process may have children too."""
    found = multiprocessing.active_children()
    return [child for child in found if child.name.startswith("EngineCore") and child not in known]
