"""A worker that ends by kill -9 at a named point: `python -m tests.support.doomed POINT`, told the rest as any worker is."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from chainette_workers.worker.standalone import main

from chainette.fleet.redis.redis_queue import FleetQueue

__all__ = ["POINTS"]

#: Point -> the call of the queue at which it lies.
POINTS = {
    "after a claim": "claim_rows",
    "after a claim ahead": "claim_rows",
    "after the start of a unit that was claimed ahead": "start",
    "before a commit": "commit",
    "after a commit whose reply is not seen": "commit",
    "before handing back": "release",
    "while handing back": "release",
}


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def doom(point: str, number: int) -> None:
    """Has the process die at the n-th time that it comes to the point."""
    left = [number]

    def now() -> bool:
        left[0] -= 1
        return left[0] < 0

    name = POINTS[point]
    call: Callable[..., Any] = getattr(FleetQueue, name)

    def doomed(queue: FleetQueue, *arguments: Any, **keys: Any) -> Any:
        before = point.startswith("before")
        if before and now():
            die()
        found = call(queue, *arguments, **keys)
        reached = name != "claim_rows" or (isinstance(found, list) and found and keys.get("ahead", False) is ("ahead" in point))
        if not before and reached and now():
            die()
        return found

    setattr(FleetQueue, name, doomed)
    if name == "release":
        _stop_after(3)


def _stop_after(commits: int) -> None:
    """SIGTERM in the middle of the work."""
    call, left = FleetQueue.commit, [commits]

    def commit(*arguments: Any, **keys: Any) -> bool:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(*arguments, **keys)

    setattr(FleetQueue, "commit", commit)  # noqa: B010


if __name__ == "__main__":
    rare = "handing back" in sys.argv[1] or "ahead" in sys.argv[1]
    doom(sys.argv[1], 0 if rare else 2)
    sys.exit(main())
