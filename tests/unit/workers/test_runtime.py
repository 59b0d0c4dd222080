"""A worker's log."""

from __future__ import annotations

import os
import sys

import pytest
from chainette_workers.runtime import say


def test_a_log_that_nobody_reads_costs_the_message_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        say("released")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writes)  # for what is left in the buffer
