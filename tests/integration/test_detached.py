"""A run that services drive, and whose rows are admitted by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from chainette_workers.service.service import Places

from chainette.cli.detached import _admit
from chainette.errors import RedisUnavailable
from chainette.fleet.redis.run_registry import Board, Order
from tests.support.valkey import Database


def test_a_command_whose_coordinator_has_ended_ends_with_its_error(database: Database, tmp_path: Path) -> None:
    board = Board(database.client)
    board.ask("run-c", Order(chain_ref="c.py", digest="d", inputs=("in.jsonl",), directory="out"))
    with pytest.raises(RedisUnavailable):
        _admit(board, "run-c", f"unix://{tmp_path}/none.sock", Places(tmp_path, tmp_path, tmp_path), quiet=True)
    database.client.flushdb()
