"""The lines a worker logs about its work: the engines it loads, the runs it serves, and its share of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from chainette.core.plan import Plan
from chainette.engine.base import Completion, Engine, Request
from chainette.engine.config import EngineConfig
from chainette.hooks import Hook, Stage
from chainette.io.rundir.event_types import EngineLoaded, EngineReleased, Event
from chainette.utils.plurals import counted
from chainette_workers.runtime import say

__all__ = ["WorkLog"]


class _Share(Hook):
    """One run's units and answers that are from this worker."""

    def __init__(self) -> None:
        #: By node.
        self._units: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()

    def on_stage(self, node: str, stage: Stage, seconds: float) -> None:  # noqa: ARG002 - counts, whatever the time
        self._units[node] += stage is Stage.COMMIT

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:  # noqa: ARG002 - as above
        self._answers[step_id] += len(completions)

    def __str__(self) -> str:
        parts = [
            f"{node} {counted(units, 'unit')}"
            + (f" with {counted(self._answers[node], 'answer')}" if node in self._answers else "")
            for node, units in self._units.items()
            if units
        ]
        return f"from this worker: {', '.join(parts) or 'nothing'}"


class WorkLog(Hook):
    """Logs the engines that a worker loads, the runs it serves, and the ends of both."""

    def __init__(self, tell: Callable[[str], None] = say) -> None:
        self._tell = tell
        self._shares: dict[str, _Share] = {}

    def opening(self, create: Callable[[EngineConfig], Engine]) -> Callable[[EngineConfig], Engine]:
        """The same factory of engines, which logs each before it loads."""

        def told(config: EngineConfig) -> Engine:
            self._tell(f"engine {config.name}: loading {config.model} ({config.backend})")
            return create(config)

        return told

    def on_event(self, event: Event) -> None:
        match event:
            case EngineLoaded():
                self._tell(f"engine {event.engine}: ready after {event.seconds:.1f} s")
            case EngineReleased():
                self._tell(f"engine {event.engine}: released")

    def of_run(self, run: str, plan: Plan) -> Hook:
        if run not in self._shares:
            self._shares[run] = _Share()
            self._tell(f"run {run}: serving it (chain {plan.chain})")
        return self._shares[run]

    def forget_run(self, run: str) -> None:
        if share := self._shares.pop(run, None):
            self._tell(f"run {run}: over; {share}")

    def end(self) -> None:
        """The worker ends before these runs."""
        for run, share in self._shares.items():
            self._tell(f"run {run}: left to others; {share}")
        self._shares.clear()
