"""`chainette rebuild`: writes the files that follow from a run's log: graph.json, metadata.json, README.md, .schema/."""

from __future__ import annotations

from chainette.cli.command_errors import guarded
from chainette.cli.flags import RunDirectory
from chainette.cli.printing import show_path, tell
from chainette.io.rundir.derived_files import render_files
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.folder_rows import require_content
from chainette.io.rundir.open import read_state
from chainette.io.rundir.origin import require_no_links
from chainette.io.rundir.paths import RunDir, publish

__all__ = ["rebuild"]


@guarded
def rebuild(directory: RunDirectory) -> None:
    """Write the derived files of DIR again.

    graph.json, metadata.json, README.md and .schema/ follow from events.jsonl alone.
    """
    run = RunDir(directory)
    state, _ = read_state(run)
    require_content(run, state)
    require_no_links(run)
    log = EventLog(run.log)
    try:
        for name, data in render_files(state).items():
            path = run.path / name
            old = path.read_bytes() if path.exists() else None
            publish(path, data)
            verdict = "unchanged" if old == data else "new" if old is None else "changed"
            tell(f"wrote {show_path(path)} ({len(data):,} bytes, {verdict})")
    finally:
        log.close()
