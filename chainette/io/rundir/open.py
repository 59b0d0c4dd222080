"""Opens a run directory: creates a new one, or recovers an existing one to the state in its log."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from chainette.core.plan import Plan
from chainette.errors import DamagedRun, RunDirectoryError, RunDirectoryInUse
from chainette.io.rundir.derived_files import publish_metadata
from chainette.io.rundir.directory_swap import finish_swap, remove_leftovers
from chainette.io.rundir.durable_rows import lines_of_root
from chainette.io.rundir.event_log import EventLog, read_log
from chainette.io.rundir.event_types import AnyEvent, RunCreated
from chainette.io.rundir.origin import require_no_links, sealed
from chainette.io.rundir.paths import RunDir, disk_errors
from chainette.io.rundir.run_state import RunState, Status
from chainette.io.rundir.sealing import Sealer
from chainette.io.rundir.shard_recovery import check_journals, cut_journals, require_size
from chainette.io.rundir.shards import StreamWriter
from chainette.io.rundir.writer import RunWriter
from chainette.io.tables.schemas import Added, ShardSchemas
from chainette.records import declared_of
from chainette.utils.private_files import make_folder

__all__ = [
    "again_in_python",
    "claim_directory",
    "create",
    "git_commit",
    "read_created",
    "read_state",
    "recover",
    "require_shards",
    "versions",
]


def claim_directory(directory: RunDir) -> EventLog:
    """Claims an unused directory for a new run and locks it.

    Raises:
        RunDirectoryError: it holds a run, or other files.
        RunDirectoryInUse: another process writes to it.
    """
    finish_swap(directory)
    path = directory.path
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file; name a directory for the run")
    found = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if directory.log.name in found and _has_line(directory.log):
        _refuse_existing(directory)
    if found - {directory.log.name, directory.inputs.name, directory.plan.name}:
        raise RunDirectoryError(
            f"{path} is not empty and holds no run ({', '.join(sorted(found)[:3])}); name another directory"
        )
    try:
        make_folder(path)
    except OSError as error:
        raise RunDirectoryError(f"cannot create {path}: {error.strerror}") from error
    require_no_links(directory)
    log = EventLog(directory.log)
    try:
        if _has_line(directory.log):  # another process was first
            raise RunDirectoryInUse(f"another process has just begun a run in {path}; name another directory")
        log.continue_after(0, -1, 0)  # a crash may have torn the first line
    except BaseException:
        log.close()
        raise
    remove_leftovers(directory)
    return log


def _has_line(log: Path) -> bool:
    """Whether a log has a complete line; without one, nothing of a run was ever durable."""
    with log.open("rb") as file:
        return file.readline().endswith(b"\n")


def _refuse_existing(directory: RunDir) -> None:
    EventLog(directory.log).close()
    here = ""
    try:
        state = read_state(directory)[0]
        here = again_in_python(directory, state.run)
        what = f"the run {state.run.run_id} of chain {state.run.chain!r} ({state.status})"
    except DamagedRun:
        what = "a damaged run"
    raise RunDirectoryError(
        f"{directory} already holds {what}; continue it with `chainette resume {directory}`{here}, or name another directory"
    )


def again_in_python(directory: RunDir, run: RunCreated, steps: Iterable[str] = ()) -> str:
    """A clause for messages with the call that resumes a run whose chain exists only in Python; "" for other chains.

    `steps`, and all steps that depend on them, are recomputed.
    """
    if run.chain_ref:
        return ""
    select = f", select={[f'{step}+' for step in steps]}" if steps else ""
    return f", for a chain in Python chain.run(inputs, {str(directory)!r}, resume=True{select})"


def create(directory: RunDir, log: EventLog, plan: Plan, created: RunCreated) -> RunWriter:
    """The writer of a directory that `claim_directory` claimed; the first line of the log is durable on return."""
    state = RunState()
    for offset, event in log.append([sealed(created)]):
        state.apply(event, offset)
    writer = _writer(directory, plan, log, state)
    publish_metadata(directory, state)
    return writer


def read_state(
    directory: RunDir, known: RunState | None = None, heard: Callable[[int, AnyEvent], object] = lambda _offset, _event: None
) -> tuple[RunState, int]:
    """The state of the run in a directory, and the end of its intact log. Read-only, except for `finish_swap`.

    If `known` was read from the same file before, it is updated with the newer events. `heard` is called for each event,
    with its offset in the log.

    Raises:
        RunDirectoryError: there is no run.
        RunDirectoryInUse: another process is replacing it with a directory in which rows are pending again.
        DamagedRun: the log is damaged.
    """
    _require_run(directory)
    file = directory.log.stat()
    state = RunState(log=(file.st_dev, file.st_ino))
    if known is not None and known.log == state.log:
        state = known
    for offset, event in read_log(directory.log, state.last):
        if event.seq > state.seq:
            state.apply(event, offset)
            heard(offset, event)
    with directory.log.open("rb") as log:
        log.seek(state.last)
        return state, state.last + (len(log.readline()) if state.seq >= 0 else 0)


def read_created(directory: RunDir) -> RunCreated:
    """The first event of the run in a directory. Raises as `read_state` does."""
    _require_run(directory)
    state = RunState()
    for offset, event in read_log(directory.log):
        state.apply(event, offset)
        break
    return state.run


def _require_run(directory: RunDir) -> None:
    finish_swap(directory)
    if not directory.exists():
        raise RunDirectoryError(
            f"{directory} holds no run (no {directory.log.name}); `chainette run CHAIN INPUTS -o {directory}` begins one"
        )


def require_shards(directory: RunDir, state: RunState) -> None:
    """Checks that every shard of a finished run exists and is as long as the log says.

    Raises:
        DamagedRun: a shard is missing or too short.
    """
    if state.status is not Status.FINISHED:
        return  # the journals of other runs are checked when they are resumed
    for folder, numbers in state.shards.sealed.items():
        for number, size in numbers.items():
            require_size(directory.path / folder / f"{number}.{state.run.settings['format']}", size)


def recover(directory: RunDir, plan: Plan, known: RunState | None = None, *, new_epoch: bool = True) -> RunWriter:
    """The writer of a directory that holds a run, after its files are cut to the lengths in the log.

    It continues in a new epoch, or in the last one if units of that epoch are still in flight. `known` is the state from an
    earlier reading of the log, which the writer takes over.

    Raises:
        RunDirectoryError: there is no run.
        RunDirectoryInUse: another process writes to it.
        DamagedRun: the log or a shard lost durable data.
    """
    if not directory.exists():
        read_state(directory)
    require_no_links(directory)
    log = EventLog(directory.log)
    try:
        state, end = read_state(directory, known)
        _ = state.run
        shutil.rmtree(directory.fleet, ignore_errors=True)  # files of a killed fleet
        remove_leftovers(directory)
        writer = _writer(directory, plan, log, state, lambda: log.continue_after(end, state.seq, state.epoch + new_epoch))
    except BaseException:
        log.close()
        raise
    return writer


def _writer(
    directory: RunDir, plan: Plan, log: EventLog, state: RunState, whole: Callable[[], object] = lambda: None
) -> RunWriter:
    """`whole` is called after all checks, before anything is cut off or deleted."""
    settings = state.run.settings
    streams = dict(_streams(directory, plan, settings["format"], settings["max_rows_per_file"]))
    sealer = Sealer(directory, settings["format"], streams, ShardSchemas(plan, Added.of(settings)))
    try:
        with disk_errors(directory.path):
            units = [(root, event) for root in state.roots.lines for event in lines_of_root(directory, state, root)]
            sealer.check(state.shards.sealed, state.shards.sums, {file for _, event in units for file in event.off})
            logged = [
                (stream, state.shards.ends.get(stream.folder, {}), state.shards.sealed.get(stream.folder, ()))
                for stream in streams.values()
            ]
            for stream, ends, sealed in logged:
                check_journals(stream, ends, sealed, state.shards.sums)
            whole()
            sealer.delete_unsealed(state.shards.sealed)
            for stream, ends, sealed in logged:
                cut_journals(stream, ends, sealed)
                stream.resume(ends, sealed)
    except BaseException:
        for stream in streams.values():
            stream.let_go()
        raise
    for root, event in units:
        sealer.note(root, event.off, done=False)
    return RunWriter(directory, plan, log, state, streams, sealer)


def _streams(directory: RunDir, plan: Plan, format: str, max_rows: int) -> Iterable[tuple[str, StreamWriter]]:
    base = directory.path if format == "jsonl" else directory.journals
    for node in plan.nodes.values():
        if declared_of(node.id) != node.id or node.passes:  # later rounds of a loop are in the folder of the first
            continue
        if node.hidden:
            yield node.id, StreamWriter(node.logged_folder, directory.held / node.folder, max_rows)
        else:
            yield node.id, StreamWriter(node.logged_folder, base / node.folder, max_rows)
    for name in ("rejected", "flattened"):
        yield name, StreamWriter(name, base / name, max_rows)


def versions() -> dict[str, str]:
    """The versions of packages that may affect the arithmetic and the files of a run."""
    found = {"python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"}
    for package in ("chainette", "pydantic", "jinja2", "msgspec", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit(root: Path) -> str | None:
    """The git commit of the chain's folder, with "+" if files differ from it; None outside git."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", str(root), *words], capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return commit and commit + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
