"""A worker's log, and its end with its parent."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from chainette_workers import runtime
from chainette_workers.runtime import say

from tests.support.patience import LONG


def test_a_log_that_nobody_reads_costs_the_message_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        say("released")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writes)  # for what is left in the buffer


def test_a_standard_input_that_cannot_be_read_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stopping = threading.Event()
    monkeypatch.setattr(runtime, "_GRACE", threading.TIMEOUT_MAX)  # the end of this process
    with (tmp_path / "write-only").open("w") as stdin:  # reading it is an OSError
        monkeypatch.setattr(sys, "stdin", stdin)
        runtime.watch_parent(stopping)
        assert stopping.wait(LONG)
