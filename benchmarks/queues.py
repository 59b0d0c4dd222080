"""The cost of the queue without any work in between: `python benchmarks/queues.py [memory | redis ...]`.

memory: CPU per unit of admission, claim, commit, read and acknowledgement in plain Python. redis: commands, calls and CPU
per row of claiming and committing the fragments of one root, which waited row by row, one at a time and several at once.
"""

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
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import RootRecord
from chainette.fleet.protocol.queue_values import ANCHOR, Claim, Drain
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.server.embedded import EmbeddedServer
from chainette.records import CHAIN_INPUT, Outcome, Output, Row, Unit, Usage

KEYS = RunKeys("r", 0)
ROW = b'{"text":"' + b"x" * 200 + b'"}'


class Text(BaseModel):
    text: str


# -- a run, and its worker


def plan_of(steps: int, batch: int) -> Plan:
    """Steps in a row, over one engine."""
    with using_registry(EngineRegistry()):
        register_engine("e", model="m", backend="simulated")
        nodes = [Step(id=f"s{n}", input_model=Text, output_model=Text, engine_name="e") for n in range(steps)]
        return compile_chain(Chain(name="line", batch_size=batch, steps=nodes))


def begin(queue: LeasedQueue, plan: Plan, window: int) -> list[str]:
    """Installs the run and its worker; the names of its queues, the last step's first."""
    names = [KEYS.queue(plan.engine_of(name), name) for name in reversed([*plan.stations])]
    queue.install("r", 0, "me", "a", names, {"window": window, "batch_size": 64})
    queue.beat("w", {}, 3600)
    return names


def admit(queue: LeasedQueue, plan: Plan, root: int, rows: int) -> float:
    """Admits a new root; how many seconds of CPU the queue took."""
    new = [Row(str(rows * root + n), {CHAIN_INPUT: ROW}) for n in range(rows)]
    effects, began = frontier(plan, root, new), process_time()
    queue.admit(KEYS, plan, root, root, RootRecord(new, rows), [], effects, f"a{root}")
    return process_time() - began


def claim(queue: LeasedQueue, token: str, names: list[str], room: int = 0) -> list[Claim]:
    found = queue.claim_rows("w", token, [("r", name, room) for name in names], alone=True)
    assert not isinstance(found, Drain)
    return found


def answered(plan: Plan, unit: Unit) -> Outcome:
    node = plan.stations[unit.node]
    outputs = [Output(row.row_id, ROW, 1) for row in unit.rows]
    rows = [row_of(node, row, output) for row, output in zip(unit.rows, outputs, strict=True)]
    return Outcome(outputs, [], [], Usage(len(rows)), advance(plan, unit, rows, node.next, []))


# -- in memory


def memory(roots: int, rows: int, live: int, steps: int) -> None:
    queue, plan = MemoryQueue(), plan_of(steps, rows)
    names, position, spent = begin(queue, plan, live * rows), (ANCHOR, "a"), 0.0
    admitted, done, claims = 0, 0, 0
    while done < roots:
        while admitted < min(roots, done + live):
            spent += admit(queue, plan, admitted, rows)
            admitted += 1
        while True:
            claims, began = claims + 1, process_time()
            found = claim(queue, f"t{claims}", names)
            spent += process_time() - began
            if not found:
                break
            outcome, began = answered(plan, found[0].unit), process_time()
            assert queue.commit(found[0], "w", plan, outcome, f"c{claims}")
            entries = queue.read(KEYS, position)
            position = (entries[-1].id, entries[-1].token)
            ended = [entry.root for entry in entries if entry.done]
            queue.ack(KEYS, "me", position, ended)
            spent += process_time() - began
            done += len(ended)
    print(f"{roots * steps:,} units of {rows} rows in memory: {1e6 * spent / roots / steps:.1f} us a unit")


# -- on Redis


def in_fragments(queue: LeasedQueue, plan: Plan, rows: int, names: list[str]) -> None:
    """Every row of a root waits at the second step, a unit each."""
    admit(queue, plan, 0, rows)
    [left] = claim(queue, "t", names)
    for row in left.unit.rows:
        ids = {row.row_id}
        assert queue.commit(left, "w", plan, answered(plan, left.piece(ids)), f"c{left.part}", ids)
        left = left.rest(ids) or left


def work_off(queue: LeasedQueue, plan: Plan, names: list[str], room: int) -> int:
    """Claims and commits until nothing waits; how many calls that took."""
    calls = 0
    while found := claim(queue, f"n{calls}", names, room):
        calls += 1
        for one in found:
            assert queue.commit(one, "w", plan, answered(plan, one.unit), f"m{calls}")
            calls += 1
    return calls


def on_redis(rows: int, steps: int) -> None:
    plan, moved = plan_of(steps, rows), rows * (steps - 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer.start(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        for room in (0, 8, 64, 0, 8, 64):
            client.flushall()
            queue = FleetQueue(client)
            names = begin(queue, plan, rows)
            in_fragments(queue, plan, rows, names)
            before, began = cast("dict[str, Any]", client.info()), process_time()
            calls = work_off(queue, plan, names, room)
            mine, after = process_time() - began, cast("dict[str, Any]", client.info())
            used = sum(after[f"used_cpu_{kind}"] - before[f"used_cpu_{kind}"] for kind in ("user", "sys"))
            commands = after["total_commands_processed"] - before["total_commands_processed"]
            print(
                f"room {room:3}: {calls / moved:6.3f} calls, {commands / moved:6.2f} commands, "
                f"{1e6 * used / moved:6.0f} us of Redis, {1e6 * mine / moved:6.0f} us of Python per row and step"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["memory", "redis"], help="memory, redis; both if none is named")
    chosen = parser.parse_args()
    if "memory" in chosen.parts:
        memory(roots=2000, rows=64, live=64, steps=2)
    if "redis" in chosen.parts:
        on_redis(rows=2048, steps=4)  # the first step breaks the root into fragments


if __name__ == "__main__":
    main()
