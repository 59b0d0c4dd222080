"""CPU time that the in-memory queue takes per unit: `python benchmarks/memory_queue.py`. Admission, claim, commit, read and
acknowledgement, with no work in between."""

from __future__ import annotations

import argparse
from time import process_time

from pydantic import BaseModel

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.flow import frontier, row_of
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import RootRecord
from chainette.fleet.protocol.states import ANCHOR, Claim
from chainette.records import CHAIN_INPUT, Effects, Outcome, Output, Row, Unit, Usage


class Text(BaseModel):
    text: str


def plan_of_steps(steps: int, batch: int) -> Plan:
    """Steps in a row, over one engine."""
    with using_registry(EngineRegistry()):
        register_engine("e", model="m", backend="simulated")
        nodes = [Step(id=f"s{n}", input_model=Text, output_model=Text, engine_name="e") for n in range(steps)]
        return compile_chain(Chain(name="line", batch_size=batch, steps=nodes))


def outcome_of(plan: Plan, unit: Unit) -> Outcome:
    """Each row answered, and queued for the next step."""
    node = plan.nodes[unit.node]
    outputs = [Output(row.row_id, b'{"text":"' + b"x" * 200 + b'"}', 1) for row in unit.rows]
    rows = [row_of(node, row, output) for row, output in zip(unit.rows, outputs, strict=True)]
    follows = getattr(node.next, "node", "")
    units = [Unit(follows, unit.root, unit.part, unit.scope, rows)] if follows else []
    return Outcome(outputs, [], [], Usage(len(rows)), Effects(units))


def cost(queue: LeasedQueue, plan: Plan, roots: int, rows: int, live: int) -> float:
    """CPU seconds of all calls to the queue."""
    keys, position, spent = RunKeys("r", 0), (ANCHOR, "a"), 0.0
    names = [keys.queue(plan.engine_of(name), name) for name in sorted(plan.depths, key=lambda n: -plan.depths[n])]
    queue.install("r", 0, "me", "a", names, {"window": live * rows})
    queue.beat("w", {}, 3600)
    pairs, admitted, claims, done = [("r", name) for name in names], 0, 0, 0
    while done < roots:
        while admitted < min(roots, done + live):
            new = [Row(str(rows * admitted + n), {CHAIN_INPUT: b'{"text":"' + b"x" * 200 + b'"}'}) for n in range(rows)]
            effects, record = frontier(plan, admitted, new), RootRecord(new, rows)
            began = process_time()
            queue.admit(keys, plan, admitted, admitted, record, [], effects, f"a{admitted}")
            spent += process_time() - began
            admitted += 1
        while True:
            claims += 1
            began = process_time()
            claim = queue.claim("w", f"t{claims}", pairs, alone=True)
            spent += process_time() - began
            if not isinstance(claim, Claim):
                break
            outcome = outcome_of(plan, claim.unit)
            began = process_time()
            assert queue.commit(claim, "w", plan, outcome, f"c{claims}")
            entries = queue.read(keys, position)
            position = (entries[-1].id, entries[-1].token)
            ended = [entry.root for entry in entries if entry.done]
            queue.ack(keys, "me", position, ended)
            spent += process_time() - began
            done += len(ended)
    queue.close("r", 0, "me", names)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--roots", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--live", type=int, default=64, help="roots in the window")
    parser.add_argument("--steps", type=int, default=2)
    chosen = parser.parse_args()
    spent = cost(MemoryQueue(), plan_of_steps(chosen.steps, chosen.rows), chosen.roots, chosen.rows, chosen.live)
    units = chosen.roots * chosen.steps
    print(f"{units:,} units of {chosen.rows} rows: {1e6 * spent / units:.1f} us a unit")


if __name__ == "__main__":
    main()
