"""Why a run does not move: computed from what is in Redis, for `enqueue`, `status` and `runs` alike."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from chainette.fleet.protocol.keys import engine_of, served
from chainette.fleet.redis.run_registry import Role
from chainette.fleet.redis.snapshot import Snapshot

__all__ = ["reasons"]

#: Seconds without movement from which on a full window is a reason.
_STILL = 2

#: Results that a sink takes at once; more of them waiting means that it is behind.
_BEHIND = 256


def reasons(snapshot: Snapshot) -> list[str]:
    """What keeps a run from moving, in words, with the command that helps; [] where nothing is known to."""
    info = snapshot.info
    if info.state == "cancelled":
        return ["it was cancelled, and its sink has not heard of it yet"]
    return [
        *_held(snapshot),
        *_unattended(snapshot),
        *_refused(snapshot),
        *_unserved(snapshot),
        *_failing(snapshot),
        *_full(snapshot),
    ]


def _held(snapshot: Snapshot) -> Iterator[str]:
    info = snapshot.info
    if info.state == "paused":
        why = info.fields.get("reason", "")
        yield f"run {info.run} is paused{f': {why}' if why else ''}; go on: chainette unpause {info.run}"


def _unattended(snapshot: Snapshot) -> Iterator[str]:
    """Roles that nobody who lives has; a run that was never handed over has both in one process."""
    fields, members = snapshot.info.fields, snapshot.members
    missing = [role for role in Role if fields.get(role, "") not in members and not _is_over(snapshot, role)]
    if "order" in fields:
        kinds = {words.get("kind") for words in members.values()}
        for role in missing:
            if role not in kinds:
                yield f"no live {role}; start: chainette {role}"
    elif missing and fields.get(Role.SINK):
        yield "the process that enqueued it is gone; go on: chainette resume DIR"


def _is_over(snapshot: Snapshot, role: Role) -> bool:
    return role is Role.COORDINATOR and "total" in snapshot.info.fields


def _refused(snapshot: Snapshot) -> Iterator[str]:
    """What workers and services that live said of it."""
    for name, words in snapshot.info.fields.items():
        kind, _, member = name.partition(":")
        if kind == "refused" and words and member in snapshot.members:
            yield words


def _unserved(snapshot: Snapshot) -> Iterator[str]:
    known = {engine for words in snapshot.members.values() for engine in served(words)}
    waiting = {engine_of(name) for name, load in snapshot.queues.items() if load.waiting}
    for engine in sorted(waiting - known):
        yield f"no live worker serves {engine!r}; start: chainette worker --engine {shlex.quote(engine)}"


def _failing(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.delayed:
        said = f": {snapshot.trouble}" if snapshot.trouble else ""
        yield f"{snapshot.delayed:,} units wait, because their engine does not answer{said}"


def _full(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.results > _BEHIND:
        yield f"the sink is behind: {snapshot.results:,} results wait to be written"
    elif snapshot.still < _STILL or any(load.units for load in snapshot.queues.values()):
        return  # a full window is how a healthy run bounds its memory: it moves on with each root that becomes durable
    elif snapshot.window and snapshot.live_rows >= snapshot.window:
        yield f"the window is full: {snapshot.live_rows:,} rows are between admission and the disk, of {snapshot.window:,}"
    elif snapshot.window_bytes and snapshot.live_bytes >= snapshot.window_bytes:
        yield f"the window is full: rows of {snapshot.live_bytes >> 20:,} MiB are between admission and the disk"
