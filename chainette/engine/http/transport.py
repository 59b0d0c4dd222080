"""Transport: sends requests to servers, shared by the HTTP backends.

A request goes to one of the engine's endpoints within a learned concurrency, is retried with the
same body if that can help within seconds, and ends as a completion. Only if no endpoint can be reached, or if
the engine refuses every request, it raises. Another module decides whether a failed request is itself at fault.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from chainette.engine.base import Completion, Finish
from chainette.engine.concurrent_requests import NotSent
from chainette.engine.config import EngineConfig
from chainette.engine.http.carrier import OnLine
from chainette.engine.http.client import Client, Reply
from chainette.engine.http.endpoints import BasePath, Endpoint, Pool, shown
from chainette.engine.http.error_replies import Failure, Fault, NoAnswer, completion_of, failure_of, shortened, words_of
from chainette.engine.http.http_options import HttpOptions
from chainette.engine.http.limiter import Limiter
from chainette.engine.http.retry_after import retry_after
from chainette.engine.http.timing import Policy, Timing, full_jitter
from chainette.errors import EngineRefused, EngineUnavailable
from chainette.records import Usage
from chainette.utils.backoff import backoff
from chainette.utils.gather import together
from chainette.utils.plurals import counted

__all__ = ["Listen", "Protocol", "Reader", "Transport"]

_log = logging.getLogger("chainette")

#: Failed readiness checks (some seconds) after which the wait is reported.
_TRIES_BEFORE_WARNING = 5
#: Seconds between readiness checks: the first pause, and the longest.
_CHECK_PAUSE = 0.2, 5.0
#: The most seconds for a question that is asked because the readiness request got no answer.
_LONGEST_HELLO = 60.0
#: The cost of a request before its first token, in tokens, so that short answers compare with long ones.
_FIXED_TOKENS = 16

#: Makes a completion from a body and the seconds it took.
#: Raises NoAnswer if the body is not an answer.
Reader = Callable[[bytes, float], Completion]

#: Called before each try of a streamed answer.
Listen = Callable[[], OnLine]


@dataclass(frozen=True)
class Protocol:
    """The differences between the servers the transport talks to."""

    ready_path: str
    ask_path: str
    #: The smallest question.
    hello: bytes
    #: The default number of concurrent requests.
    capacity: int
    #: The default endpoint.
    endpoint: str
    #: Advice if nothing answers at the start, one clause.
    start_hint: str
    #: Advice on a status that refuses every request, one clause.
    refusal_hint: Callable[[int], str]
    base_path: BasePath = str
    #: Host -> the environment variable of its API key, if the configuration names none.
    default_keys: Mapping[str, str] = field(default_factory=dict)


class _Slot(msgspec.Struct, frozen=True):
    """An endpoint that was taken for one try."""

    endpoint: Endpoint
    probe: bool
    sent_at: float
    #: Whether the request failed in an earlier `ask`: its next failure says nothing new about the endpoint.
    is_suspect: bool
    #: Whether it is tried again, after a failure in this `ask`.
    is_retry: bool


@dataclass
class _Tries:
    """The history of one request."""

    asked_at: float
    most: int
    #: The URL of the endpoint at which it failed last, without secrets; "" if it has not failed.
    avoid: str
    is_suspect: bool
    failed: int = 0


class Transport:
    """Sends the requests of one engine. Opened, used and closed on one event loop."""

    def __init__(self, config: EngineConfig, protocol: Protocol, timing: Timing, policy: Policy) -> None:
        assert isinstance(config.options, HttpOptions)
        self._config = config
        self._options = config.options
        self._protocol = protocol
        self._timing = timing
        self._policy = policy
        self._client = Client(config, policy.connect_timeout)
        self.capacity = config.capacity or protocol.capacity
        self.limiter = Limiter(self.capacity, timing.clock)
        self.pool = Pool(config.name, [], policy, timing)
        #: Whether the silence of all endpoints was reported.
        self._said_silence = False
        self._has_answered = False
        #: The last refusal, and when it came: requests that were waiting for their turn then are not sent.
        self._refusal: EngineRefused | None = None
        self._refused_at = 0.0

    def has_answered(self) -> bool:
        """Whether any request was ever answered."""
        return self._has_answered

    @property
    def declared(self) -> tuple[str, ...]:
        """The endpoints without secrets."""
        return tuple(shown(text, self._protocol.base_path) for text in self.endpoints)

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts of the endpoints; none before `open`."""
        return frozenset(endpoint.address.url.host or "" for endpoint in self.pool.endpoints)

    def obstacles(self) -> Iterator[str]:
        """See `Engine.obstacles`."""
        return self._client.obstacles(self.endpoints, self._protocol.base_path, self._protocol.default_keys)

    async def open(self) -> Reply | None:
        """Waits until an endpoint answers; returns its reply to the readiness request, None if it answers only questions.

        A refusal is an answer: some servers never list their models, and a key may be valid for questions only.

        Raises:
            EngineConfigError: an environment variable is missing, or an endpoint is not a URL.
            EngineUnavailable: nothing answered within the startup timeout.
        """
        await self.close()
        addresses = self._client.connect(self.endpoints, self._protocol.base_path, self._protocol.default_keys)
        self.pool = Pool(self._config.name, addresses, self._policy, self._timing)
        try:
            return await self._wait_until_ready()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Closes the connections; safe to repeat."""
        await self._client.close()

    async def ask(self, body: bytes, read: Reader, listen: Listen | None = None, avoid: str = "") -> Completion:
        """The server's completion for a body. With `listen`, each try gets a listener for its lines.

        Raises:
            EngineRefused: the server refuses every request.
            EngineUnavailable: no server can be reached.
        """
        tries = _Tries(self._timing.clock(), self._options.max_retries + 1, avoid, bool(avoid))
        result = await self._try(body, read, tries, listen() if listen is not None else None)
        return result if isinstance(result, Completion) else await self._try_again(body, read, tries, listen, result)

    async def _try_again(self, body: bytes, read: Reader, tries: _Tries, listen: Listen | None, failure: Failure) -> Completion:
        """The completion after a first failure. Its usage includes the unusable answers of all tries."""
        spent = failure.usage
        while True:
            if failure.fault is not Fault.UNREACHABLE or not self.pool.is_usable():
                tries.failed += 1
                if tries.failed >= tries.most or not failure.may_pass:
                    return self._given_up(tries, failure, spent)
                await self._pause(tries)
            result = await self._try(body, read, tries, listen() if listen is not None else None)
            if isinstance(result, Completion):
                return msgspec.structs.replace(result, usage=spent + result.usage)
            failure, spent = result, spent + result.usage

    def refusal(self, reply: Reply) -> EngineRefused:
        """The error for a status every request would get. Omits the text of a 401, which often quotes the key."""
        said = "" if reply.status == 401 else self._words(reply)
        location = self._client.hide(reply.headers.get("location", "")).partition("?")[0]
        moved = f" and points to {location}" if location else ""
        return EngineRefused(
            f"engine {self._config.name!r}: {reply.shown} answered {reply.status}{moved}{said and f' ({said})'}; "
            f"{self._protocol.refusal_hint(reply.status)}"
        )

    async def _try(self, body: bytes, read: Reader, tries: _Tries, on_line: OnLine | None) -> Completion | Failure:
        try:
            slot = await self._enter(tries)
        except asyncio.CancelledError as error:
            raise (error if tries.failed else NotSent(*error.args)) from None
        result: Completion | Failure | None = None
        try:
            seconds = self._options.request_timeout
            reply = await self._client.send(slot.endpoint, self._protocol.ask_path, body, seconds, on_line)
            result = self._judge(reply, read, self._timing.clock() - slot.sent_at)
            if isinstance(result, Completion):
                return msgspec.structs.replace(result, by=slot.endpoint.address.shown)
            tries.avoid = slot.endpoint.address.shown
            return result
        finally:
            self._leave(slot, result)

    async def _enter(self, tries: _Tries) -> _Slot:
        while True:
            await self.pool.ready(tries.asked_at)
            await self.limiter.acquire()
            if self._refusal is not None and self._refused_at > tries.asked_at:
                self.limiter.release()
                raise self._refusal
            taken = self.pool.take(tries.avoid)
            if taken is not None:
                return _Slot(*taken, self._timing.clock(), tries.is_suspect, tries.failed > 0)
            self.limiter.release()

    def _leave(self, slot: _Slot, result: Completion | Failure | None) -> None:
        """Gives the slot back and records the result; a cancelled or refused try teaches nothing."""
        match result:
            case None:
                self.pool.abandoned(slot.endpoint, slot.probe)
            case Failure():
                self._learn_failure(slot, result)
            case Completion():
                self._learn_answer(slot, result)
        self.limiter.release()

    def _learn_failure(self, slot: _Slot, failure: Failure) -> None:
        if failure.retry_after is not None:
            self.pool.hold(slot.endpoint, failure.retry_after)
        if slot.is_suspect and failure.fault is not Fault.UNREACHABLE:  # else a few such requests would eject a good endpoint
            self.pool.abandoned(slot.endpoint, slot.probe, alive=bool(failure.status))
            return
        if failure.is_overload:
            self.limiter.overloaded(slot.sent_at)
        if failure.is_answer:
            self.pool.answered(slot.endpoint, slot.probe, failure.words)
        elif slot.is_retry and not slot.probe and failure.fault is not Fault.UNREACHABLE:
            self.pool.abandoned(slot.endpoint, slot.probe, alive=bool(failure.status))  # the breaker counts requests, not tries
        else:
            self.pool.failed(slot.endpoint, slot.probe, failure.words, gone=failure.fault is Fault.UNREACHABLE)
            self._say_silence(failure)

    def _say_silence(self, failure: Failure) -> None:
        """Reports once per silence that requests wait, long before the patience ends."""
        if not self._said_silence and self.pool.is_silent():
            self._said_silence = True
            _log.warning(
                "engine %r does not answer: %s; its requests wait and are tried again", self._config.name, failure.words
            )

    def _learn_answer(self, slot: _Slot, completion: Completion) -> None:
        if completion.finish in (Finish.STOP, Finish.LENGTH):
            tokens = _FIXED_TOKENS + completion.usage.completion_tokens
            self.limiter.succeeded(slot.sent_at, completion.usage.seconds / tokens)
        self.pool.answered(slot.endpoint, slot.probe)
        self._said_silence, self._has_answered = False, True

    def _judge(self, reply: Reply | Failure, read: Reader, seconds: float) -> Completion | Failure:
        """The result of a reply for its request.

        Raises:
            EngineRefused: every request would be refused.
        """
        if isinstance(reply, Failure):
            return reply
        if 200 <= reply.status < 300:
            return self._read(reply, read, seconds)
        said = self._words(reply)
        completion = completion_of(reply.status, reply.data, said)
        if completion is not None:
            return completion
        words = f"{reply.shown} answered {reply.status}{said and f' ({said})'}"
        failure = failure_of(reply.status, reply.data, words, retry_after(reply.headers, self._timing.wall()))
        if failure is None:
            self._refusal, self._refused_at = self.refusal(reply), self._timing.clock()
            raise self._refusal
        return failure

    def _read(self, reply: Reply, read: Reader, seconds: float) -> Completion | Failure:
        try:
            completion = read(reply.data, seconds)
        except NoAnswer as error:
            said = shortened(self._client.hide(str(error)))
            words = f"{reply.shown} gave no usable answer ({said}: {self._words(reply)})"
            return Failure(Fault.BROKEN, words, usage=error.usage)
        if completion.error:
            completion = msgspec.structs.replace(completion, error=self._client.hide(completion.error))
        return completion

    def _given_up(self, tries: _Tries, failure: Failure, spent: Usage) -> Completion:
        """The completion of a request without a usable answer.

        Raises:
            EngineUnavailable: no endpoint can be reached.
        """
        words = failure.words if tries.failed == 1 else f"{failure.words}; given up after {counted(tries.failed, 'attempt')}"
        if failure.fault is Fault.UNREACHABLE:
            raise EngineUnavailable(f"engine {self._config.name!r}: {words}")
        hint = self._protocol.refusal_hint(failure.status) if failure.status else ""
        usage = spent if spent.requests else Usage(requests=1)
        return Completion("", Finish.FAILED, None, usage, words, tries.avoid, failure.cause, hint)

    async def _pause(self, tries: _Tries) -> None:
        """Waits before the next try."""
        policy = self._policy
        await self._timing.sleep(full_jitter(self._timing.random(), tries.failed, policy.backoff, policy.backoff_cap))

    async def _wait_until_ready(self) -> Reply | None:
        started, limit = self._timing.clock(), self._config.startup_timeout
        attempt = 0
        while True:
            attempt += 1
            left = max(0.1, limit - (self._timing.clock() - started))
            checks = await self._check_all(left)
            if ready := [check for check in checks if _is_up(check)]:
                return self._first_of(ready)
            if attempt == _TRIES_BEFORE_WARNING:
                _log.warning("engine %r is not ready: %s; trying for up to %g s", self._config.name, self._said(checks), limit)
            pause = backoff(attempt, *_CHECK_PAUSE)
            if self._timing.clock() - started + pause > limit:
                raise self._never_ready(checks, self._timing.clock() - started, attempt)
            await self._timing.sleep(pause)

    async def _check_all(self, seconds: float) -> list[Reply | Failure]:
        return await together([self._check(endpoint, seconds) for endpoint in self.pool.endpoints])

    async def _check(self, endpoint: Endpoint, seconds: float) -> Reply | Failure:
        """An endpoint's reply to the readiness request or, if that gets none, to a question."""
        longest = min(seconds / 3, self._policy.connect_timeout)
        check = await self._client.send(endpoint, self._protocol.ready_path, None, longest)
        if _is_up(check) or (isinstance(check, Failure) and check.fault is Fault.UNREACHABLE):
            return check
        longest = min(seconds / 2, _LONGEST_HELLO)
        answer = await self._client.send(endpoint, self._protocol.ask_path, self._protocol.hello, longest)
        return answer if _is_up(answer) else check

    def _first_of(self, ready: Sequence[Reply | Failure]) -> Reply | None:
        """The first reply to the readiness request; endpoints that are not ready are ejected until they answer."""
        replies = [check for check in ready if isinstance(check, Reply)]
        answered = [reply.endpoint for reply in replies]
        for endpoint in self.pool.endpoints:
            if endpoint not in answered:
                self.pool.eject(endpoint, "not ready when the engine opened")
        return next((reply for reply in replies if reply.shown.endswith(self._protocol.ready_path)), None)

    def _never_ready(self, checks: Sequence[Reply | Failure], seconds: float, attempts: int) -> EngineUnavailable:
        return EngineUnavailable(
            f"engine {self._config.name!r} did not become ready in {seconds:.0f} s ({counted(attempts, 'attempt')}): "
            f"{self._said(checks)}; {self._protocol.start_hint}"
        )

    def _said(self, checks: Sequence[Reply | Failure]) -> str:
        return "; ".join(check.words if isinstance(check, Failure) else self._answer(check) for check in checks)

    def _answer(self, reply: Reply) -> str:
        return f"{reply.shown} answered {reply.status} ({self._words(reply)})"

    def _words(self, reply: Reply) -> str:
        return shortened(self._client.hide(words_of(reply.data)))

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._config.endpoint or (self._protocol.endpoint,)


def _is_up(check: Reply | Failure) -> bool:
    """Whether a server answered: anything but a failure of its own."""
    return isinstance(check, Reply) and check.status < 500
