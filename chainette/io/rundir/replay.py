"""graph.json and metadata.json from the events of a log alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from chainette.io.rundir.event_types import AnyEvent
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.run_state import RunState

__all__ = ["pretty", "replay"]


def replay(events: Iterable[AnyEvent]) -> tuple[bytes, bytes]:
    """(graph.json, metadata.json) as bytes, from a run's events alone."""
    state = RunState()
    for event in events:
        state.apply(event)
    return pretty(state.graph), pretty(metadata_of(state))


def pretty(value: Any) -> bytes:
    """JSON for people."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
