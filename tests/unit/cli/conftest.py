"""A run directory as a run in progress would leave it: a real log, written event by event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from chainette.core.apply import ApplyNode, apply
from chainette.core.branch import Branch
from chainette.core.chain import Chain
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.core.step import Step
from chainette.engine.config import EngineRegistry, make_config
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.event_types import Event, RootDone, RunCreated, RunFinished, UnitCommitted
from chainette.io.rundir.graph_of_plan import graph_of


class Text(BaseModel):
    text: str


def _split(item: Text) -> list[Text]:
    return [item, item]


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A run directory whose log grows by `tell`, and a hook that hears of it, as from the executor."""

    def __init__(self, path: Path, plan: Plan) -> None:
        path.mkdir()
        self.path, self.plan = path, plan
        self._log = EventLog(path / "events.jsonl")
        self.hear: Callable[[Event], None] = lambda _event: None
        self.tell(
            RunCreated(
                run_id="r1",
                chain=plan.chain,
                chain_ref="chain.py",
                chain_root=".",
                graph=graph_of(plan),
                settings={"seed": 0, "format": "jsonl", "batch_size": 8},
                input={"path": "in.jsonl"},
                versions={},
            )
        )

    def tell_root(self, records: int, rejected: int = 0) -> None:
        """A whole root of the plan below, of which the first step rejected some rows; and the end of the run."""
        passed = records - rejected
        reasons = {"not_json": rejected} if rejected else {}
        done = RootDone(records=records, bad=0, finished=passed, forks={next(iter(self.plan.forks)): (passed, 0)})
        self.tell(
            UnitCommitted(node="first", root=0, taken=records, given=passed, rejected=rejected, reasons=reasons),
            UnitCommitted(node="split", root=0, taken=passed, given=2 * passed, added=passed),
            UnitCommitted(node="inner", root=0, taken=2 * passed, given=2 * passed),
            UnitCommitted(node="side", root=0, taken=passed, given=passed),
            UnitCommitted(node="last", root=0, taken=passed, given=passed, root_done=done),
            RunFinished(input_digest="d", records=records),
        )

    def tell(self, *events: Event) -> None:
        for _, event in self._log.append(events):
            self.hear(event)

    def next_epoch(self) -> None:
        self._log.epoch += 1

    def close(self) -> None:
        self._log.close()


def _step(id: str, engine: str = "llama") -> Step[Text, Text]:
    return Step(id=id, input_model=Text, output_model=Text, engine_name=engine)


@pytest.fixture
def plan() -> Plan:
    """first -> [left, joined: split, inner | right, not joined] -> last"""
    split: ApplyNode[Text, Text] = apply(_split, id="split")
    branches = [Branch("left", [split, _step("inner")]).join("parts"), Branch("right", [_step("side")])]
    registry = EngineRegistry()
    for name in ("llama", "judge"):
        registry.add(make_config(name, f"{name}-model", "simulated"))
    chain = Chain(name="texts", steps=[_step("first"), branches, _step("last", "judge")])
    return compile_chain(chain, registry=registry)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(tmp_path: Path, plan: Plan) -> Iterator[Run]:
    run = Run(tmp_path / "out", plan)
    yield run
    run.close()
