"""Crashes at every disk step: copies of a run directory as kill -9 would leave it there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.sealing import Sealer
from chainette.io.rundir.shards import StreamWriter

#: Methods of the disk path; a copy is taken before and after each call.
STEPS = ((StreamWriter, "append"), (StreamWriter, "sync"), (EventLog, "append"), (Sealer, "seal"), (Sealer, "sweep"))


@contextmanager
def copies(directory: Path, into: Path, every: int = 1) -> Iterator[list[Path]]:
    """Copies of `directory` around every n-th disk step while the body runs."""
    taken: list[Path] = []
    calls = 0

    def copy(step: str) -> None:
        nonlocal calls
        calls += 1
        if calls % every == 0 and (directory / "events.jsonl").exists():
            target = into / f"{len(taken):04}-{step}"
            shutil.copytree(directory, target)
            taken.append(target)

    def around(owner: type, name: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        def call(self: Any, *arguments: Any, **keys: Any) -> Any:
            copy(f"before-{name}")
            result = original(self, *arguments, **keys)
            copy(f"after-{name}")
            return result

        return call

    with ExitStack() as patches:
        for owner, name in STEPS:
            patches.enter_context(mock.patch.object(owner, name, around(owner, name)))
        yield taken
