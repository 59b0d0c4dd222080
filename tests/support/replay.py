"""The files of a run that follow from its log, made from the log alone."""

from __future__ import annotations

from pathlib import Path

from chainette.io.rundir.derived_files import pretty
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.run_state import RunState

__all__ = ["replay"]


def replay(log: Path) -> tuple[bytes, bytes]:
    """(graph.json, metadata.json) as bytes."""
    state = RunState()
    for _, event in read_log(log):
        state.apply(event)
    return pretty(state.graph), pretty(metadata_of(state))
