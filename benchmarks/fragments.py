"""What rows cost that wait one by one: `python benchmarks/fragments.py`. Redis commands, calls and CPU per row of claiming and
committing fragments of one root, one at a time and several at once."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import process_time
from typing import Any, cast

import redis
from pydantic import BaseModel

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.flow import advance, frontier, row_of
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import RootRecord
from chainette.fleet.protocol.states import Claim, Drain
from chainette.fleet.redis.queue import FleetQueue
from chainette.fleet.server.embedded import EmbeddedServer
from chainette.records import CHAIN_INPUT, Outcome, Output, Row, Unit, Usage

KEYS = RunKeys("r", 0)


class Text(BaseModel):
    text: str


def plan_of(steps: int, batch: int) -> Plan:
    """Steps in a row, over one engine."""
    with using_registry(EngineRegistry()):
        register_engine("e", model="m", backend="simulated")
        nodes = [Step(id=f"s{n}", input_model=Text, output_model=Text, engine_name="e") for n in range(steps)]
        return compile_chain(Chain(name="line", batch_size=batch, steps=nodes))


def answered(plan: Plan, unit: Unit) -> Outcome:
    node = plan.nodes[unit.node]
    outputs = [Output(row.row_id, b'{"text":"' + b"x" * 200 + b'"}', 1) for row in unit.rows]
    rows = [row_of(node, row, output) for row, output in zip(unit.rows, outputs, strict=True)]
    return Outcome(outputs, [], [], Usage(len(rows)), advance(plan, unit, rows, node.next, []))


def queue_of(plan: Plan, step: str) -> str:
    return KEYS.queue(plan.engine_of(step), step)


def in_fragments(queue: FleetQueue, plan: Plan, rows: int) -> None:
    """Every row of a root waits at the second step, a unit each."""
    new = [Row(str(n), {CHAIN_INPUT: b'{"text":"' + b"x" * 200 + b'"}'}) for n in range(rows)]
    queue.admit(KEYS, plan, 0, 0, RootRecord(new, rows), [], frontier(plan, 0, new), "a")
    claim = queue.claim("w", "t", [("r", queue_of(plan, "s0"))])
    while isinstance(claim, Claim):
        row = {claim.unit.rows[0].row_id}
        assert queue.commit(claim, "w", plan, answered(plan, claim.piece(row)), f"c{claim.part}", row)
        claim = claim.rest(row)


def work_off(queue: FleetQueue, plan: Plan, room: int) -> int:
    """Claims and commits until nothing waits; how many calls that took."""
    queues, calls = [("r", queue_of(plan, f"s{n}"), room) for n in reversed(range(1, len(plan.nodes)))], 0
    while True:
        claims = queue.claim_rows("w", f"n{calls}", queues)
        assert not isinstance(claims, Drain)
        if not claims:
            return calls
        calls += 1
        for claim in claims:
            assert queue.commit(claim, "w", plan, answered(plan, claim.unit), f"m{calls}")
            calls += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4, help="the first breaks the root into fragments")
    chosen = parser.parse_args()
    plan = plan_of(chosen.steps, chosen.rows)
    moved = chosen.rows * (chosen.steps - 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer.start(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        fields = {"window": chosen.rows, "batch_size": 64}
        for room in (0, 8, 64, 0, 8, 64):
            client.flushall()
            queue = FleetQueue(client)
            queue.install("r", 0, "me", "a", [queue_of(plan, name) for name in plan.nodes], fields)
            queue.beat("w", {}, 3600)
            in_fragments(queue, plan, chosen.rows)
            before, began = cast("dict[str, Any]", client.info()), process_time()
            calls = work_off(queue, plan, room)
            mine, after = process_time() - began, cast("dict[str, Any]", client.info())
            used = sum(after[f"used_cpu_{kind}"] - before[f"used_cpu_{kind}"] for kind in ("user", "sys"))
            commands = after["total_commands_processed"] - before["total_commands_processed"]
            print(
                f"room {room:3}: {calls / moved:6.3f} calls, {commands / moved:6.2f} commands, "
                f"{1e6 * used / moved:6.0f} us of Redis, {1e6 * mine / moved:6.0f} us of Python per row and step"
            )


if __name__ == "__main__":
    main()
