"""Rolling shards if the disk fails in the middle of a group."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from chainette.errors import DiskError
from chainette.io.rundir.shards import StreamWriter


def test_files_are_closed_once_if_a_group_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
