"""`python -m tests.chaos.killed --chains 500`: random chains in processes that are killed (SIGKILL) at random moments.

Each chain runs in a process of its own, which is killed up to three times and resumed each time. The last session ends by
itself, and its directory must be what the plain reading of the chain says. Exit 1 at the first that is not, with its folder
kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

from chainette import Chain
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.base import Completion, Request
from chainette.io.rundir.paths import RunDir
from chainette.run.options import RunOptions
from chainette.run.resumption import resume
from chainette.run.start import start
from tests.simulation.checker import check
from tests.simulation.engines import answer_to
from tests.simulation.scenario import Scenario, drawn_chain
from tests.support.counts import record
from tests.support.drawn import Choice, Item, Repeat, built, choices_of
from tests.support.meaning import Meaning
from tests.support.scripted import scripted

__all__ = ["main"]

#: Kills of one chain, and the seconds within which each comes.
_KILLS = 3
_SOON = 0.4

_RECORDS = 20


@dataclass
class _Totals:
    chains: int = 0
    routes: int = 0
    loops: int = 0
    joins: int = 0
    #: Kills, and how many of them left a run that had begun and was not finished.
    kills: int = 0
    midway: int = 0

    def __str__(self) -> str:
        return (
            f"{self.chains:,} chains ({self.routes:,} with routes, {self.loops:,} with loops, {self.joins:,} with joins) equal "
            f"their plain reading after {self.kills:,} kills, {self.midway:,} of them in the middle of a run"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=30, help="how many chains")
    parser.add_argument("--start", type=int, default=0, help="the first chain")
    parser.add_argument("--record", action="store_true", help="write the counts into docs/guarantees.md")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("chainette").setLevel(logging.ERROR)
    totals = _Totals()
    for number in range(given.start, given.start + given.chains):
        folder = Path(tempfile.mkdtemp(prefix="chainette-killed-"))
        scenario = drawn_chain(number, _RECORDS)
        try:
            _run(scenario, folder, totals)
        except Exception:
            traceback.print_exc()
            print(f"chain {number}, killed at random: {folder} has its files\n{scenario!r}")
            return 1
        shutil.rmtree(folder)
    print(totals)
    if given.record:
        record(f"make killed CHAINS={given.chains} START={given.start}", str(totals))
    return 0


def _run(scenario: Scenario, folder: Path, totals: _Totals) -> None:
    """One chain, from its first session to the checker's verdict."""
    rng = random.Random(f"killed {scenario.seed}")
    inputs, directory = folder / "inputs.jsonl", folder / "run"
    lines = [json.dumps({"w": 1} if number is None else {"v": number}) + "\n" for number in scenario.numbers]
    inputs.write_text("".join(lines))
    with scripted(left=_slowly, right=_slowly):
        steps = built(scenario.elements, ("left", "right"))
        plan = compile_chain(Chain(name="drawn", steps=steps, input_model=Item, batch_size=scenario.batch_size))
        for _ in range(_KILLS):
            killed = _session(scenario, plan, inputs, directory, after=_SOON * rng.random())
            totals.kills += killed
            totals.midway += killed and _is_begun(directory)
        assert not _session(scenario, plan, inputs, directory)
    check(scenario, Meaning(), directory)
    choices = choices_of(scenario.elements)
    totals.chains += 1
    totals.routes += any(isinstance(choice, Choice) for choice in choices)
    totals.loops += any(isinstance(choice, Repeat) for choice in choices)
    totals.joins += any(fork.joins for fork in plan.forks.values())


async def _slowly(request: Request) -> Completion:
    """The answer that follows from the question, after up to a fiftieth of a second."""
    await asyncio.sleep(len(request.messages[-1].content) % 5 / 200)
    return answer_to(request)


def _is_begun(directory: Path) -> bool:
    """Whether a process left a run that is not finished."""
    log = directory / "events.jsonl"
    data = log.read_bytes() if log.exists() else b""
    return b"\n" in data and b'"run_finished"' not in data


def _session(scenario: Scenario, plan: Plan, inputs: Path, directory: Path, after: float | None = None) -> bool:
    """Begins or resumes the run in a process of its own; whether it was killed. Without `after` it may end by itself."""
    child = os.fork()
    if child == 0:
        os._exit(_carry_out(scenario, plan, inputs, directory))
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"a session ended with {code}"
    return code != 0


def _carry_out(scenario: Scenario, plan: Plan, inputs: Path, directory: Path) -> int:
    log = directory / "events.jsonl"
    begun = log.exists() and b"\n" in log.read_bytes()
    options = RunOptions(format=scenario.format, max_rows_per_file=scenario.rows_per_file, window=scenario.window)
    try:
        asyncio.run(resume(RunDir(directory), plan, options) if begun else start(plan, str(inputs), directory, options))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
