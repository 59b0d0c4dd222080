"""The fleet's transitions on a real Valkey, driven by chance: workers vanish, sinks restart, Redis is emptied.

Whatever happens, the directory ends with the very rows of a local run.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
import redis
from chainette_workers.coordinator import Coordinator
from chainette_workers.sink import Sink

from chainette import Chain
from chainette.core.compile import compile_chain
from chainette.core.plan import NodeKind, Plan
from chainette.engine.lifecycle import Engines
from chainette.fleet.keys import RunKeys
from chainette.fleet.queue import Claim, FleetQueue, Lost, Turn
from chainette.hooks import Hook
from chainette.io.events import RunCreated
from chainette.io.inputs import open_input
from chainette.io.readback import rows_of_root
from chainette.io.replay import RunState
from chainette.io.result import RunResult
from chainette.io.roots import Root, Roots
from chainette.io.rundir import RunDir
from chainette.io.session import claim_directory, create, graph_of, read_state, recover
from chainette.io.validate import InputModel
from chainette.io.writer import RunWriter
from chainette.limits import RejectWatch
from chainette.process import poisoned, process
from tests.support.chains import content, everything, write_inputs
from tests.support.valkey import Database

SETTINGS = {"seed": 0, "limit": None, "format": "jsonl", "max_rows_per_file": 50, "flattened": True, "key": None}


class Fleet:
    """One run with its workers, coordinator and sink, each a step at a time."""

    def __init__(self, chain: Chain, inputs: Path, directory: Path, connection: redis.Redis, seed: int) -> None:
        self.rng = random.Random(seed)
        self.redis = connection
        self.queue = FleetQueue(connection)
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
        #: A row that kills whoever takes it, at `count`.
        self.deadly: str | None = None

    def new_sink(self, writer: RunWriter) -> Sink:
        return Sink(self.queue, writer, self.plan, self.run, {"window": 8, "seed": 0}, Hook(), RejectWatch(None))

    def new_coordinator(self) -> Coordinator:
        keys = self.sink.keys
        at_start = self.state_at_start(keys.epoch)

        def pending(last: int) -> Iterator[Root]:
            roots = Roots(self.source, InputModel(self.plan.input_model), self.plan.batch_size)
            return roots.pending(lambda root: root <= last or self.sink.writer.state.is_done(root))

        return Coordinator(
            self.queue, keys, self.plan, pending, lambda root: rows_of_root(self.directory, self.plan, at_start, root)
        )

    def state_at_start(self, epoch: int) -> RunState:
        """The log up to the event that began the epoch."""
        from chainette.io.log import read_log

        state = RunState()
        for offset, event in read_log(self.directory.log):
            if event.epoch == epoch and event.seq and type(event).__name__ not in ("RunStarted", "RunResumed"):
                break
            state.apply(event, offset)
        return state

    # -- what may happen

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
        queues = [(self.run, name) for name in reversed(self.sink.queues)]
        self.claims += 1
        claim = self.queue.claim(me, f"{me}-{self.claims}", queues, alone=not held)
        if isinstance(claim, Claim):
            held.append(claim)

    async def work(self, engines: Engines) -> None:
        busy = [me for me, held in self.workers.items() if held]
        if not busy:
            return
        me = self.rng.choice(busy)
        claim = self.rng.choice(self.workers[me])
        if claim.turn is Turn.MEND:
            self.mend(me, claim)
            return
        if self.deadly in {row.row_id for row in claim.unit.rows} and claim.unit.node == "count":
            self.kill_worker(me)
            self.workers[me] = []
            return
        node = self.plan.nodes.get(claim.unit.node)
        engine = await engines.get(node.engine) if node is not None and node.kind is NodeKind.STEP else None
        outcome = await process(self.plan, claim.unit, engine)
        chance = self.rng.random()
        if chance < 0.1:
            self.queue.release(claim, me)
        elif chance < 0.2:
            self.queue.fail(claim, me, 0.0, "not now")
        else:
            for _ in range(self.rng.choice([1, 1, 2])):
                self.queue.commit(claim, me, self.plan, outcome, secrets.token_hex(4))
        if chance < 0.9:
            self.workers[me].remove(claim)  # else it lives on as a zombie that commits again

    def mend(self, me: str, claim: Claim) -> None:
        if len(claim.unit.rows) > 1:
            self.queue.split(claim, me, self.plan)
        else:
            self.queue.commit(claim, me, self.plan, poisoned(self.plan, claim.unit), secrets.token_hex(4))
        self.workers[me].remove(claim)

    def kill_worker(self, me: str | None = None) -> None:
        """The lease ends; the process may still commit."""
        if self.workers:
            me = me or self.rng.choice(list(self.workers))
            self.redis.zadd("chainette:lease", {me: 1})
            assert me in self.queue.reap()

    def drain(self) -> None:
        try:
            self.sink.step()
        except Lost:
            self.sink.raise_epoch(None)

    def restart_sink(self) -> None:
        self.sink.writer.close()
        self.sink = self.new_sink(recover(self.directory, self.plan, new_epoch=False))
        self.sink.open(None)

    def empty_redis(self) -> None:
        self.redis.flushall()

    async def go(self, *, wild: bool = False) -> None:
        often = [self.admit, self.claim, self.claim, self.drain]
        seldom = [self.kill_worker, self.restart_sink, self.restart_coordinator] + [self.empty_redis] * wild
        async with Engines(self.plan.engines) as engines:
            for turn in range(20_000):
                if turn < 1500 and self.rng.random() < 0.02:
                    self.rng.choice(seldom)()
                elif self.rng.random() < 0.4:
                    await self.work(engines)
                else:
                    self.rng.choice(often)()
                if turn % 50 == 0 and self.sink.complete:
                    self.complete = True
                    break
        assert self.complete, "the run did not end"

    def finish(self) -> RunResult:
        self.sink.close()
        self.sink.writer.finish("")
        self.sink.writer.close()
        return RunResult(self.directory, read_state(self.directory)[0], self.plan)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("wild", [False, True])
def test_whatever_dies_the_rows_are_those_of_a_local_run(tmp_path: Path, database: Database, seed: int, wild: bool) -> None:
    chain = everything()
    inputs = write_inputs(tmp_path / "inputs.jsonl", 26, bad=(3, 20))
    whole = chain.run(inputs, tmp_path / "whole", max_rows_per_file=50)
    fleet = Fleet(chain, inputs, tmp_path / "run", database.client, seed + 100 * wild)
    anyio.run(partial(fleet.go, wild=wild))
    result = fleet.finish()
    assert content(result) == content(whole)
    assert result.metadata["balanced"], result._state.imbalances()
    assert {name: counts["in"] for name, counts in result.counts.items()} == {
        name: counts["in"] for name, counts in whole.counts.items()
    }
    for me in list(fleet.workers):
        for claim in fleet.workers[me]:
            fleet.queue.release(claim, me)
        fleet.queue.leave(me)


@pytest.mark.parametrize("seed", range(3))
def test_a_row_that_kills_its_worker_is_found_and_rejected_and_costs_no_other(
    tmp_path: Path, database: Database, seed: int
) -> None:
    chain = everything()
    inputs = write_inputs(tmp_path / "inputs.jsonl", 26)
    whole = chain.run(inputs, tmp_path / "whole", max_rows_per_file=50)
    fleet = Fleet(chain, inputs, tmp_path / "run", database.client, seed + 500)
    fleet.deadly = next(row["row_id"] for row in whole.rows("count"))
    anyio.run(fleet.go)
    result = fleet.finish()
    [poison] = [row for row in result.rows("rejected") if row["reason"] == "poison"]
    assert (poison["row_id"], poison["step_id"]) == (fleet.deadly, "count")
    before, after = content(whole), content(result)
    assert after["extract"] == before["extract"]
    assert [line for line in before["count"] if json.loads(line)["row_id"] != fleet.deadly] == after["count"]
    assert result.metadata["balanced"]
    for me in list(fleet.workers):
        for claim in fleet.workers[me]:
            fleet.queue.release(claim, me)
        fleet.queue.leave(me)


def test_every_script_refuses_malformed_arguments_before_it_writes(database: Database) -> None:
    queue = FleetQueue(database.client)
    for name, script in queue._scripts.by_name.items():
        for argument in (b"", b"\xc1", b"\x80", b"\x90", b"\xa3abc"):
            if name == "reap":
                continue
            with pytest.raises(redis.ResponseError):
                script(args=[argument])
    assert database.client.keys("*") == []


def test_the_keys_of_a_run_are_spelled_alike_in_python_and_lua() -> None:
    keys = RunKeys("r", 3)
    assert keys.stream == "chainette:r:3:stream" and keys.root(7) == "chainette:r:3:r:7"
