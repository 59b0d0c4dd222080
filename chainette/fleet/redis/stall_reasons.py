"""Reasons why a run does not move, computed from Redis, for `enqueue`, `status` and `runs` alike."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from chainette.fleet.redis.fleet_view import LiveRun
from chainette.fleet.redis.run_registry import Role
from chainette.utils.plurals import counted

__all__ = ["reasons"]

#: Seconds without movement from which on a full window is a reason.
_STILL = 2

#: Results a sink takes at once; if more are waiting, it is behind.
_BEHIND = 256


def reasons(run: LiveRun, *, own_workers: bool = False) -> list[str]:
    """Sentences that say why a run does not move, each with the command that helps; [] if no reason is known.

    `own_workers`: the workers are children of the caller, which starts them without anybody's help.
    """
    if run.info.state == "cancelled":
        return ["it was cancelled, and its sink has not heard of it yet"]
    return [
        *_held(run),
        *_damaged(run),
        *_unattended(run),
        *_refused(run),
        *_unserved(run, own_workers),
        *_failing(run),
        *_full(run),
    ]


def _held(run: LiveRun) -> Iterator[str]:
    if run.info.state == "paused":
        why = f": {run.info.reason}" if run.info.reason else ""
        yield f"run {run.info.run} is paused{why}; go on: chainette unpause {run.info.run}"


def _damaged(run: LiveRun) -> Iterator[str]:
    if run.info.damage:
        yield f"its record in Redis is damaged ({run.info.damage}); its sink rewrites it, or: chainette resume DIR"


def _unattended(run: LiveRun) -> Iterator[str]:
    """Roles without a live process; a run that was never handed over has both in one process."""
    info = run.info
    has = {Role.SINK: info.sink} if info.total is not None else {Role.COORDINATOR: info.coordinator, Role.SINK: info.sink}
    missing = [role for role, member in has.items() if member not in run.members]
    if info.order:
        kinds = {member.kind for member in run.members.values()}
        for role in missing:
            if role not in kinds:
                yield f"no live {role}; start: chainette {role}"
    elif missing and info.sink:
        yield "the process that enqueued it is gone; go on: chainette resume DIR"


def _refused(run: LiveRun) -> Iterator[str]:
    """Refusals of live workers and services."""
    yield from (words for member, words in run.info.refusals.items() if member in run.members)


def _unserved(run: LiveRun, own_workers: bool) -> Iterator[str]:
    known = {engine for member in run.members.values() for engine in member.engines}
    for engine in sorted({queue.engine for queue in run.queues if queue.waiting} - known):
        if own_workers:
            yield f"the workers of {engine!r} are not ready yet"
        else:
            yield f"no live worker serves {engine!r}; start: chainette worker --engine {shlex.quote(engine)}"


def _failing(run: LiveRun) -> Iterator[str]:
    if run.delayed:
        said = f": {run.trouble}" if run.trouble else ""
        yield f"{counted(run.delayed, 'unit')} waiting for an engine that does not answer{said}"


def _full(run: LiveRun) -> Iterator[str]:
    info = run.info
    if run.results > _BEHIND:
        yield f"the sink is behind: {run.results:,} results wait to be written"
    elif info.still < _STILL or any(queue.units for queue in run.queues):
        return  # a full window is how a healthy run bounds its memory: it moves on with each root that becomes durable
    elif info.window and info.live_rows >= info.window:
        yield f"the window is full: {info.live_rows:,} of {counted(info.window, 'row')} are between admission and the disk"
    elif info.window_bytes and info.live_bytes >= info.window_bytes:
        yield f"the window is full: rows of {info.live_bytes >> 20:,} MiB are between admission and the disk"
