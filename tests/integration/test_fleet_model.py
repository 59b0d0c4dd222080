"""The fleet's transitions on a real Valkey, driven by chance: workers vanish, sinks restart, Redis is emptied.

Whatever happens, the directory ends with the very rows of a local run.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import redis
from chainette_workers.sink.sink import Sink

from chainette import Chain
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.engine.base import Engine
from chainette.engine.lifecycle import Engines
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import Claim, Drain, Lost, Turn
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.hooks import Hook
from chainette.io.inputs.locate import open_input
from chainette.io.inputs.roots import Root, Roots
from chainette.io.inputs.validate import InputModel
from chainette.io.rundir.durable_rows import rows_of_root
from chainette.io.rundir.event_types import RunCreated
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.open import claim_directory, create, read_state, recover
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import RunState
from chainette.io.rundir.writer import RunWriter
from chainette.run.coordinator import Coordinator
from chainette.run.limits import RejectWatch
from chainette.run.process import poisoned
from tests.support.chains import content, everything, write_inputs
from tests.support.outcomes import process
from tests.support.tools import some
from tests.support.valkey import Database

SETTINGS = {"seed": 0, "limit": None, "format": "jsonl", "max_rows_per_file": 50, "flattened": True, "key": None}


@dataclass(frozen=True)
class Twin:
    """A queue, and its accidents."""

    queue: LeasedQueue
    end_lease: Callable[[str], object]
    empty: Callable[[], object]


def on_redis(client: redis.Redis) -> Twin:
    return Twin(FleetQueue(client), lambda me: client.zadd("chainette:lease", {me: 1}), client.flushall)


def in_memory() -> Twin:
    queue = MemoryQueue()

    def end_lease(me: str) -> None:
        queue._workers[me].until = 0.0

    def empty() -> None:
        queue._runs.clear()
        queue._workers.clear()

    return Twin(queue, end_lease, empty)


class Fleet:
    """One run with its workers, coordinator and sink, each a step at a time."""

    def __init__(self, chain: Chain, inputs: Path, directory: Path, twin: Twin, seed: int) -> None:
        self.rng = random.Random(seed)
        self.twin = twin
        self.queue = twin.queue
        self.plan: Plan = compile_chain(chain)
        self.directory = RunDir(directory)
        self.source = open_input(inputs)
        self.run = f"run{seed}"
        created = RunCreated(
            run_id=self.run,
            chain=self.plan.chain,
            chain_ref="",
            chain_root="",
            graph=graph_of(self.plan),
            settings=SETTINGS | {"batch_size": self.plan.batch_size},
            input=self.source.identity(),
            versions={},
        )
        writer = create(self.directory, claim_directory(self.directory), self.plan, created)
        self.sink = self.new_sink(writer)
        self.sink.open(None)
        self.coordinators = [self.new_coordinator(), self.new_coordinator()]
        self.workers: dict[str, list[Claim]] = {}
        self.claims = 0
        self.complete = False
        self.phases = 0
        #: A row that kills whoever takes it, at `count`.
        self.deadly: str | None = None

    def new_sink(self, writer: RunWriter) -> Sink:
        return Sink(
            self.queue,
            writer,
            self.plan,
            self.run,
            {"window": 8, "seed": 0, "batch_size": self.plan.batch_size},
            Hook(),
            RejectWatch(None),
            self.source,
        )

    def new_coordinator(self) -> Coordinator:
        keys = self.sink.keys
        at_start = self.state_at_start(keys.epoch)

        def pending(last: int) -> Iterator[Root]:
            roots = Roots(self.source, InputModel(self.plan.input_model), self.plan.batch_size)
            return roots.pending(lambda root: root <= last or self.sink.writer.state.roots.is_done(root))

        return Coordinator(
            self.queue, keys, self.plan, pending, lambda root: rows_of_root(self.directory, self.plan, at_start, root)
        )

    def state_at_start(self, epoch: int) -> RunState:
        """The log up to the event that began the epoch."""
        from chainette.io.rundir.event_log import read_log

        state = RunState()
        for offset, event in read_log(self.directory.log):
            if event.epoch == epoch and event.seq and type(event).__name__ not in ("RunStarted", "RunResumed"):
                break
            state.apply(event, offset)
        return state

    # -- accidents

    def admit(self) -> None:
        coordinator = self.rng.choice(self.coordinators)
        try:
            coordinator.step()
        except Lost:
            self.coordinators[self.coordinators.index(coordinator)] = self.new_coordinator()

    def restart_coordinator(self) -> None:
        self.coordinators[self.rng.randrange(2)] = self.new_coordinator()

    def claim(self) -> None:
        me = self.rng.choice([*self.workers, f"w{len(self.workers)}"][:3])
        if not self.queue.beat(me, {}, 3600.0):
            self.workers[me] = []
        held = self.workers.setdefault(me, [])
        room = self.rng.choice([0, 4, 8])
        queues = [(self.run, name, room) for name in reversed(self.sink.queues)]
        self.claims += 1
        ahead = self.rng.random() < 0.2
        claims = self.queue.claim_rows(me, f"{self.run}-{me}-{self.claims}", queues, alone=not held, ahead=ahead)
        if not isinstance(claims, Drain):
            held += claims

    async def work(self, engines: Engines) -> None:
        busy = [me for me, held in self.workers.items() if held]
        if not busy:
            return
        me = self.rng.choice(busy)
        claim = self.rng.choice(self.workers[me])
        if claim.turn is Turn.MEND:
            self.mend(me, claim)
            return
        if (
            self.deadly
            and self.queue.start(claim, me)
            and self.deadly in {row.row_id for row in claim.unit.rows}
            and claim.unit.node == "count"
        ):
            self.kill_worker(me)
            self.workers[me] = []
            return
        self.queue.start(claim, me)
        node = self.plan.stations.get(claim.unit.node)
        engine = await engines.get(node.engine) if node is not None and node.kind is NodeKind.STEP else None
        chance = self.rng.random()
        if chance < 0.1:
            self.queue.release(claim, me)
        elif chance < 0.2:
            self.queue.fail(claim, me, 0.0, "not now")
        elif chance < 0.5 and node is not None and len(claim.unit.rows) > 1:
            await self.commit_part(me, claim, engine)
            return
        else:
            outcome = await process(self.plan, claim.piece(), engine)
            for _ in range(self.rng.choice([1, 1, 2])):
                self.queue.commit(claim, me, self.plan, outcome, secrets.token_hex(4))
        if chance < 0.9:
            self.workers[me].remove(claim)  # else it lives on as a zombie that commits again

    async def commit_part(self, me: str, claim: Claim, engine: Engine | None) -> None:
        """Commits some rows of a unit, maybe twice; the worker goes on with the rest."""
        rows = {row.row_id for row in claim.unit.rows if self.rng.random() < 0.5} or {claim.unit.rows[0].row_id}
        outcome = await process(self.plan, claim.piece(rows), engine)
        token = secrets.token_hex(4)
        held = [self.queue.commit(claim, me, self.plan, outcome, token, rows) for _ in range(self.rng.choice([1, 1, 2]))]
        rest = claim.rest(rows) if held[0] else None
        if self.rng.random() < 0.9:  # else it goes on as if nothing of it had been committed
            self.workers[me].remove(claim)
            self.workers[me] += [rest] if rest is not None else []

    def mend(self, me: str, claim: Claim) -> None:
        if len(claim.unit.rows) > 1:
            self.queue.split(claim, me, self.plan)
        else:
            self.queue.commit(claim, me, self.plan, poisoned(self.plan, claim.piece()), secrets.token_hex(4))
        self.workers[me].remove(claim)

    def agree(self) -> None:
        """A worker names its units."""
        for me in self.queue.workers():
            self.queue.reconcile(me, self.workers.get(me, []))

    def kill_worker(self, me: str | None = None) -> None:
        """The lease ends; the process may still commit."""
        me = me or self.rng.choice([*self.workers, ""])
        if me in self.queue.workers():  # another run's driver may have killed it already
            self.twin.end_lease(me)
            assert me in self.queue.reap()

    def drain(self) -> None:
        try:
            self.sink.step()
        except Lost:
            self.sink.raise_epoch(None)
            # a coordinator that had finished asks nothing any more; who drives the run begins another
            self.coordinators = [self.new_coordinator() if old.finished else old for old in self.coordinators]

    def restart_sink(self) -> None:
        self.sink.writer.close()
        self.sink = self.new_sink(recover(self.directory, self.plan, new_epoch=False))
        self.sink.open(None)
        self.coordinators = [self.new_coordinator() if old.finished else old for old in self.coordinators]

    def empty_redis(self) -> None:
        self.twin.empty()

    def hold(self) -> None:
        """Somebody pauses the run, or continues it."""
        for info in self.queue.runs():
            if info.run == self.run and info.state != "cancelled":
                self.queue.set_state(self.run, "running" if info.state == "paused" else "paused")

    def bar(self, engines: frozenset[str] | None = None) -> None:
        """The run goes in phases, or in others, or in none."""
        every = sorted({self.plan.engine_of(name) for name in self.plan.stations})
        chosen = frozenset(name for name in every if self.rng.random() < 0.5) if engines is None else engines
        with suppress(Lost):  # the sink will find out
            self.sink.bar(chosen)

    def enter_next_phase(self) -> None:
        self.phases += 1
        self.sink.phase, self.sink.barred = self.phases, frozenset()
        self.sink.raise_epoch(None)
        self.coordinators = [self.new_coordinator(), self.new_coordinator()]

    async def go(self, *, wild: bool = False) -> None:
        often = [self.admit, self.claim, self.claim, self.drain, self.agree]
        seldom = [self.kill_worker, self.restart_sink, self.restart_coordinator, self.hold, self.bar]
        seldom += [self.empty_redis] * wild
        async with Engines(self.plan.engines) as engines:
            for turn in range(20_000):
                await anyio.lowlevel.checkpoint()
                if turn == 1500:
                    self.release_hold()
                if turn < 1500 and self.rng.random() < 0.02:
                    self.rng.choice(seldom)()
                elif self.rng.random() < 0.4:
                    await self.work(engines)
                else:
                    self.rng.choice(often)()
                if turn % 50 == 0 and (progress := self.sink.progress).complete:
                    if not progress.suspended:
                        self.complete = True
                        break
                    self.enter_next_phase()
        assert self.complete, "the run did not end"

    def release_hold(self) -> None:
        """From here on the run is left alone."""
        self.bar(frozenset())
        if any(info.run == self.run and info.state == "paused" for info in self.queue.runs()):
            self.queue.set_state(self.run, "running")

    def finish(self) -> RunResult:
        self.sink.close()
        self.sink.writer.finish("", self.source.total())
        self.sink.writer.close()
        return RunResult(self.directory, read_state(self.directory)[0])


def send_home(fleet: Fleet) -> None:
    """Every worker hands back its units, and signs off."""
    for me in list(fleet.queue.workers()):
        fleet.queue.reconcile(me)
        assert fleet.queue.leave(me)


def require_whole(fleet: Fleet, whole: RunResult) -> None:
    """The run's directory is that of the local run."""
    result = fleet.finish()
    assert content(result) == content(whole)
    assert result.metadata["balanced"], result._state.imbalances()
    taken = {name: counts["in"] for name, counts in result.counts.items()}
    assert taken == {name: counts["in"] for name, counts in whole.counts.items()}


def survive(tmp_path: Path, twin: Twin, seed: int, *, wild: bool) -> None:
    chain = everything()
    inputs = write_inputs(tmp_path / "inputs.jsonl", 26, bad=(3, 20))
    whole = chain.run(inputs, tmp_path / "whole", max_rows_per_file=50)
    fleet = Fleet(chain, inputs, tmp_path / "run", twin, seed)
    anyio.run(partial(fleet.go, wild=wild))
    require_whole(fleet, whole)
    send_home(fleet)


@pytest.mark.parametrize("seed", some(range(6), 3, 3))
@pytest.mark.parametrize("wild", [False, True])
def test_whatever_dies_the_rows_are_those_of_a_local_run(tmp_path: Path, database: Database, seed: int, wild: bool) -> None:
    survive(tmp_path, on_redis(database.client), seed + 100 * wild, wild=wild)


@pytest.mark.parametrize("wild", [False, True])
def test_whatever_dies_the_rows_are_those_of_a_local_run_also_on_redis(
    tmp_path: Path, redis_database: Database, wild: bool
) -> None:
    survive(tmp_path, on_redis(redis_database.client), 300, wild=wild)


@pytest.mark.long
@pytest.mark.parametrize("seed", some(range(0, 40, 5), 4, 4))
@pytest.mark.parametrize("wild", [False, True])
def test_whatever_dies_the_rows_are_those_of_a_local_run_also_in_memory(tmp_path: Path, seed: int, wild: bool) -> None:
    for number in range(seed, seed + 5):
        (tmp_path / str(number)).mkdir()
        survive(tmp_path / str(number), in_memory(), number + 1000 + 100 * wild, wild=wild)


def test_an_acknowledgement_that_was_lost_is_made_up_for_even_if_nothing_more_comes(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs.jsonl", 26)
    fleet = Fleet(everything(), inputs, tmp_path / "run", in_memory(), 1)
    lost: list[int] = []

    acknowledge = fleet.queue.ack

    def lose(keys: RunKeys, owner: str, position: tuple[str, str], done: list[int]) -> None:
        lost.extend(done)
        if done:
            raise redis.ConnectionError
        acknowledge(keys, owner, position, done)

    async def until_lost() -> None:
        async with Engines(fleet.plan.engines) as engines:
            while not lost:
                await anyio.lowlevel.checkpoint()
                fleet.admit()
                fleet.claim()
                await fleet.work(engines)
                with pytest.MonkeyPatch.context() as patch, suppress(redis.ConnectionError):
                    patch.setattr(fleet.queue, "ack", lose)
                    fleet.drain()

    anyio.run(until_lost)
    assert {*lost} <= {*fleet.sink.progress.live}
    assert not fleet.sink.step()
    assert not {*lost} & {*fleet.sink.progress.live}


def find_poison(tmp_path: Path, twin: Twin, seed: int) -> None:
    chain = everything()
    inputs = write_inputs(tmp_path / "inputs.jsonl", 26)
    whole = chain.run(inputs, tmp_path / "whole", max_rows_per_file=50)
    fleet = Fleet(chain, inputs, tmp_path / "run", twin, seed)
    fleet.deadly = next(row["row_id"] for row in whole.rows("count"))
    anyio.run(fleet.go)
    result = fleet.finish()
    [poison] = [row for row in result.rows("rejected") if row["reason"] == "poison"]
    assert (poison["row_id"], poison["step_id"]) == (fleet.deadly, "count")
    before, after = content(whole), content(result)
    assert after["extract"] == before["extract"]
    assert [line for line in before["count"] if json.loads(line)["row_id"] != fleet.deadly] == after["count"]
    assert result.metadata["balanced"]
    send_home(fleet)


@pytest.mark.long
@pytest.mark.parametrize("seed", some(range(3), 3, 3))
def test_a_row_that_kills_its_worker_is_found_and_rejected_and_costs_no_other(
    tmp_path: Path, database: Database, seed: int
) -> None:
    find_poison(tmp_path, on_redis(database.client), seed + 500)


@pytest.mark.parametrize("seed", some(range(8), 4, 4))
def test_a_row_that_kills_its_worker_is_found_also_in_memory(tmp_path: Path, seed: int) -> None:
    find_poison(tmp_path, in_memory(), seed + 1500)


@pytest.mark.parametrize("seed", some(range(4), 4, 4))
@pytest.mark.parametrize("kind", ["redis", "memory"])
@pytest.mark.long
def test_two_runs_share_workers_and_one_that_is_given_up_costs_the_other_nothing(
    tmp_path: Path, database: Database, kind: str, seed: int
) -> None:
    twin = on_redis(database.client) if kind == "redis" else in_memory()
    chain = everything()
    inputs = write_inputs(tmp_path / "inputs.jsonl", 26, bad=(3, 20))
    whole = chain.run(inputs, tmp_path / "whole", max_rows_per_file=50)
    one, two, given_up = (Fleet(chain, inputs, tmp_path / name, twin, 10 * seed + n) for n, name in enumerate("abc", 2000))

    async def both() -> None:
        async with anyio.create_task_group() as group, Engines(given_up.plan.engines) as engines:
            group.start_soon(one.go)
            group.start_soon(two.go)
            for _ in range(150):
                await anyio.lowlevel.checkpoint()
                for step in (given_up.admit, given_up.claim, given_up.drain):
                    step()
                await given_up.work(engines)
            twin.queue.set_state(given_up.run, "cancelled")
            given_up.sink.close()

    anyio.run(both)
    require_whole(one, whole)
    require_whole(two, whole)
    given_up.sink.writer.close()
    send_home(one)


def test_every_script_refuses_malformed_arguments_before_it_writes(database: Database) -> None:
    queue = FleetQueue(database.client)
    for name, script in queue._scripts.by_name.items():
        for argument in (b"", b"\xc1", b"\x80", b"\x90", b"\xa3abc"):
            if name in ("mend", "reap") and argument in (b"\x80", b"\x90"):
                continue  # nothing named: they look for members whose lease has ended
            with pytest.raises(redis.ResponseError):
                script(args=[argument])
    assert database.client.keys("*") == []


def test_the_keys_of_a_run_are_spelled_alike_in_python_and_lua() -> None:
    keys = RunKeys("r", 3)
    assert keys.stream == "chainette:r:3:stream" and keys.root(7) == "chainette:r:3:r:7"
