"""The queue as a process reaches it: calls take time, are lost, come late, and answer into nothing.

The queue itself may be emptied, go back to an earlier state, or lose a key.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import redis

from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.memory.memory_run import RunInMemory, Stream
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.queue_values import LEASE
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.redis.answer_lookups import Found, Question
from tests.simulation.virtual import is_thread
from tests.simulation.world import Dead, Fault, Process, World

__all__ = ["Line", "Server", "SimulatedBoard"]

#: Seconds until a call that gets no answer is given up.
_TIMEOUT = 2.0


@dataclass
class LookupsInMemory:
    """`Lookups` without Redis."""

    _asked: dict[RunKeys, list[Question]] = field(default_factory=dict)
    _found: dict[tuple[RunKeys, str], Found] = field(default_factory=dict)

    def ask(self, keys: RunKeys, question: Question) -> None:
        self._asked.setdefault(keys, []).append(question)

    def next(self, keys: RunKeys) -> Question | None:
        asked = self._asked.get(keys)
        return asked.pop(0) if asked else None

    def reply(self, keys: RunKeys, token: str, found: Found) -> None:
        self._found[keys, token] = found

    def found(self, keys: RunKeys, token: str) -> Found | None:
        return self._found.pop((keys, token), None)


@dataclass
class Server:
    """The queue that all processes share, and its past."""

    world: World
    queue: MemoryQueue = field(init=False)
    lookups: LookupsInMemory = field(default_factory=LookupsInMemory)
    #: Calls so far -> the state then, for those to which the schedule goes back.
    _past: dict[int, bytes] = field(default_factory=dict)
    _calls: int = 0
    #: Process -> until when it is a member, and its words.
    attending: dict[str, tuple[float, dict[str, str | int | float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = MemoryQueue(lambda: self.world.clock.now)
        self._returns = {max(1, at - int(fault.amount * 30)): at for (site, at), fault in self.world.faults.items()
                         if site == "queue" and fault.kind == "queue rolled back"}  # fmt: skip

    def fate(self) -> Fault | None:
        """The accident of the next call; the queue's own accidents happen at once."""
        fault = self.world.fate("queue")
        at = self.world.events["queue"]
        if (later := self._returns.get(at)) is not None:
            self._past[later] = pickle.dumps((self.queue._runs, self.queue._workers))
        match fault.kind if fault is not None else "":
            case "queue emptied":
                self.queue._runs.clear()
                self.queue._workers.clear()
                self.lookups = LookupsInMemory()
            case "queue rolled back":
                if at not in self._past:
                    return None
                self.queue._runs, self.queue._workers = pickle.loads(self._past.pop(at))
            case "key lost":
                assert fault is not None
                self._lose(fault)
            case _:
                return fault
        assert fault is not None
        self.world.happen(fault.kind)
        return None

    def _lose(self, fault: Fault) -> None:
        """One key is gone."""
        keys: list[Callable[[], object]] = []
        for name, run in self.queue._runs.items():
            keys += self._keys_of(name, run)
        keys += [partial(self.queue._workers.pop, me) for me in self.queue._workers]
        if keys:
            keys[int(fault.amount * len(keys)) % len(keys)]()

    def _keys_of(self, name: str, run: RunInMemory) -> list[Callable[[], object]]:
        keys: list[Callable[[], object]] = [
            partial(self.queue._runs.pop, name),
            partial(setattr, run, "stream", Stream("none")),
        ]
        named: list[dict[str, Any]] = [run.jobs, run.queues]
        for live in run.roots.values():
            named += [live.members, live.forks]
        keys += [partial(holder.pop, key) for holder in named for key in holder]
        return keys


class Line:
    """One process's connection: the calls of the queue or of the lookups, from a thread or from the event loop."""

    def __init__(self, process: Process, server: Server, part: Literal["queue", "lookups"] = "queue") -> None:
        self._process, self._server, self._part = process, server, part

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(getattr(self._server, self._part), name)

        def call(*arguments: Any, **keys: Any) -> Any:
            return self._call(lambda: method(*arguments, **keys))

        return call

    def _call(self, call: Callable[[], Any]) -> Any:
        process, world = self._process, self._process.world
        process.check()
        before, after = world.rng.random(), world.rng.random()
        if before < 0.4:
            self._pass(0.005 * before)
        fault = self._server.fate()
        if fault is None:
            found = call()
            if after < 0.2:
                self._pass(0.01 * after)
            process.check()
            return found
        world.happen(fault.kind)
        match fault.kind:
            case "request lost":
                self._give_up()
            case "request late":
                asyncio.get_running_loop().call_later(_TIMEOUT + 8 * fault.amount, self._late, call)
                self._give_up()
            case "reply lost":
                call()
                self._give_up()
            case "killed before a call":
                process.kill()
            case "killed after a call":
                call()
                process.kill()
        raise Dead(process.name)

    def _late(self, call: Callable[[], Any]) -> None:
        """The queue gets a call its caller has given up; nobody hears its answer."""
        try:
            call()
        except Exception as error:
            if not isinstance(error, redis.RedisError) and type(error).__name__ not in ("Lost", "Cancelled", "BadMessage"):
                raise

    def _give_up(self) -> None:
        self._pass(_TIMEOUT)
        raise redis.TimeoutError("no answer")

    def _pass(self, seconds: float) -> None:
        if is_thread():
            self._process.world.clock.sleep(seconds)


class SimulatedBoard:
    """`Board` over a server."""

    def __init__(self, process: Process, server: Server) -> None:
        self._process, self._server = process, server
        self.lookups = Line(process, server, "lookups")

    def run(self, run: str) -> RunInfo | None:
        self._process.check()
        return next((info for info in self._server.queue.runs() if info.run == run), None)

    def live(self, _run: str) -> None:
        return None

    def members(self) -> dict[str, Member]:
        self._process.check()
        now = self._server.world.clock.now
        self._server.attending = {me: held for me, held in self._server.attending.items() if held[0] > now}
        found = {
            me: Member.read({name.encode(): str(word).encode() for name, word in words.items()})
            for me, (_, words) in self._server.attending.items()
        }
        return self._server.queue.workers() | found

    def revive(self, _run: str) -> bool:
        return False

    def beat(self, me: str, fields: Mapping[str, str | int | float]) -> None:
        self._process.check()
        self._server.attending[me] = (self._server.world.clock.now + LEASE, dict(fields))

    def leave(self, me: str) -> None:
        self._process.check()
        self._server.attending.pop(me, None)

    def say(self, run: str, fields: Mapping[str, str | int | float]) -> None:
        self._process.check()
        if (found := self._server.queue._runs.get(run)) is not None:
            found.fields = found.fields | {name: str(value) for name, value in fields.items()}
