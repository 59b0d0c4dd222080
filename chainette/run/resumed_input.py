"""The input of a run that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chainette.errors import InputError
from chainette.io.inputs.growing_file import GrowingFile, RowSource
from chainette.io.inputs.hub import HubRows, is_hub
from chainette.io.inputs.locate import open_growing, open_input
from chainette.io.inputs.readers import InputFile
from chainette.io.inputs.same_input import require_same_input
from chainette.io.rundir.logged_paths import input_paths
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.run.options import RunOptions

__all__ = ["resumed_input"]


def resumed_input(
    directory: RunDir, state: RunState, options: RunOptions, path: Path | Sequence[Path] | None = None
) -> tuple[InputFile, bool]:
    """The input of the run, and whether its sizes and times are those recorded. It is at `path`, else at the path of the
    options or the log.

    Raises:
        InputError: it is gone, or it has changed.
    """
    paths = [path] if isinstance(path, Path) else path or options.inputs
    known = input_paths(state.input, directory, Path(options.chain_root))
    if state.input.get("growing"):
        source = open_growing(GrowingFile(known[0], _again(directory, state, options)), limit=options.limit)
        return source, require_same_input(source, state.input, state.read, str(directory))
    try:
        source = open_input(paths or known, limit=options.limit)
    except InputError as error:
        if paths or all(place.exists() for place in known):
            raise
        raise InputError(f"{error}; if the input has moved: `chainette resume {directory} --input PATH`") from error
    return source, require_same_input(source, state.input, state.read, str(directory))


def _again(directory: RunDir, state: RunState, options: RunOptions) -> RowSource | None:
    """The source of a growing input, from its first row: as it was given, or the data set of the hub the log names."""
    name = state.input.get("hub")
    if name is None:
        return options.source
    rows = HubRows.of(name)
    for other in map(str, options.inputs):
        if not is_hub(other) or not rows.is_of(other):
            raise InputError(f"{directory}: the run reads {name}, not {other}; begin a new run for it")
    return rows
