"""`python -m tests.chaos --seed 1 --faults 100`: runs under faults until so many have happened, or until the time is up.

Each run has a chain, a format and a schedule drawn from the seed and its number. When its schedule is over, everything is
healed, the run must finish, and its directory must be whole. Exit 1 at the first that is not, with its folder kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.projects import drawn
from tests.chaos.site import Broken, Site
from tests.chaos.verdict import require_whole
from tests.support.counts import record

__all__ = ["main"]

#: Faults of one run, if it does not finish before.
_PER_RUN = 24

#: Seconds in which a run must finish once all is well again.
_PATIENCE = 400.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=0, help="faults in all (default: 100, if no --minutes are given)")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no run after so many minutes")
    parser.add_argument("--model-every", type=int, default=6, help="every n-th run asks the small real model; 0: none")
    parser.add_argument("--record", action="store_true", help="write the counts into docs/guarantees.md")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # so that no process of ours stays
    most = chosen.faults or (0 if chosen.minutes else 100)
    happened: Counter[str] = Counter()
    began, runs = time.monotonic(), 0
    while sum(happened.values()) < most or time.monotonic() - began < 60 * chosen.minutes:
        model = bool(chosen.model_every) and runs % chosen.model_every == chosen.model_every - 1
        folder = Path(tempfile.mkdtemp(prefix="chainette-chaos-"))
        try:
            _run(folder, random.Random(f"{chosen.seed} {runs}"), happened, model=model)
        except (Broken, SystemExit, KeyboardInterrupt) as fault:
            print(f"seed {chosen.seed}, run {runs}: {fault!r}\n{folder} has its files\n{_told(runs, happened)}")
            return 1
        shutil.rmtree(folder)
        runs += 1
    print(_told(runs, happened))
    if chosen.record:
        words = f"SEED={chosen.seed} " + (f"FAULTS={chosen.faults}" if chosen.faults else f"MINUTES={chosen.minutes:g}")
        record(f"make chaos {words}", f"no fault of Chainette's; {_told(runs, happened)}")
    return 0


def _told(runs: int, happened: Counter[str]) -> str:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(happened.items()))
    return f"{runs} runs, {sum(happened.values()):,} faults: {kinds}"


def _run(folder: Path, rng: random.Random, happened: Counter[str], *, model: bool) -> None:
    project = drawn(rng, model=model)
    undisturbed = project.run_undisturbed(folder)
    with Site(folder, project, rng) as site:
        _disturb(site, happened)
        site.wait_until_finished(_PATIENCE)
        require_whole(site.out, undisturbed, same_answers=project.repeats)
        site.require_no_traceback()
    print(f"{project.name}, {project.format}: whole; {sum(happened.values()):,} faults so far", file=sys.stderr, flush=True)


def _disturb(site: Site, happened: Counter[str]) -> None:
    """Faults in bursts, with time between them in which leases end and work goes on."""
    names = list(FAULTS)
    weights = [weight for _, weight in FAULTS.values()]
    number = 0
    while number < _PER_RUN:
        for _ in range(site.rng.randint(1, 5)):
            if site.tend():
                return
            [name] = site.rng.choices(names, weights)
            FAULTS[name][0](site)
            happened[name] += 1
            number += 1
            time.sleep(site.rng.uniform(0.1, 1.0))
        if _work(site, site.rng.uniform(1.0, 9.0)):
            return


def _work(site: Site, seconds: float) -> bool:
    """Nothing happens for a while; True once the run is finished."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if site.tend():
            return True
        time.sleep(0.2)
    return False


if __name__ == "__main__":
    sys.exit(main())
