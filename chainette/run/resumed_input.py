"""The input of a run that goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from chainette.errors import InputError
from chainette.io.inputs.growing_file import GrowingFile, RowSource
from chainette.io.inputs.hub import HubRows, is_hub
from chainette.io.inputs.locate import open_growing, open_input
from chainette.io.inputs.readers import InputFile
from chainette.io.inputs.remote import copy_files, files_at, named_urls
from chainette.io.inputs.remote_text import RemoteText
from chainette.io.inputs.same_input import require_same_input
from chainette.io.rundir.logged_paths import input_paths
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.run.options import RunOptions
from chainette.utils.remote_files import is_url

__all__ = ["lengthened_input", "resumed_input"]


def resumed_input(
    directory: RunDir, state: RunState, options: RunOptions, path: Path | Sequence[Path] | None = None
) -> tuple[InputFile, bool]:
    """The input of the run, and whether its sizes and times are those recorded. It is at `path`, else at the path of the
    options or the log.

    Raises:
        InputError: it is gone, or it has changed.
    """
    _require_same_urls(directory, state, options)
    paths = [path] if isinstance(path, Path) else path or _moved(options)
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
    source.origin = {name: state.input[name] for name in ("urls", "file", "rest") if name in state.input}
    return source, require_same_input(source, state.input, state.read, str(directory))


def lengthened_input(source: InputFile, directory: RunDir, state: RunState, options: RunOptions) -> InputFile:
    """The input followed by the files of --more, or with those at URLs that a higher limit needs."""
    known = _moved(options) or input_paths(state.input, directory, Path(options.chain_root))
    origin, rest = source.origin, source.origin.get("rest", ())
    records = open_input(known).total() if rest else 0
    files = files_at(options.more) if options.more else rest
    copies = copy_files(files, directory.inputs, options.limit, first=len(known), records=records)
    found = open_input([*known, *copies.paths], limit=options.limit)
    urls = [*origin.get("urls", ()), *named_urls(options.more)]
    found.origin = ({"urls": urls} if urls else {}) | ({"rest": copies.rest} if copies.rest else {})
    return found


def _moved(options: RunOptions) -> Sequence[str | os.PathLike[str]]:
    """The paths of an input that was moved; of URLs, the run has copies."""
    return () if any(map(is_url, options.inputs)) else options.inputs


def _require_same_urls(directory: RunDir, state: RunState, options: RunOptions) -> None:
    """Raises InputError if the input is named by other URLs than those the run began with."""
    given, known = named_urls(options.inputs), state.input.get("urls", ())
    if given and known and given != [*known][: len(given)]:
        raise InputError(f"{directory}: the run reads {', '.join(known)}, not {', '.join(given)}; begin a new run for it")


def _again(directory: RunDir, state: RunState, options: RunOptions) -> RowSource | None:
    """The source of a growing input, from its first row: as it was given, or the place elsewhere that the log names."""
    if (file := state.input.get("file")) is not None:
        given = next((str(url) for url in options.inputs if named_urls([url]) == [file]), file)  # it may hold a signature
        return RemoteText(given, state.input["urls"][0])
    name = state.input.get("hub")
    if name is None:
        return options.source
    rows = HubRows.of(name)
    for other in map(str, options.inputs):
        if not is_hub(other) or not rows.is_of(other):
            raise InputError(f"{directory}: the run reads {name}, not {other}; begin a new run for it")
    return rows
