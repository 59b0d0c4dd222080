"""An engine that is slow, fails and lies as the schedule says. Its answers follow from the questions alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from chainette.engine.base import Completion, Done, Engine, Finish, Request
from chainette.engine.config import EngineConfig
from chainette.engine.simulated.simulator import SimulatedOptions
from chainette.errors import EngineUnavailable
from chainette.records import Usage, declared_of
from tests.simulation.world import CURRENT, Fault, Process
from tests.support.drawn import judged

__all__ = ["BACKEND", "SimulatedByWorld", "answer_to"]

#: The backend's name, and where it is found.
BACKEND = ("world", f"{__name__}:SimulatedByWorld")

_FINISH = {"truncated": Finish.LENGTH, "refused": Finish.REFUSED}


def _here() -> Process:
    process = CURRENT.get()
    assert process is not None
    return process


def _asked(request: Request) -> tuple[str, str, str]:
    """(node, question, number of the ask)."""
    question = request.messages[-1] if len(request.messages) < 3 else request.messages[-3]
    node, _, ask = request.label.split("/")
    return node, question.content.splitlines()[0], ask


def answer_to(request: Request) -> Completion:
    """The answer that follows from the question of a drawn step."""
    node, question, ask = _asked(request)
    verdict = judged(declared_of(node), question, int(ask))
    return Completion(verdict.text, _FINISH.get(verdict.reason, Finish.STOP), usage=Usage(1, 10, 5, 0.0))


class SimulatedByWorld(Engine):
    """One engine of one process; it is down where the world says so."""

    options = SimulatedOptions
    deterministic = True

    def __init__(self, config: EngineConfig) -> None:
        self.name = config.name
        self.capacity = config.capacity or 4

    async def open(self) -> None:
        await self._require_up("open")

    async def _require_up(self, site: str) -> Fault | None:
        process = _here()
        await process.awake()
        world = process.world
        fault = world.fate(site)
        if fault is not None and fault.kind == "engine down":
            world.happen(fault.kind)
            world.down[self.name] = world.clock.now + 5 + 700 * fault.amount**6
            fault = None
        if world.down.get(self.name, 0.0) > world.clock.now:
            raise EngineUnavailable(f"engine {self.name!r} is down")
        return fault

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        assert done is not None
        fault = await self._require_up("engine")
        process = _here()
        world, rng, kind = process.world, process.world.rng, fault.kind if fault is not None else ""
        if fault is not None:
            world.happen(kind)
        world.asked.update((self.name, *_asked(request)) for request in requests)
        order = [*range(len(requests))]
        rng.shuffle(order)
        slow = 40 * fault.amount if fault is not None and kind == "slow engine" else rng.choice((0.0, 0.0, 0.01, 0.8))
        found: dict[int, Completion] = {}
        for number, index in enumerate(order):
            if slow:
                await asyncio.sleep(slow * rng.random())
                await process.awake()
            if kind == "engine fails midway" and number >= len(order) // 2:
                asyncio.get_running_loop().call_later(0.1, done, index, answer_to(requests[index]))  # too late
                raise EngineUnavailable(f"engine {self.name!r} broke off")
            found[index] = answer_to(requests[index])
            if kind != "engine tells nothing early" and (number or slow):
                done(index, found[index])
                if kind == "engine answers twice":
                    done(index, Completion('{"v": 77777}'))
                    found[index] = Completion('{"v": 88888}')
        if kind == "engine gives too few answers":
            return []
        return [found[index] for index in range(len(requests))]

    async def close(self) -> None:
        pass
