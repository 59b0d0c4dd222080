"""Why a request got no answer: because of its row, or because of the engine (SEMANTICS; PROTOCOL g to i).

One request shows nothing. A row is at fault if its requests failed five times while the engine answered others of
the same step, or a probe. All evidence is from this process, except the number of failures: it travels with a row from worker
to worker.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Protocol, TypeVar

import anyio

from chainette.engine.base import Cause, Completion, Engine, Request
from chainette.engine.probe import TAKEN_UP, probe_of
from chainette.errors import DeclarationRefused, EngineRefused, EngineUnavailable
from chainette.records import Usage

__all__ = ["FAILURES", "Evidence"]

T = TypeVar("T")

#: Failures of a row, and answers to others since the first of them, after which it is rejected.
FAILURES, _ANSWERS = 5, 5

#: Suspects a process remembers; the evidence about one that it forgets, since the row may be with another worker, begins anew.
_MOST_SUSPECTS = 1 << 14

#: Failures that a server under load gives to any request count only if fewer than this share of the others failed.
_SHARE = 0.25

#: Seconds for which the result of a probe serves all rows.
_PROBE_SERVES = 30.0

#: Seconds without requests to an engine that refuses a step. Its run ends, or other workers serve it.
_REFUSAL_STANDS = 300.0

#: Seconds without any answer after which requests in flight say nothing more.
_SILENCE = 60.0

#: Requests that go ahead of a step's others, and the seconds these wait for an answer to them.
_AHEAD, _AHEAD_SECONDS = 1, 2.0


class Pulse(Protocol):
    """When an engine last answered; a lane is one."""

    answered_at: float

    @property
    def clock(self) -> Callable[[], float]: ...

    def succeed(self) -> None:
        """The engine answered."""


@dataclass
class _Pulse:
    clock: Callable[[], float] = monotonic
    answered_at: float = -inf

    def succeed(self) -> None:
        self.answered_at = self.clock()


@dataclass(slots=True)
class _Suspect:
    """A row whose request failed here, and the evidence at its first failure."""

    answers: dict[str, int]
    failures: int
    #: The endpoint that failed it last.
    by: str
    own: int = 1
    #: Whether a probe had been answered shortly before its last request.
    proven: bool = False


@dataclass(frozen=True)
class _Probe:
    at: float
    #: Why it got no answer; "" if it got one.
    words: str


@dataclass
class Evidence:
    """Results of the requests of one step to one engine, as far as this process saw them."""

    lane: Pulse = field(default_factory=_Pulse)
    #: The usage of probes that is not in the log yet.
    spent: Usage = field(default_factory=Usage)
    #: Adaptations of the declaration to the engine, and those already in the log.
    adaptations: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    #: Endpoint -> requests it answered.
    answers: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    #: Those that failed last are at the end.
    _suspects: OrderedDict[str, _Suspect] = field(default_factory=OrderedDict)
    #: Rows in flight that have not failed.
    _in_flight: set[str] = field(default_factory=set)
    #: The time since which some of them are.
    _waiting_since: float = 0.0
    _probing: anyio.Lock = field(default_factory=anyio.Lock)
    _probe: _Probe | None = None
    #: The last request that failed or was refused.
    _example: Request | None = None
    _gate: anyio.Event = field(default_factory=anyio.Event)
    _ahead: bool = False
    _refusal: EngineRefused | None = None
    _refused_at: float = 0.0
    #: The sink the run had then.
    _sink: str = ""
    _reported: EngineRefused | None = None

    # -- the first requests of a step

    @property
    def is_accepted(self) -> bool:
        """Whether the engine took up any request of the step."""
        return bool(self.answers)

    def ahead_of(self, asks: Sequence[T], engine: Engine) -> Sequence[T]:
        """The asks to send first: a server that may refuse the step's declaration gets only a few requests until one is
        answered.

        Raises:
            EngineRefused: it refused the step a short while ago.
        """
        if self._refusal is not None:
            if self.lane.clock() - self._refused_at <= _REFUSAL_STANDS:
                raise self._refusal
            self._retract()
        if self._gate.is_set() or not engine.may_refuse:
            return asks
        first = [] if self._ahead else asks[:_AHEAD]
        self._ahead = True
        return first

    async def opened(self) -> None:
        """Waits a little until a request of the step is answered: a refusal comes soon, an answer may take long.

        Raises:
            EngineRefused: the engine refuses the step.
        """
        with anyio.move_on_after(_AHEAD_SECONDS):
            await self._gate.wait()
        if self._refusal is not None:
            raise self._refusal

    def open(self) -> None:
        """Lets all requests go."""
        self._gate.set()

    def refuse(self, error: EngineRefused) -> None:
        """The engine refuses the step, whatever the row: nothing more is asked for a while."""
        self._refusal, self._refused_at = error, self.lane.clock()
        self._gate.set()

    def is_news(self, error: EngineRefused) -> bool:
        """Whether this refusal is new; it is so only once."""
        if error is self._reported:
            return False
        self._reported = error
        return True

    def follow(self, sink: str) -> None:
        """The run has this sink now. If the sink is another one, the run was resumed, and its engine is asked again."""
        if sink != self._sink and self._refusal is not None:
            self._retract()
        self._sink = sink

    def _retract(self) -> None:
        self._refusal, self._gate, self._ahead, self._probe = None, anyio.Event(), False, None

    # -- results of requests

    def asked(self, rows: Iterable[str], failed: Container[str] = ()) -> None:
        """Their requests are on the way. Those in `failed` have failed before, maybe in another process."""
        proven = self._has_answered_probe()
        if not self._in_flight:
            self._waiting_since = self.lane.clock()
        for row in rows:
            suspect = self._suspects.get(row)
            if suspect is not None:
                suspect.proven = proven
            elif row not in failed:
                self._in_flight.add(row)

    def cancelled(self, rows: Iterable[str]) -> None:
        """Their requests ended without an answer or a failure."""
        self._in_flight.difference_update(rows)

    def answered(self, row: str, completion: Completion) -> None:
        """The engine is there; if it took the request up, it serves the step too."""
        self._in_flight.discard(row)
        self._suspects.pop(row, None)
        self.lane.succeed()
        if completion.finish in TAKEN_UP:
            self.answers[completion.by] += 1
            self._gate.set()

    def refused(self, request: Request) -> None:
        """The request was refused before the step had any answer."""
        self._example = request

    def failed(self, row: str, request: Request, completion: Completion) -> bool:
        """Records a failure of a row; returns whether it counts."""
        self._in_flight.discard(row)
        self._example = request
        self.failures += 1
        suspect = self._suspects.get(row)
        if suspect is None:
            self._suspects[row] = _Suspect(dict(self.answers), self.failures, completion.by)
            if len(self._suspects) > _MOST_SUSPECTS:
                self._suspects.popitem(last=False)
            return True
        self._suspects.move_to_end(row)
        suspect.own, suspect.by = suspect.own + 1, completion.by
        return completion.cause is not Cause.BUSY or suspect.proven or self._is_rare(suspect)

    def convicts(self, row: str, failures: int) -> bool:
        """Whether a row is at fault after this many failures that count; if it is, the case is closed."""
        suspect = self._suspects[row]
        others = self.answers[suspect.by] - suspect.answers.get(suspect.by, 0)
        guilty = failures >= FAILURES and (others >= _ANSWERS or suspect.proven)
        if guilty:
            del self._suspects[row]
        return guilty

    def is_due(self, tries: int) -> bool:
        """Whether only a probe can show if a row with so many failures is at fault."""
        return tries >= FAILURES and self.is_quiet

    @property
    def is_quiet(self) -> bool:
        """Whether every other request in flight has failed before, or none was answered for a while."""
        return not self._in_flight or self.lane.clock() - max(self.lane.answered_at, self._waiting_since) > _SILENCE

    def _is_rare(self, suspect: _Suspect) -> bool:
        """Whether few other requests failed since the row first did."""
        answered = self.answers.total() - sum(suspect.answers.values())
        failed = self.failures - suspect.failures - (suspect.own - 1)
        return failed < _SHARE * (failed + answered) or not failed

    # -- the probe

    def _has_answered_probe(self) -> bool:
        return self._probe is not None and not self._probe.words and self._is_fresh(self._probe)

    def _is_fresh(self, probe: _Probe) -> bool:
        return self.lane.clock() - probe.at <= _PROBE_SERVES

    async def probe(self, engine: Engine, name: str) -> None:
        """Asks a fixed question the way the step asks. One probe at a time; its result serves all rows for a while.

        Raises:
            EngineUnavailable: it got no answer either.
            DeclarationRefused: the engine refuses the step, whatever the row.
            EngineRefused: the engine refuses everybody.
        """
        async with self._probing:
            if self._probe is None or not self._is_fresh(self._probe):
                self._probe = await self._ask(engine, name)
        if self._probe.words:
            raise EngineUnavailable(f"engine {name!r}: {self._probe.words}; it does not answer a fixed question either")

    async def _ask(self, engine: Engine, name: str) -> _Probe:
        assert self._example is not None
        try:
            [completion] = await engine.generate([probe_of(self._example)])
        except EngineRefused as error:
            self.refuse(error)
            raise
        except EngineUnavailable as error:
            return _Probe(self.lane.clock(), str(error).removeprefix(f"engine {name!r}: "))
        self.spent += completion.usage
        if completion.finish in TAKEN_UP:
            self.lane.succeed()
            self.answers[completion.by] += 1
            self._gate.set()
        elif completion.is_refusal:
            words = "; ".join(filter(None, (completion.error, completion.hint)))
            refusal = DeclarationRefused(f"engine {name!r} refuses every request of this step: {words}")
            self.refuse(refusal)
            raise refusal
        return _Probe(self.lane.clock(), "" if completion.finish in TAKEN_UP else completion.error or "no answer")
