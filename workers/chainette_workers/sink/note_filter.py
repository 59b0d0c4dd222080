"""Notes that workers send a run's sink, as far as they can be true: they go to the log and to the hooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from chainette.core.plan import Plan
from chainette.io.rundir.chain_changes import different_models
from chainette.io.rundir.event_types import (
    AnswersDiscarded,
    EngineAdapted,
    EngineLoaded,
    EngineProbed,
    EngineReleased,
    Note,
    UnitRetried,
    UnitSplit,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerRefused,
)
from chainette.records import Usage

__all__ = ["NoteFilter"]

_N = TypeVar("_N", bound=Note)

_log = logging.getLogger("chainette")

#: Notes that are taken at once, and per second after that: a flood must not fill the disk.
_BURST, _RATE = 2000.0, 50.0

#: The most characters of a name and of a message.
_LONGEST_NAME, _LONGEST_MESSAGE = 200, 2000

_MOST = 2.0**53

#: The most adaptations of one engine.
_MOST_CHANGES = 32


@dataclass
class NoteFilter:
    """Passes on the notes that concern a plan, and drops all others; notes may get lost anyway."""

    plan: Plan
    clock: Callable[[], float] = time.monotonic
    _room: float = _BURST
    _refilled_at: float = field(default=0.0, init=False)
    _warned: set[str] = field(default_factory=set, init=False)

    def passing(
        self, notes: Iterable[Note], workers: Collection[str], origin: Callable[[str], Mapping[str, str]]
    ) -> Iterator[Note]:
        """`workers` are those in the log; `origin` gives the origin of an engine's model, as the log has it."""
        now = self.clock()
        self._room = min(_BURST, self._room + _RATE * (now - self._refilled_at))
        self._refilled_at = now
        for note in notes:
            passed = self._passed(note, workers, origin)
            if passed is not None and self._room >= 1:
                self._room -= 1
                yield passed

    def _passed(self, note: Note, workers: Collection[str], origin: Callable[[str], Mapping[str, str]]) -> Note | None:
        match note:
            case WorkerJoined(worker=worker) | WorkerLeft(worker=worker):
                return note if _is_name(worker) else None
            case WorkerLost(worker=worker):
                return note if worker in workers else None
            case WorkerRefused(worker=worker, reason=reason):
                return _changed(note, reason=reason[:_LONGEST_MESSAGE]) if _is_name(worker) else None
            case UnitRetried(node=node, engine=engine, unit=unit, message=message, delay=delay):
                fits = self._asks(node, engine) and len(unit) <= _LONGEST_MESSAGE and 0 <= delay <= _MOST
                return _changed(note, message=message[:_LONGEST_MESSAGE]) if fits and _is_count(note.root) else None
            case UnitSplit(node=node, unit=unit):
                fits = node in self.plan.stations and len(unit) <= _LONGEST_MESSAGE
                return note if fits and _is_count(note.root) else None
            case EngineAdapted(engine=engine, changes=changes):
                fits = len(changes) <= _MOST_CHANGES and all(_is_name(word) for pair in changes.items() for word in pair)
                return note if engine in self.plan.engines and fits else None
            case AnswersDiscarded(node=node, engine=engine, usage=usage) | EngineProbed(node=node, engine=engine, usage=usage):
                return note if self._asks(node, engine) and _is_sane(usage) else None
            case EngineReleased(engine=engine):
                return note if engine in self.plan.engines else None
            case EngineLoaded():
                return self._loaded(note, origin)

    def _asks(self, node: str, engine: str) -> bool:
        """Whether the plan has the node, and the node the engine if one is named."""
        return node in self.plan.nodes and engine in ("", *self.plan.nodes[node].engines)

    def _loaded(self, note: EngineLoaded, origin: Callable[[str], Mapping[str, str]]) -> EngineLoaded | None:
        """An engine of the plan, loaded from the same model as before; a worker with a different claim does not change the
        log."""
        config = self.plan.engines.get(note.engine)
        if config is None or (note.backend, note.model) != (config.backend, config.model) or not 0 <= note.seconds <= _MOST:
            return None
        known = origin(note.engine)
        if different := different_models(note.engine, known, note.identity):
            if note.engine not in self._warned:
                _log.warning("a worker says that %s; the log keeps the first", " and ".join(different))
            self._warned.add(note.engine)
            return _changed(note, identity=dict(known))
        return note


def _changed(note: _N, **fields: Any) -> _N:
    return msgspec.structs.replace(note, **fields)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable()


def _is_count(number: int) -> bool:
    return 0 <= number <= _MOST


def _is_sane(usage: Usage) -> bool:
    return all(0 <= value <= _MOST for value in msgspec.structs.astuple(usage))
