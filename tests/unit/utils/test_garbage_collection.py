"""The garbage collector runs rarely in Chainette's own processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

BOTH = [
    ("chainette.cli.main", "app", "chainette.cli.main.main()"),
    ("chainette_workers.worker.standalone", "serve", "chainette_workers.worker.entry.main([])"),
]


@pytest.mark.parametrize(("module", "work", "start"), BOTH, ids=["command", "worker"])
def test_the_collector_runs_rarely_while_the_command_or_a_worker_works(module: str, work: str, start: str) -> None:
    modules = f"gc, {module}, {start.rpartition('.')[0]}"
    script = f"import {modules}; {module}.{work} = lambda *_, **__: print(gc.get_threshold()[0]); {start}"
    config = '{"url": null, "engines": [], "chain_root": "."}\n'
    done = subprocess.run([sys.executable, "-c", script], input=config, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 5_000
