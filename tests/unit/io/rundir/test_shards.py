"""Rolling shards if the disk fails in the middle of a group."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from chainette.errors import DiskError
from chainette.io.rundir.shards import StreamWriter


def test_files_are_closed_once_where_a_group_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StreamWriter("step", tmp_path / "step", max_rows=2)
    stream.append([b"1", b"2", b"3"])  # a full journal, and an open one
    really, closed = os.close, []

    def close(file: int) -> None:
        closed.append(file)
        really(file)

    def refuse_the_second(file: int) -> None:
        if closed:
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "close", close)
    monkeypatch.setattr(os, "fsync", refuse_the_second)
    with pytest.raises(DiskError):
        stream.sync()
    stream.let_go()
    assert len(closed) == len(set(closed)) == 2


def test_recovery_keeps_the_rows_that_the_log_mentions_and_no_other_file_or_byte(tmp_path: Path) -> None:
    stream = StreamWriter("step", tmp_path / "step", max_rows=2)
    stream.append([b"1", b"2", b"3", b"4", b"5"])
    stream.sync()
    stream.let_go()
    whole = {path.name: path.read_bytes() for path in (tmp_path / "step").iterdir()}
    assert sorted(whole) == ["0.jsonl", "1.jsonl", "2.jsonl"]
    first, half = whole["0.jsonl"], whole["1.jsonl"][: len(whole["1.jsonl"]) // 2]
    again = StreamWriter("step", tmp_path / "step", max_rows=2)
    again.recover({0: (len(first), 2), 1: (len(half), 1)}, ())
    again.let_go()
    assert {path.name: path.read_bytes() for path in (tmp_path / "step").iterdir()} == {"0.jsonl": first, "1.jsonl": half}
