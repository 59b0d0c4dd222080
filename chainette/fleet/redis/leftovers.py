"""Deleting the leftovers of runs and epochs from Redis."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis

__all__ = ["give_up", "sweep"]

#: Seconds a cancelled run is remembered if its sink does not come back.
_WEEK = 7 * 86400


def give_up(connection: redis.Redis, run: str) -> None:
    """Deletes the units of a run that was cancelled. Keys its sink may still read expire within a week."""
    for name in connection.scan_iter(f"rq:job:{run}_[0-9]*", count=1000):
        connection.unlink(name)
    kept = re.compile(rf"chainette:{re.escape(run)}:\d+:(stream|live|out|r:|e:|apart|parked)".encode())
    for name in connection.scan_iter(f"chainette:{run}:[0-9]*", count=1000):
        if kept.match(name):
            connection.expire(name, _WEEK)
        else:
            connection.unlink(name)


def sweep(connection: redis.Redis, run: str, before: int) -> None:
    """Deletes the keys of older epochs of a run: nothing refers to them any more."""
    for pattern, end in ((f"chainette:{run}:", ":"), (f"rq:job:{run}_", "_")):
        epoch_of = re.compile(re.escape(pattern).encode() + rb"(\d+)" + end.encode())
        found = connection.scan_iter(f"{pattern}[0-9]*", count=1000)
        names = [name for name in found if (match := epoch_of.match(name)) and int(match[1]) < before]
        for start in range(0, len(names), 500):
            connection.unlink(*names[start : start + 500])
