"""The options of a session that goes on with a run: the log fixes most of them, and some may be raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chainette.core.run_settings import FLAGS, RECORDED, RESUMABLE, RunSettings
from chainette.engine.budget import merged
from chainette.errors import RunDirectoryError
from chainette.io.rundir.logged_paths import chain_root_of
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.run.options import RunOptions
from chainette.utils.plurals import counted

__all__ = ["recorded_options", "require_accept", "require_limit", "require_reuse", "reused_by", "wanted_of"]


def recorded_options(directory: RunDir, state: RunState, options: RunOptions) -> RunOptions:
    """The options of this session with everything the log fixes.

    Raises:
        RunDirectoryError: a setting differs from the recorded one; the limit may be raised.
    """
    run = state.run
    fixed = {name: value for name, value in run.settings.items() if name in FLAGS}
    root = str(chain_root_of(run, directory)) if run.chain_root else ""
    if fixed.get("engines_file"):
        fixed["engines_file"] = str(Path(root) / fixed["engines_file"])
    fixed["limit"] = require_limit(directory, state, options.limit)
    fixed["reuse"] = require_reuse(directory, state, options.reuse)
    fixed["accept"] = require_accept(directory, state, options.accept)
    recorded = RunSettings(**fixed)
    for name in options.given.keys() & RECORDED - RESUMABLE - {"engines_file"}:
        if (value := getattr(options, name)) != (known := getattr(recorded, name)):
            raise RunDirectoryError(
                f"{directory}: {name} is fixed by the log of the run: it is {known!r} there and cannot become {value!r}; "
                f"begin a new run to change it"
            )
    options = replace(options, budget=merged(state.budget, options.budget))
    fixed |= {name: getattr(recorded, name) for name in RECORDED - RESUMABLE - fixed.keys()}
    return replace(options, **fixed, chain_ref=run.chain_ref, chain_root=root)


def require_reuse(directory: RunDir, state: RunState, wanted: Sequence[str]) -> Sequence[str]:
    """The earlier runs of a session: the wanted ones instead of the recorded ones. A sample of its plan stays.

    Raises:
        RunDirectoryError: the run began without any.
    """
    known = reused_by(directory, state)
    if wanted and not known:
        raise RunDirectoryError(f"{directory}: the run takes no answers from others; begin a new run with --reuse to do so")
    return (*wanted, *({str(directory.sample)} & {*known} - {*wanted})) if wanted else known


def reused_by(directory: RunDir, state: RunState) -> tuple[str, ...]:
    """The earlier runs a run takes answers from; the sample of its own plan moves with it."""
    recorded, own = state.run.settings.get("reuse") or (), directory.sample
    lost = {path for path in recorded if Path(path).parts[-2:] == own.parts[-2:] and not RunDir(path).exists()}
    return tuple(str(own) if path in lost and RunDir(own).exists() else path for path in recorded)


def require_limit(directory: RunDir, state: RunState, wanted: int | None) -> int | None:
    """The limit of a session: the recorded one, or the higher one that is wanted.

    Raises:
        RunDirectoryError: it is lower.
    """
    if wanted is None or wanted == state.limit:
        return state.limit
    if state.limit is None:
        raise RunDirectoryError(f"{directory}: the run takes the whole input; a limit of {wanted} cannot be set afterwards")
    if wanted < state.limit:
        raise RunDirectoryError(
            f"{directory}: the run takes {counted(state.limit, 'record')}, and their results stay; a limit can be raised, "
            f"not lowered to {wanted:,}"
        )
    return wanted


def wanted_of(state: RunState) -> int | None:
    """The number of rows a run accepts; None if it takes all."""
    return None if state.accepted is None else state.accepted.wanted


def require_accept(directory: RunDir, state: RunState, wanted: int | None) -> int | None:
    """The number of rows a session accepts: the recorded one, or the higher one that is wanted.

    Raises:
        RunDirectoryError: it is lower.
    """
    known = wanted_of(state)
    if wanted is None or wanted == known:
        return known
    if known is None:
        raise RunDirectoryError(
            f"{directory}: the run takes all rows; it cannot stop after {wanted:,} now. Begin a new run with --accept"
        )
    if wanted < known:
        raise RunDirectoryError(
            f"{directory}: the run accepts {counted(known, 'row')}, and those that are written stay; the number can be raised, "
            f"not lowered to {wanted:,}. For fewer rows, take the first of flattened"
        )
    return wanted
