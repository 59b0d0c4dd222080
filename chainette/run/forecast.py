"""The requests a run would send, found without sending any: the input walks through the plan as far as answers are known.

An answer is known if it is durable in the run's own directory, or if an earlier run has it (`--reuse`). Rows stop where an
engine or a function would have to be asked; routes, loops and choices among candidates are decided as the run decides them.
One root is in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import anyio.to_thread

from chainette.core.durable import Durable, reasons_of
from chainette.core.flow import ROOT, frontier
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.engine.base import Engine, Request
from chainette.hooks import Hook, Laps
from chainette.io.inputs.roots import Root
from chainette.records import Row, Unit, declared_of, step_of
from chainette.run.blame import Evidence
from chainette.run.budget_reservation import estimated_tokens
from chainette.run.functions import take_stored
from chainette.run.process import fill
from chainette.run.shared_answers import QUESTIONS
from chainette.run.steps import Asking
from chainette.run.stored_answers import StoredAnswers
from chainette.run.unit_result import UnitResult
from chainette.utils.recent_values import Recent

__all__ = ["Forecast", "Prompts", "Walk"]

#: Requests of a step that are kept, evenly drawn, so that a tokenizer can count their prompts.
_KEPT = 256

_QUIET = Hook()


@dataclass
class Prompts:
    """The first requests of the rows of one step to one engine."""

    count: int = 0
    #: Bytes of their messages.
    size: int = 0
    #: Their tokens as budgets estimate them.
    estimated: int = 0
    #: All of them, or as many as are kept, each with the same chance.
    drawn: list[Request] = field(default_factory=list)
    _chance: Random = field(default_factory=lambda: Random(0))  # noqa: S311 - not a secret

    def add(self, request: Request) -> None:
        self.count += 1
        self.size += _size_of(request)
        self.estimated += estimated_tokens(request.messages)
        if len(self.drawn) < _KEPT:
            self.drawn.append(request)
        elif (place := self._chance.randrange(self.count)) < _KEPT:
            self.drawn[place] = request

    async def tokens(self, engine: Engine) -> float | None:
        """The tokens of all prompts by the engine's own tokenizer; None if it has none here. Prompts that are not kept are
        assumed to have as many tokens per byte as the others."""
        counted = await engine.count_prompts(self.drawn) if self.drawn else []
        if not counted:
            return None if counted is None or self.count else 0.0
        return sum(counted) * self.size / max(1, sum(map(_size_of, self.drawn)))


def _size_of(request: Request) -> int:
    """Bytes of the messages of a request."""
    return sum(len(message.content.encode()) for message in request.messages)


@dataclass
class Repeats:
    """Rows of a step whose request is that of an earlier row, as far as a run with `dedupe` remembers it."""

    rows: int = 0
    count: int = 0
    #: Of these, rows whose answer nobody has yet.
    asked: int = 0
    _questions: Recent = field(default_factory=lambda: Recent(QUESTIONS, 64 * QUESTIONS))

    def add(self, key: bytes, *, is_asked: bool) -> None:
        self.rows += 1
        if self._questions.get(key) is None:
            self._questions.put(key, b"")
        else:
            self.count += 1
            self.asked += is_asked


@dataclass
class Forecast:
    """The known part of a run, and the places after which it is not known."""

    #: Records of the input that were looked at.
    records: int = 0
    #: Station -> the rows that are asked there.
    asked: dict[str, Prompts] = field(default_factory=dict)
    #: Step -> rows whose answers earlier runs have.
    reused: Counter[str] = field(default_factory=Counter)
    #: Step -> rows whose answers the run itself has, for others with the same request.
    shared: Counter[str] = field(default_factory=Counter)
    #: Station -> requests that repeat themselves.
    repeats: dict[str, Repeats] = field(default_factory=dict)
    #: Node -> rows that wait there; fork with joins -> rows that wait for something inside it.
    waiting: Counter[str] = field(default_factory=Counter)


@dataclass
class Walk:
    """Walks roots through a plan, and adds their requests to a forecast."""

    plan: Plan
    #: By name, with the identity they will have; they need not be open.
    engines: Mapping[str, Engine]
    seed: int
    stored: StoredAnswers | None = None
    found: Forecast = field(default_factory=Forecast)

    async def through(self, roots: Iterable[Root], durable: Callable[[int], Durable | None]) -> Forecast:
        """The forecast for roots; `durable` has the outcomes of a root that are on the disk."""
        for root in roots:
            self.found.records += root.records
            kept = await anyio.to_thread.run_sync(durable, root.number)
            await self._walk(root, kept or Durable())
        return self.found

    async def _walk(self, root: Root, durable: Durable) -> None:
        looked: dict[str, set[str]] = {}
        while True:
            effects = frontier(self.plan, root.number, root.rows, durable)
            fresh = [(unit.node, rows) for unit in effects.units if (rows := [*_unseen(unit, looked)])]
            if not fresh:
                break
            for station, rows in fresh:
                await self._look(station, rows, durable)
        for unit in effects.units:
            self.found.waiting[step_of(unit.node)] += len(unit.rows)
        for scope in effects.scopes:
            self.found.waiting[scope.fork] += len(scope.base)

    async def _look(self, station: str, rows: Sequence[Row], durable: Durable) -> None:
        """Adds the known outcomes of rows at a station."""
        node = self.plan.stations[station]
        result = UnitResult(self.plan, node, _QUIET, stored=self.stored)
        match node.kind:
            case NodeKind.STEP:
                asking = Asking(self.plan, node, self.engines[node.engine], self.seed, _QUIET, Laps(), result, Evidence())
                prompts = self.found.asked.setdefault(station, Prompts())
                for request in await asking.requests(rows):
                    prompts.add(request)
            case NodeKind.APPLY:
                await take_stored(result, rows)
            case NodeKind.DECISION | NodeKind.PICK:
                await fill(result, rows, None)
        known = result.take(Unit(station, 0, "", ROOT, [*rows]))
        durable.add(node, known.outputs, reasons_of(known.rejected), known.dropped, known.escalated)
        if node.kind is NodeKind.STEP:
            self.found.reused[declared_of(node.id)] += sum(bool(output.reused_from) for output in known.outputs)
            self.found.shared[declared_of(node.id)] += known.shared
        if node.kind is NodeKind.STEP and node.samples == 1:  # candidates are never shared
            repeats, done = self.found.repeats.setdefault(station, Repeats()), {output.row_id for output in known.outputs}
            for row in rows:
                if key := result.keys.get(row.row_id):
                    repeats.add(key, is_asked=row.row_id not in done)


def _unseen(unit: Unit, looked: dict[str, set[str]]) -> Iterator[Row]:
    """The rows of a unit that were not looked at there."""
    seen = looked.setdefault(unit.node, set())
    for row in unit.rows:
        if row.row_id not in seen:
            seen.add(row.row_id)
            yield row
