"""The queue in memory and the Lua scripts, side by side: the same random program of calls has the same replies and leaves
the same state, so that a property that was simulated with one holds for the other.

Time is the test's: leases, delays and turns end when the program says that time passes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from chainette.core.flow import frontier
from chainette.core.plan import Plan
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys, rq_queue
from chainette.fleet.protocol.messages import BadMessage, RootRecord
from chainette.fleet.protocol.queue_values import ANCHOR, Cancelled, Claim, Drain, Entry, Lost
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.io.rundir.event_types import EngineReleased
from chainette.records import CHAIN_INPUT, Outcome, Reason, Rejection, Row, Unit, row_order
from chainette.run.process import poisoned
from tests.support.fleet import forked, straight
from tests.support.outcomes import process
from tests.support.tools import many
from tests.support.twins import Picture, of_memory, of_redis, pass_time
from tests.support.valkey import Database

T = TypeVar("T")

WORKERS = ("w0", "w1", "w2")
TEXTS = ("a", "xy", "", "abc")


@cache
def plan_of(run: str) -> Plan:
    return straight() if run == "run-a" else forked()


@dataclass
class InRun:
    """The knowledge of one run's callers, and their positions in each queue."""

    name: str
    epoch: int = 0
    owner: str = "owner-1"
    positions: list[tuple[str, str]] = field(default_factory=list)
    noted: list[str] = field(default_factory=lambda: ["0-0", "0-0"])
    #: Roots done that were read and not acknowledged.
    done: list[int] = field(default_factory=list)

    @property
    def keys(self) -> RunKeys:
        return RunKeys(self.name, self.epoch)

    @property
    def queues(self) -> list[str]:
        plan = plan_of(self.name)
        return [self.keys.queue(plan.engine_of(name), name) for name in sorted(plan.depths, key=lambda n: -plan.depths[n])]


@dataclass
class Known:
    """A claim as a worker got it from either queue; it stays known when it has ended."""

    me: str
    claims: list[Claim]

    @property
    def unit(self) -> Unit:
        return self.claims[0].unit


def op(weight: int = 1, **arguments: st.SearchStrategy[Any]) -> Callable[[T], T]:
    """Marks a call that programs consist of, `weight` times as often as others."""

    def mark(method: T) -> T:
        setattr(method, "op", (weight, arguments))  # noqa: B010
        return method

    return mark


class Twins:
    """Every rule calls both queues alike and compares their replies; after each, their whole state is compared."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.client.flushall()
        self.now = 1000.0
        self.memory = MemoryQueue(lambda: self.now)
        self.queues: list[LeasedQueue] = [self.memory, FleetQueue(self.client)]
        self.runs = [InRun("run-a"), InRun("run-b")]
        self.known: list[Known] = []
        self.tokens = 0
        self.begin()
        self.agree()

    def nothing(self) -> None:
        """The call of which a shrunk program is full."""

    # -- asking both

    def token(self) -> str:
        self.tokens += 1
        return f"t{self.tokens}"

    def both(self, call: Callable[[LeasedQueue, int], T], view: Callable[[T], object] = lambda found: found) -> list[T]:
        """Calls both queues; [] if both refuse alike."""
        said, found = [], []
        for index, queue in enumerate(self.queues):
            try:
                found.append(call(queue, index))
                said.append(view(found[-1]))
            except (Lost, Cancelled, BadMessage, ValueError) as error:
                said.append(type(error).__name__)
        assert said[0] == said[1], f"in memory {said[0]}, on Redis {said[1]}"
        return found

    # -- runs

    def begin(self) -> None:
        for run in self.runs:
            self.install_epoch(run, 12, 4)
        for me in WORKERS[:2]:
            self.beat(me, 450.0, "a")

    def install_epoch(self, run: InRun, window: int, batch: int, barred: str = "") -> None:
        fields: dict[str, str | int] = {"window": window, "batch_size": batch, "seed": 7}
        fields |= {"barred": barred} if barred else {}
        anchor = f"anchor-{run.epoch}"
        if self.both(lambda queue, _: queue.install(run.name, run.epoch, run.owner, anchor, run.queues, fields)):
            run.positions, run.done = [(ANCHOR, anchor)] * 2, []

    @op(
        which=st.integers(0, 1),
        by=st.sampled_from([1, 1, 1, 0, -1]),
        owner=st.sampled_from(["owner-1", "owner-2"]),
        window=st.sampled_from([4, 12]),
        batch=st.sampled_from([3, 4, 100]),
        barred=st.integers(0, 15),
    )
    def install(self, which: int, by: int, owner: str, window: int, batch: int, barred: int) -> None:
        run = self.runs[which]
        names = [name for index, name in enumerate(run.queues) if barred == index]
        before = run.epoch, run.owner, run.positions, run.done
        run.epoch, run.owner = max(0, run.epoch + by), owner
        self.install_epoch(run, window, batch, " ".join(names))
        if self.memory._runs.get(run.name) is None or self.memory._runs[run.name].keys.epoch != run.epoch:
            run.epoch, run.owner, run.positions, run.done = before

    @op(which=st.integers(0, 1), owner=st.sampled_from(["owner-1", "owner-2"]), late=st.booleans(), wrong=st.booleans())
    def attach(self, which: int, owner: str, late: bool, wrong: bool) -> None:
        run = self.runs[which]
        epoch = max(0, run.epoch - late)
        tokens = ["wrong" if wrong else position[1] for position in run.positions]
        if self.both(lambda queue, n: queue.attach(run.name, epoch, owner, (run.positions[n][0], tokens[n]))):
            run.owner = owner

    @op(which=st.integers(0, 1), state=st.sampled_from(["running", "paused", "running", "running", "cancelled"]))
    def set_state(self, which: int, state: str) -> None:
        self.both(lambda queue, _: queue.set_state(self.runs[which].name, state, f"why {state}"))

    @op(which=st.integers(0, 1), of_another=st.booleans(), chosen=st.integers(0, 255))
    def bar(self, which: int, of_another: bool, chosen: int) -> None:
        run = self.runs[which]
        owner = "another" if of_another else run.owner
        names = [name for index, name in enumerate(run.queues) if chosen >> index & 1]
        self.both(lambda queue, _: queue.bar(run.keys, owner, names))

    @op(which=st.integers(0, 1), by=st.sampled_from([0, 0, 1]), of_another=st.booleans(), seldom=st.integers(0, 4))
    def close(self, which: int, by: int, of_another: bool, seldom: int) -> None:
        run = self.runs[which]
        if seldom:
            return
        owner = "another" if of_another else run.owner
        self.both(lambda queue, _: queue.close(run.name, run.epoch + by, owner, run.queues))

    # -- roots

    @op(
        4,
        which=st.integers(0, 1),
        texts=st.lists(st.sampled_from(TEXTS), max_size=4),
        bad=st.integers(0, 1),
        by=st.sampled_from([0, 0, 0, 0, 1]),
        late=st.sampled_from([0, 0, 0, 1]),
    )
    def admit(self, which: int, texts: list[str], bad: int, by: int, late: int) -> None:
        run, plan, token = self.runs[which], plan_of(self.runs[which].name), self.token()
        number = self.queues[0].progress(run.keys).cursor + by
        rows = [
            Row(str(4 * number + index), {CHAIN_INPUT: json.dumps({"text": text}).encode()}) for index, text in enumerate(texts)
        ]
        rejected = [Rejection(f"{number}~{index}", CHAIN_INPUT, Reason.INVALID_INPUT, "bad", 0, "{", 1) for index in range(bad)]
        record, keys = RootRecord(rows, len(rows) + bad), RunKeys(run.name, max(0, run.epoch - late))
        self.both(
            lambda queue, _: queue.admit(keys, plan, number, number, record, rejected, frontier(plan, number, rows), token)
        )

    @op(which=st.integers(0, 1), by=st.sampled_from([0, 0, 1]))
    def end_of_input(self, which: int, by: int) -> None:
        run = self.runs[which]
        total = self.queues[0].progress(run.keys).cursor + by
        self.both(lambda queue, _: queue.end_of_input(run.keys, total))

    @op(2, which=st.integers(0, 1), late=st.sampled_from([0, 0, 1]))
    def look(self, which: int, late: int) -> None:
        """Everything that can be asked without changing anything."""
        run, keys = self.runs[which], RunKeys(self.runs[which].name, max(0, self.runs[which].epoch - late))
        self.both(
            lambda queue, _: queue.progress(keys),
            lambda found: (found, bool(found.damaged)) if not found.damaged else "damaged",
        )
        self.both(lambda queue, _: [(info.run, info.epoch, info.state, info.reason, info.window) for info in queue.runs()])
        self.both(lambda queue, _: queue.waiting(run.queues))
        self.both(lambda queue, _: queue.is_held(keys))
        self.both(lambda queue, _: queue.workers())
        self.both(lambda queue, _: [queue.is_asked_to_stop(me) for me in WORKERS])
        for root in range(4):
            self.look_at(keys, root)

    def look_at(self, keys: RunKeys, root: int) -> None:
        self.both(lambda queue, _: queue.record(keys, root))
        self.both(lambda queue, _: queue.missing(keys, [root]), bool)

    # -- workers

    @op(2, me=st.sampled_from(WORKERS), lease=st.sampled_from([50.0, 450.0, 4500.0]), engines=st.sampled_from(["a", "b"]))
    def beat(self, me: str, lease: float, engines: str) -> None:
        with self.in_any_order():
            self.both(lambda queue, _: queue.beat(me, {"engines": engines}, lease))

    @op(me=st.sampled_from(WORKERS))
    def leave(self, me: str) -> None:
        with self.in_any_order():
            self.both(lambda queue, _: queue.leave(me))

    @op(2, seconds=st.sampled_from([10.0, 100.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        pass_time(self.client, seconds, [name for run in self.runs for name in run.queues])

    @op(2)
    def reap(self) -> None:
        with self.in_any_order():
            self.both(lambda queue, _: queue.reap(), sorted)

    @op(6, me=st.sampled_from(WORKERS))
    def lose(self, me: str) -> None:
        """The usual fate of a worker: its lease ends, and somebody sees it."""
        with self.in_any_order():
            self.both(lambda queue, _: queue.beat(me, {}, 5.0))
        self.wait(10.0)
        self.reap()

    @op(3, which=st.integers(0, 1), me=st.sampled_from(WORKERS), taken=st.lists(st.integers(1, 15), min_size=1, max_size=3))
    def scatter(self, which: int, me: str, taken: list[int]) -> None:
        """A unit is committed in parts, which wait at the next node."""
        self.work(which, me, 0, 0)
        before = len(self.known)
        self.claim(me, 0, alone=True, ahead=False, order=1 - 2 * which, deepest=False)
        for chosen in taken if len(self.known) > before else ():
            self.commit(0, chosen, 1, part=True)

    @op(2, me=st.sampled_from(WORKERS), times=st.integers(1, 4), lives=st.booleans())
    def die(self, me: str, times: int, lives: bool) -> None:
        """Workers claim a unit and lose their lease, one after the other; they may come back."""
        for _ in range(times):
            self.beat(me, 450.0, "a")
            self.claim(me, 0, alone=True, ahead=False, order=1, deepest=True)
            self.lose(me)
            if lives:
                self.beat(me, 450.0, "a")

    @op(engine=st.sampled_from([None, "a", "b"]))
    def ask_to_stop(self, engine: str | None) -> None:
        self.both(lambda queue, _: queue.ask_to_stop(engine), sorted)

    @op(2, me=st.sampled_from(WORKERS), forgotten=st.integers(0, 7))
    def reconcile(self, me: str, forgotten: int) -> None:
        mine = [known for known in self.known if known.me == me]
        told = [known for index, known in enumerate(mine[-3:]) if not forgotten >> index & 1]
        with self.in_any_order():
            self.both(lambda queue, n: queue.reconcile(me, [known.claims[n] for known in told]))

    # -- units

    @op(
        12,
        me=st.sampled_from(WORKERS),
        room=st.sampled_from([0, 4, 8, 100]),
        alone=st.booleans(),
        ahead=st.booleans(),
        order=st.sampled_from([1, -1]),
        deepest=st.booleans(),
    )
    def claim(self, me: str, room: int, alone: bool, ahead: bool, order: int, deepest: bool) -> None:
        places = [(run.name, name, room) for run in self.runs[::order] for name in run.queues[:: 1 if deepest else -1]]
        token = self.token()
        found = self.both(lambda queue, _: queue.claim_rows(me, token, places, alone=alone, ahead=ahead and not alone), seen)
        if found and not any(isinstance(one, Drain) for one in found):
            self.known += [Known(me, list(pair)) for pair in zip(*found, strict=True)]

    @op(4, which=st.integers(0, 1), me=st.sampled_from(WORKERS[:2]), times=st.integers(1, 8), room=st.sampled_from([0, 8]))
    def work(self, which: int, me: str, times: int, room: int) -> None:
        """The usual work of workers; the rest of the program then finds a run with units in it."""
        run, order = self.runs[which], 1 - 2 * which
        self.beat(me, 450.0, "a")
        if self.queues[0].progress(run.keys).cursor < 3:
            self.admit(which, ["a", "xy", "", "abc"], 0, 0, 0)
        for _ in range(times):
            before = len(self.known)
            self.claim(me, room, alone=True, ahead=False, order=order, deepest=True)
            for index in range(before, len(self.known)):
                self.commit(len(self.known) - 1 - index, 0, 1, part=False)

    @op(10, which=st.integers(0, 5), chosen=st.integers(0, 15), times=st.sampled_from([1, 1, 2]), part=st.booleans())
    def commit(self, which: int, chosen: int, times: int, part: bool) -> None:
        known = self.pick(which)
        if known is None:
            return
        claim, plan, token = known.claims[0], plan_of(known.claims[0].run), self.token()
        ids = [row.row_id for row in claim.unit.rows]
        rows = {row_id for index, row_id in enumerate(ids) if chosen >> index & 1} if part else None
        pieces = [one.piece(rows) for one in known.claims]
        if part and not pieces[0].rows:
            return
        outcomes = [outcome_of(plan, piece) for piece in pieces]
        assert outcomes[0] == outcomes[1]
        for _ in range(times):
            done = self.both(lambda queue, n: queue.commit(known.claims[n], known.me, plan, outcomes[n], token, rows))
        rests = [one.rest(rows) for one in known.claims]
        if done and done[0] and rests[0] is not None:
            self.known.append(Known(known.me, [rest for rest in rests if rest is not None]))

    @op(7, which=st.integers(0, 5), how=st.sampled_from(["start", "release", "fail now", "fail", "bury", "split", "poison"]))
    def end(self, which: int, how: str) -> None:
        known, message = self.pick(which), "why"
        if known is None:
            return
        plan, token = plan_of(known.claims[0].run), self.token()
        calls: dict[str, Callable[[LeasedQueue, Claim], bool]] = {
            "start": lambda queue, claim: queue.start(claim, known.me),
            "release": lambda queue, claim: queue.release(claim, known.me),
            "fail now": lambda queue, claim: queue.fail(claim, known.me, 0.0, message),
            "fail": lambda queue, claim: queue.fail(claim, known.me, 200.0, message),
            "bury": lambda queue, claim: queue.bury(claim, known.me, message),
            "split": lambda queue, claim: queue.split(claim, known.me, plan),
            "poison": lambda queue, claim: queue.commit(claim, known.me, plan, poisoned(plan, claim.piece()), token),
        }
        if (known.unit.node in plan.forks and how in ("split", "poison")) or (how == "split" and len(known.unit.rows) < 2):
            return
        self.both(lambda queue, n: calls[how](queue, known.claims[n]))

    def pick(self, which: int) -> Known | None:
        """One of the latest claims, if there is any; older ones are seldom worth a call."""
        return self.known[-1 - which] if which < len(self.known) else None

    # -- results and notes

    @op(3, which=st.integers(0, 1), late=st.sampled_from([0, 0, 0, 1]))
    def read(self, which: int, late: int) -> None:
        run, keys = self.runs[which], RunKeys(self.runs[which].name, max(0, self.runs[which].epoch - late))
        if not run.positions:
            return
        found = self.both(lambda queue, n: queue.read(keys, run.positions[n]), entries)
        for index, entries_ in enumerate(found):
            if entries_:
                run.positions[index] = (entries_[-1].id, entries_[-1].token)
        run.done += [entry.root for entry in found[0] if entry.done] if found else []

    @op(
        3,
        which=st.integers(0, 1),
        of_another=st.sampled_from([False, False, True]),
        early=st.sampled_from([False, False, True]),
    )
    def ack(self, which: int, of_another: bool, early: bool) -> None:
        run = self.runs[which]
        owner = "another" if of_another else run.owner
        roots = [] if early else run.done
        if not run.positions:
            return
        taken = self.both(lambda queue, n: queue.ack(run.keys, owner, run.positions[n], roots))
        run.done = run.done if early or not taken else []

    @op(which=st.integers(0, 1), read=st.booleans())
    def note(self, which: int, read: bool) -> None:
        run = self.runs[which]
        self.both(lambda queue, _: queue.note(run.name, EngineReleased(engine="a", at="now")))
        if read:
            found = self.both(
                lambda queue, n: queue.notes(run.name, run.noted[n]), lambda found: [type(one) for one in found[1]]
            )
            run.noted = [after for after, _ in found]

    # -- all that they hold

    @contextmanager
    def in_any_order(self) -> Iterator[None]:
        """Units that go back together may do so in any order; afterwards both queues have the same."""
        yield
        for name, waiting in [pair for run in self.memory._runs.values() for pair in run.queues.items()]:
            keys = RunKeys(name.rpartition(".")[2], self.memory._runs[name.rpartition(".")[2]].keys.epoch)
            ready, solo, broken, _ = of_memory(self.memory).queues.get(name, ([], [], [], []))
            assert waiting is not None
            for key, jobs in ((rq_queue(name), ready), (keys.solo(name), solo), (f"{keys.prefix}broken:{name}", broken)):
                if sorted(jobs) == sorted(job.decode() for job in cast("list[bytes]", self.client.lrange(key, 0, -1))) and jobs:
                    self.client.delete(key)
                    self.client.rpush(key, *jobs)

    def agree(self) -> None:
        memory, redis = of_memory(self.memory), of_redis(self.client)
        for name in Picture.__dataclass_fields__:
            assert getattr(memory, name) == getattr(redis, name), name


class TwinsThatLoseKeys(Twins):
    """Redis loses a key now and then, and the queue in memory the same."""

    @op(which=st.integers(0, 1), kind=st.sampled_from(["job", "queue", "members"]), index=st.integers(0, 3))
    def lose_key(self, which: int, kind: str, index: int) -> None:
        run = self.memory._runs.get(self.runs[which].name)
        if run is None:
            return
        prefix = run.keys.prefix
        if kind == "job" and run.jobs:
            name = sorted(run.jobs)[index % len(run.jobs)]
            unit = run.jobs.pop(name).unit
            self.client.delete(f"rq:job:{run.keys.job(unit.node, unit.root, unit.part)}")
        elif kind == "queue" and run.queues:
            name = sorted(run.queues)[index % len(run.queues)]
            run.queues[name].ready.clear()
            self.client.delete(rq_queue(name))
        elif kind == "members" and run.roots:
            root = sorted(run.roots)[index % len(run.roots)]
            scopes = sorted(run.roots[root].members)
            if scopes:
                del run.roots[root].members[scopes[index % len(scopes)]]
                self.client.delete(f"{prefix}s:{root}:{scopes[index % len(scopes)]}")


def seen(found: list[Claim] | Drain) -> object:
    """A claim without when its unit was queued and without its name."""
    if isinstance(found, Drain):
        return found
    return [(in_order(one.unit), one.token, one.run, one.epoch, one.turn, one.part) for one in found]


def in_order(unit: Unit) -> Unit:
    """A join's rows, whichever branch came first."""
    partials = {branch: sorted(rows, key=by_id) for branch, rows in sorted(unit.partials.items())}
    rows = sorted(unit.rows, key=by_id) if unit.partials else unit.rows
    return msgspec.structs.replace(unit, rows=rows, partials=partials, stopped=sorted(unit.stopped))


def by_id(row: Row) -> tuple[int, ...]:
    return row_order(row.row_id)


def entries(found: Iterable[Entry]) -> object:
    return [(one.token, one.message, one.root, one.done, one.suspended) for one in found]


async def here(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


def outcome_of(plan: Plan, unit: Unit) -> Outcome:
    return anyio.run(lambda: process(plan, unit, None, away=here))


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]


def calls_of(machine: type[Twins]) -> st.SearchStrategy[Call]:
    """Any call; the simplest is none."""
    found = {name: getattr(getattr(machine, name), "op", None) for name in dir(machine)}
    ops = {name: mark for name, mark in found.items() if mark is not None}
    names = ["nothing", *(name for name, (weight, _) in ops.items() for _ in range(weight))]

    def with_arguments(name: str) -> st.SearchStrategy[Call]:
        return st.fixed_dictionaries(ops[name][1] if name in ops else {}).map(lambda arguments: Call(name, arguments))

    return st.sampled_from(names).flatmap(with_arguments)


def run_programs(machine: type[Twins], client: Redis, number: int, length: int = 50) -> None:
    quiet = settings(max_examples=number, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])

    @quiet
    @given(st.lists(calls_of(machine), min_size=length, max_size=length))
    def run(program: list[Call]) -> None:
        twins = machine(client)
        for call in program:
            getattr(twins, call.name)(**call.arguments)
            twins.agree()

    run()
    client.flushall()


#: Programs of 50 calls.
PROGRAMS = many(3, 15, 100)


@pytest.mark.parametrize("machine", [Twins, TwinsThatLoseKeys])
def test_random_programs_of_calls_agree_in_memory_and_on_valkey(database: Database, machine: type[Twins]) -> None:
    run_programs(machine, database.client, PROGRAMS)


@pytest.mark.parametrize("machine", [Twins, TwinsThatLoseKeys])
def test_random_programs_of_calls_agree_in_memory_and_on_redis(redis_database: Database, machine: type[Twins]) -> None:
    run_programs(machine, redis_database.client, PROGRAMS)
