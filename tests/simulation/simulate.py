"""One scenario from its first session to the checker's verdict."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import secrets
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from chainette_workers.sink import drive as drive_module
from chainette_workers.sink import reused_answers
from chainette_workers.worker import engine_worker, heartbeat, served_runs

from chainette import Chain, register_engine
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine import backends
from chainette.engine.config import EngineRegistry, using_registry
from chainette.io.rundir import card, chain_marks, graph_of_plan
from chainette.io.rundir import open as open_module
from chainette.io.tables import column_types, schema_file
from chainette.run import unit_worker
from tests.simulation.checker import check
from tests.simulation.disk import Disk
from tests.simulation.engines import BACKEND
from tests.simulation.scenario import Scenario
from tests.simulation.sessions import Sessions
from tests.simulation.virtual import Threading, VirtualTime
from tests.simulation.wire import Server
from tests.simulation.world import World
from tests.support.drawn import Item, built
from tests.support.meaning import Meaning

__all__ = ["Outcome", "Simulator"]

#: Seconds between two looks of those who wait, longer than in the field: a look that finds nothing tests nothing.
_LOOKS = {
    (engine_worker, "_SOON"): 0.03,
    (engine_worker, "_LATE"): 1.0,
    (engine_worker, "_WATCH"): 1.0,
    (engine_worker, "_CHOICE"): 4.0,
    (served_runs, "_LOOK"): 2.0,
    (unit_worker, "_LOOK"): 0.5,
    (drive_module, "_LOOK"): 2.0,
    (drive_module, "_IDLE"): 0.1,
    (drive_module, "_LAZY"): 1.0,
}

#: Pure functions that take long. They are asked once per argument, whichever module calls them.
_PURE = (
    graph_of_plan.graph_of,
    chain_marks.marks_of,
    card.render_card,
    schema_file.schema_file,
    column_types.shape_of,
    open_module.versions,
)


class _Errors(logging.Handler):
    """The unexpected errors that threads of the product logged so that they can go on."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.logged: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(record)


@dataclass
class _Beats(heartbeat.Heartbeat):
    """A heartbeat whose thread takes turns with the others."""

    def __post_init__(self) -> None:
        vars(self)["_over"] = Threading.Event()


@dataclass
class _Desk(reused_answers._Desk):
    """A desk whose thread takes turns with the others."""

    def __post_init__(self) -> None:
        vars(self)["stop"] = Threading.Event()


def _replace(call: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Every module of the product that has the function gets the other."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("chainette"):
            vars(module).update({known: other for known, value in vars(module).items() if value is call})


def _collect() -> None:
    """Frees garbage. The next collection leaves out whatever survived this one: modules, and results that are remembered."""
    gc.collect()
    gc.freeze()


class _Remembered:
    """A pure function with its results so far."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call, self._found = call, dict[str, tuple[Any, Any]]()

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        name = f"{[id(value) if isinstance(value, Plan) else value for value in arguments]} {keys}"
        if name not in self._found:
            if len(self._found) > 1000:
                self._found.clear()
            self._found[name] = self._call(*arguments, **keys), arguments  # kept, so that no other plan gets its id
        return self._found[name][0]


@dataclass(frozen=True)
class Outcome:
    """One simulation."""

    scenario: Scenario
    hours: float
    happened: Counter[str]
    #: The first broken promise; None if all were kept.
    fault: BaseException | None


@dataclass
class Simulator:
    """Runs scenarios, one after the other, in a folder of its own."""

    clock: VirtualTime
    root: Path
    disk: Disk = field(default_factory=Disk)
    _plans: dict[str, Plan] = field(default_factory=dict)
    _runs: int = 0
    _errors: _Errors = field(default_factory=_Errors)

    def install(self) -> None:
        """For the rest of the process."""
        os.environ["PATH"] = ""  # no git
        warnings.simplefilter("ignore")
        backends.BUILT_IN = {**backends.BUILT_IN, BACKEND[0]: BACKEND[1]}
        vars(heartbeat)["threading"] = Threading
        vars(engine_worker)["Heartbeat"] = _Beats
        vars(reused_answers)["threading"] = Threading
        vars(reused_answers)["_Desk"] = _Desk
        for (module, name), seconds in _LOOKS.items():
            setattr(module, name, seconds)
        for call in _PURE:
            _replace(call, _Remembered(call))
        vars(yaml)["SafeDumper"] = yaml.CSafeDumper
        self.disk.install()
        log = logging.getLogger("chainette")
        log.addHandler(self._errors)
        log.propagate = False
        gc.disable()  # between the runs it is enough
        _collect()

    def run(self, scenario: Scenario) -> Outcome:
        rng = random.Random(f"world {scenario.seed}")
        self._runs += 1
        if self._runs % 100 == 0:
            _collect()
        root = self.root / "w"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        faults = {(fault.site, fault.at): fault for fault in scenario.faults}
        world = World(self.clock, root, rng, faults)
        fault: BaseException | None = None
        random.seed(scenario.seed)
        with mock.patch.object(secrets, "token_hex", lambda size: f"{rng.getrandbits(8 * size):0{2 * size}x}"):
            try:
                self._go(scenario, world)
            except Exception as error:
                fault = error
        return Outcome(scenario, self.clock.now / 3600, world.happened, fault)

    def _go(self, scenario: Scenario, world: World) -> None:
        plan, inputs = self._plan(scenario), self._inputs(scenario, world.root)
        sessions = Sessions(scenario, plan, world, inputs, Server(world))
        self._errors.logged.clear()
        self.disk.begin(world, journals=any(fault.kind == "power cut" for fault in scenario.faults))
        try:
            self.clock.run(sessions.go())
        finally:
            self.disk.end()
        for record in self._errors.logged:
            raise AssertionError(record.getMessage()) from (record.exc_info or (None, None))[1]
        if world.crashes:
            raise AssertionError("a worker ended by itself") from world.crashes[0]
        if scenario.dedupe and not (scenario.faults or scenario.then):
            again = [question for question, times in world.asked.items() if times > 1]
            assert not again, f"asked more than once: {again}"
        check(scenario, Meaning(sessions.retries, sessions.anew), sessions.directory)

    def _plan(self, scenario: Scenario) -> Plan:
        key = f"{scenario.elements} {scenario.batch_size} {scenario.dedupe}"
        if key not in self._plans:
            if len(self._plans) > 4:
                self._plans.clear()
            with using_registry(EngineRegistry()):
                for name in ("left", "right"):
                    register_engine(name, "none", BACKEND[0], capacity=2)
                steps = built(scenario.elements, ("left", "right"))
                chain = Chain(name="drawn", steps=steps, input_model=Item, batch_size=scenario.batch_size)
                self._plans[key] = compile_chain(chain, dedupe=scenario.dedupe)
        return self._plans[key]

    def _inputs(self, scenario: Scenario, root: Path) -> Path:
        path = root / "inputs.jsonl"
        lines = [json.dumps({"w": 1} if number is None else {"v": number}) + "\n" for number in scenario.numbers]
        path.write_text("".join(lines))
        os.utime(path, (1.7e9, 1.7e9))
        return path
