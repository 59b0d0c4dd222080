"""The runs a worker serves, and the queues that it may claim from, best first."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.queue_values import Claim
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.hooks import Hook
from chainette.run.claimable_queues import ClaimableQueue, claimable_queues
from chainette_workers.runtime import insist

__all__ = ["FUNCTIONS", "JOINS", "ServedRuns", "lane_of"]

#: Lanes that are no engine's.
FUNCTIONS, JOINS = "functions", "joins"

#: Seconds between two looks at the list of runs, if there are any, and if there are none: at first, since the run that a
#: worker was started for is about to begin, and later.
_LOOK, _FIRST, _SOON = 1.0, 0.01, 0.1

#: Seconds until another look at a run that could not be served: its files may have changed.
_AGAIN = 5.0


@dataclass
class _Known:
    """A run with its plan; None if this worker may not serve it, until it is looked at again."""

    info: RunInfo
    plan: Plan | None
    places: tuple[ClaimableQueue, ...] = ()
    #: Told of all that happens to the run here.
    hook: Hook = field(default_factory=Hook)
    looked_at: float = field(default_factory=time.monotonic)


@dataclass
class ServedRuns:
    """The runs of a Redis, as far as the worker can serve them."""

    queue: LeasedQueue
    #: Names of engines; "python" among them for functions and joins.
    names: Collection[str]
    #: The plan of a run, or None if this worker may not serve it. Called in a thread: it imports the user's code.
    plan_of: Callable[[RunInfo], Plan | None]
    #: Called if the files on the disk are no longer those of the plan.
    forget_plan: Callable[[RunInfo], None] = lambda _info: None
    hook: Hook = field(default_factory=Hook)
    #: Called with the runs that are left, when others have gone.
    keep: Callable[[Collection[str]], None] = lambda _runs: None
    _known: dict[tuple[str, int], _Known] = field(default_factory=dict)
    _turn: int = 0

    async def follow(self, news: Callable[[], None]) -> None:
        """Keeps up with the list of runs; calls `news` when there are more to serve."""
        pause = _FIRST
        while True:
            if await self.look():
                news()
            await anyio.sleep(_LOOK if self._known else pause)
            pause = min(_SOON, 2 * pause)

    async def look(self) -> bool:
        """Learns of new runs and of new epochs, and forgets those that are gone; whether there are more to serve."""
        more = False
        infos = {(info.run, info.epoch): info for info in await insist(self.queue.runs)}
        runs, gone = {run for run, _ in infos}, self._known.keys() - infos.keys()
        for key in gone:
            del self._known[key]
            if key[0] not in runs:
                self.hook.forget_run(key[0])
        if gone:
            self.keep(runs)
        for key, info in infos.items():
            known = self._known.get(key)
            if known is not None and (known.plan is not None or time.monotonic() - known.looked_at < _AGAIN):
                known.info = known.info if info.damage else info
                continue
            plan = await anyio.to_thread.run_sync(self.plan_of, info)
            self._known[key] = _Known(info, None) if plan is None else self._served(info, plan)
            more = more or plan is not None
        return more

    def _served(self, info: RunInfo, plan: Plan) -> _Known:
        def lane(plan: Plan, name: str) -> str | None:
            return lane_of(plan, name) if plan.engine_of(name) in self.names else None

        return _Known(info, plan, tuple(claimable_queues(info, plan, lane)), self.hook.of_run(info.run, plan))

    def plan(self, claim: Claim) -> tuple[RunInfo, Plan, Hook] | None:
        """A claim's run, with its plan and hook; None if the run is in another epoch by now."""
        known = self._known.get((claim.run, claim.epoch))
        return None if known is None or known.plan is None else (known.info, known.plan, known.hook)

    def forget(self, claim: Claim) -> None:
        """Forgets a run whose chain has changed: nothing more of it is claimed before its files were compared again."""
        known = self._known.pop((claim.run, claim.epoch), None)
        if known is not None:
            self.forget_plan(known.info)

    def places(self) -> Iterator[ClaimableQueue]:
        """Queues that units may be claimed from: runs in rotation, deepest node first."""
        running = [known for known in self._known.values() if known.info.state == "running" and known.places]
        self._turn += 1
        turn = self._turn % len(running) if running else 0
        for known in running[turn:] + running[:turn]:
            yield from known.places

    @property
    def queues(self) -> list[tuple[str, str]]:
        """(run, queue) of all that is served; any thread may ask."""
        return [(place.run, place.queue) for known in [*self._known.values()] for place in known.places]

    def plans(self) -> Iterable[tuple[RunInfo, Plan]]:
        """Every run that is served."""
        return [(known.info, known.plan) for known in self._known.values() if known.plan is not None]


def lane_of(plan: Plan, name: str) -> str:
    """The lane of a node's units, of a fork's join units, and of those that name nothing in the plan."""
    node = plan.stations.get(name)
    if node is None:
        return JOINS
    return plan.engines[node.engine].digest if node.kind is NodeKind.STEP else FUNCTIONS
