"""A run whose directory somebody else writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chainette.core.plan import Plan
from chainette.io.inputs.readers import InputFile
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.records import Read
from chainette.run.options import RunOptions
from chainette.run.recorded_options import recorded_options
from chainette.run.resumed_input import resumed_input
from chainette.run.same_chain import require_unchanged

__all__ = ["Observed", "observe"]


@dataclass(frozen=True)
class Observed:
    """A directory as it is at one moment, in other hands."""

    plan: Plan
    source: InputFile
    state: RunState
    options: RunOptions


def observe(directory: RunDir, plan: Plan, inputs: Path | Sequence[Path], read: Read | None = None) -> Observed:
    """Everything needed to admit the rows of a run whose directory somebody else writes. `read` is how far the input was
    read for roots that may not be durable yet.

    Raises:
        RunDirectoryError: there is no run.
        ChainChanged: the chain is not the one that the directory is written with.
        InputError: the input is gone, or it is not the one that the run began with.
    """
    state, _ = read_state(directory)
    options = replace(recorded_options(directory, state, RunOptions()), parameters=state.parameters)
    require_unchanged(directory, state, plan)
    if read is not None:
        state.apply_read(read)
    source, _ = resumed_input(directory, state, options, inputs)
    return Observed(plan, source, state, options)
