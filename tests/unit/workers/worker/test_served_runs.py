"""The runs a worker serves."""

from __future__ import annotations

import anyio
from chainette_workers.worker.engine_pool import EnginePool
from chainette_workers.worker.engine_worker import EngineWorker
from chainette_workers.worker.served_runs import ServedRuns

from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.run.blame import Evidence
from chainette.run.in_flight import Lane


def test_nothing_is_left_in_a_worker_of_runs_that_are_gone() -> None:
    queue, kept = MemoryQueue(), list[set[str]]()
    served = ServedRuns(queue, ("sim",), lambda _info: None, keep=lambda runs: kept.append({*runs}))
    worker = EngineWorker(queue, served, EnginePool())
    for run in ("run-a", "run-b"):
        queue.install(run, 0, "owner", f"anchor-{run}", [], {"window": 64})
        worker.evidence[run, 0, "step"] = Evidence(Lane(1))
        worker._withdrawn.add(run)
    anyio.run(served.look)
    assert not kept
    queue.close("run-a", 0, "owner", [])
    anyio.run(served.look)
    assert kept == [{"run-b"}]
    worker.keep(kept[0])
    assert ({run for run, _, _ in worker.evidence}, worker._withdrawn) == ({"run-b"}, {"run-b"})
