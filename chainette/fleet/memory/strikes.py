"""Strikes: units whose workers died run alone, and are cut in two in the end. A worker that lives takes its strikes back."""

from __future__ import annotations

from chainette.fleet.memory.memory_run import Job, RunInMemory

__all__ = ["pardon", "strike"]

#: Times that one unit gets a strike back, since it may be the one that stalls its workers.
_PARDONS = 3


def strike(run: RunInMemory, job: Job, me: str) -> None:
    """The lease of a worker ended while it held a unit: the unit may be claimed again."""
    if not job.ahead:
        counter = "deaths" if job.solo else "strikes"
        setattr(job, counter, getattr(job, counter) + 1)
        run.struck.setdefault(me, []).append((job.name, counter))
        job.solo = job.solo or job.strikes >= 2
    if job.is_broken:
        job.token = ""
        run.waiting(job.queue).broken.append(job.name)
    else:
        run.put_back(job)


def pardon(run: RunInMemory, me: str) -> bool:
    """The worker lives, so its lost leases count no more; whether any unit of the run got a strike back."""
    pardoned = False
    for name, counter in run.struck.pop(me, ()):
        job = run.jobs.get(name)
        if job is None or job.pardons >= _PARDONS or getattr(job, counter) == 0:
            continue
        job.pardons += 1
        setattr(job, counter, getattr(job, counter) - 1)
        _reconsider(run, job, counter)
        pardoned = True
    return pardoned


def _reconsider(run: RunInMemory, job: Job, counter: str) -> None:
    """A unit with fewer strikes need not run alone, or be cut in two."""
    waiting = run.waiting(job.queue)
    if counter == "strikes" and job.solo and job.strikes < 2:
        job.solo = False
        if job.name in waiting.solo:
            waiting.solo.remove(job.name)
            run.put_back(job)
    elif counter == "deaths" and not job.is_broken and job.name in waiting.broken:
        waiting.broken.remove(job.name)
        run.put_back(job)
