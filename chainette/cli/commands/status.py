"""`chainette status`: the state of a run, and the command to use next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from chainette.cli.command_errors import guarded
from chainette.cli.directory_status import is_working, standing, version_lines
from chainette.cli.flags import AsJson, RedisUrl
from chainette.cli.fleet_json import fleet_json, run_json
from chainette.cli.printing import command_line, print_json, tell
from chainette.cli.screen.fleet_screen import FleetView, RunView, watch
from chainette.cli.screen.summary import (
    accept_lines,
    accounting_line,
    ahead_line,
    engine_lines,
    escalation_lines,
    next_lines,
    reuse_line,
    time_line,
    token_line,
    way_lines,
)
from chainette.cli.screen.tables import console, counts_table
from chainette.core.usercode.parameters import text_of
from chainette.errors import ChainetteError, RunDirectoryError, RunError
from chainette.fleet.redis.connect import chosen_url, connect, eviction_risk, shown
from chainette.fleet.redis.run_registry import Board
from chainette.io.rundir.directory_swap import finish_swap
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.open import read_created, read_state, require_shards
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.progress import Progress
from chainette.io.rundir.run_state import RunState
from chainette.screen.live_layout import view_lines
from chainette.utils.plurals import counted_of

if TYPE_CHECKING:
    import redis

__all__ = ["status"]


@guarded
def status(
    what: Annotated[
        str | None, typer.Argument(metavar="[DIR | RUN]", help="A run directory, or the id of a live run [default: the fleet].")
    ] = None,
    watching: Annotated[bool, typer.Option("--watch", help="Refresh every second, until the end or Ctrl-C.")] = False,
    redis: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the state of a run, or the workers and live runs of a Redis.

    For a directory: rows per step, tokens, engines, and the next command. For a live run: the progress of each step, queued
    and running work, and the reason if nothing moves. A path takes precedence over a run id.
    """
    if as_json and watching:
        raise typer.BadParameter("--json prints the state once, --watch again and again; give one")
    if what is not None and _is_there(Path(what)):
        _show_directory(Path(what), watching=watching, as_json=as_json)
    elif what is not None and "/" in what:
        raise RunDirectoryError(_no_directory(what).removesuffix("; "))
    else:
        _show_live(what, redis, watching=watching, as_json=as_json)


def _is_there(path: Path) -> bool:
    finish_swap(RunDir(path))
    return path.exists()


def _show_live(run: str | None, redis: str | None, *, watching: bool, as_json: bool) -> None:
    """Shows a run, or the fleet, as Redis knows it; of a run that is over, its directory, if it is here."""
    try:
        connection = connect(redis)
    except RunError as error:
        if _show_over(run, as_json=as_json):
            return
        raise RunError(f"{_no_directory(run)}{error}") from error
    with connection:
        board = Board(connection)
        is_live = _print_live(board, run) if as_json else _draw_live(connection, board, run, watching=watching)
        if is_live:
            if watching:
                _show_over(run, as_json=as_json)
            return
        if _show_over(run, as_json=as_json):
            tell(f"no live run {run!r}; this is its directory", err=True)
            return
        known = ", ".join(info.run for info in board.runs()) or "none"
        raise RunError(f"{_no_directory(run)}no live run {run!r}; live runs: {known}")


def _print_live(board: Board, run: str | None) -> bool:
    """Prints a run, or the fleet, as JSON; False if there is no such run."""
    live = None if run is None else board.live(run)
    if run is None:
        print_json([fleet_json(board.fleet())])
    elif live is not None:
        print_json([run_json(live)])
    return run is None or live is not None


def _draw_live(connection: redis.Redis, board: Board, run: str | None, *, watching: bool) -> bool:
    """Draws a run, or the fleet, once or until the end; False if there is no such run."""
    screen = console()
    view = FleetView(board) if run is None else RunView(board, run)
    lines = view.draw(screen.width, max(screen.height, 24))
    if lines is None:
        return False
    if risk := eviction_risk(connection):
        screen.print(f"warning: {risk}", style="yellow", soft_wrap=True)
    if watching:
        watch(screen, view.draw)
        return True
    for line in lines:
        screen.print(line, soft_wrap=not screen.is_terminal)
    return True


def _show_over(run: str | None, *, as_json: bool) -> bool:
    """Shows the directory of a run that no Redis has any more; False if it is not here."""
    for path in _directories() if run is not None else ():
        begun = ""
        with suppress(ChainetteError):
            begun = read_created(RunDir(path)).run_id
        if begun == run:
            _show_directory(path, watching=False, as_json=as_json)
            return True
    return False


def _no_directory(name: str | None) -> str:
    """A sentence that no directory has this name, with similar ones; "" if no name was given."""
    if name is None:
        return ""
    found = [*_directories()]
    near = get_close_matches(name, [str(path) for path in found], n=3) or [
        str(path) for path in found if get_close_matches(name, [path.name], n=1)
    ]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"no directory {name!r} here{hint}; "


def _directories() -> Iterator[Path]:
    """The run directories here, and below ./runs."""
    for folder in (Path(), Path("runs")):
        for path in folder.iterdir() if folder.is_dir() else ():
            if RunDir(path).exists():
                yield path


def _show_directory(directory: Path, *, watching: bool, as_json: bool) -> None:
    if watching and is_working(directory):
        _watch_directory(directory)
    state, _ = read_state(RunDir(directory))
    metadata = metadata_of(state)
    working = is_working(directory)
    stands = standing(metadata, working=working)
    stands = _held(state) if stands == "running" else stands
    if as_json:
        print_json([metadata | {"standing": stands, "expected": state.expected}])
        require_shards(RunDir(directory), state)
        return
    screen = console()
    for line in _head(state, metadata, stands):
        screen.print(line, soft_wrap=True)
    screen.print()
    screen.print(counts_table(metadata))
    screen.print()
    for line in _tail(metadata, directory, working=working):
        screen.print(line, soft_wrap=True)
    require_shards(RunDir(directory), state)


def _watch_directory(directory: Path) -> None:
    """Follows the log of a directory while a process works on it."""
    progress, log, read = Progress(directory), RunDir(directory).log, 0

    def draw(width: int, height: int) -> list[Text] | None:
        nonlocal read
        first = not read
        for offset, event in read_log(log, read):
            if event.seq > progress.state.seq:
                progress.apply(event)
                read = offset
        if first:
            progress.begin()
        return view_lines(progress, width, height) if is_working(directory) else None

    watch(console(), draw)


def _held(state: RunState) -> str:
    """The state of a run that a process works on. Only Redis knows that `chainette pause` holds it."""
    held = ""
    if shown(chosen_url(None)) in state.redis:
        from redis import RedisError  # noqa: PLC0415 - 0.2 s, which a look at a directory does not need

        with suppress(RunError, RedisError), connect(timeout=2.0) as connection:
            info = Board(connection).run(state.run.run_id)
            held = "" if info is None or info.state == "running" else info.state
    return f"{held}: {command_line('unpause', state.run.run_id)} goes on" if held == "paused" else held or "running"


def _head(state: RunState, metadata: dict[str, Any], stands: str) -> Iterator[str]:
    yield f"run {metadata['run_id']} of chain {metadata['chain']}: {stands}"
    records = counted_of(metadata["records"], state.expected, "record")
    yield f"input: {metadata['input'].get('path', '?')}, {records} done"
    if metadata["parameters"]:
        yield f"parameters: {parameters_line(metadata['parameters'])}"
    if metadata["units_retried"]:
        yield f"units tried again because an engine did not answer: {metadata['units_retried']:,}"


def parameters_line(values: Mapping[str, Any]) -> str:
    """The parameters of a chain as --set takes them, without shell quotes."""
    return ", ".join(f"{name}={text_of(value)}" for name, value in values.items())


def _tail(metadata: dict[str, Any], directory: Path, *, working: bool) -> Iterator[str]:
    yield from ahead_line(metadata)
    yield accounting_line(metadata)
    yield from accept_lines(metadata, directory)
    yield from way_lines(metadata)
    yield from escalation_lines(metadata)
    yield from reuse_line(metadata)
    yield from token_line(metadata)
    yield from time_line(metadata)
    yield from engine_lines(metadata)
    yield from next_lines(metadata, directory, working=working)
    yield from version_lines(directory)
