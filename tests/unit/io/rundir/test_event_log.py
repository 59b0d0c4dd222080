"""The log: torn lines are noticed, and a power cut cannot change the order of writes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from chainette.errors import DiskError, RunDirectoryInUse
from chainette.io.rundir.event_log import EventLog, encode_line, parse_line, read_log
from chainette.io.rundir.event_types import RunPaused, UnitCommitted
from tests.support.chains import everything, texts


def test_a_line_reads_back_and_any_changed_byte_is_noticed() -> None:
    event = UnitCommitted(
        seq=3, at="2026-01-01T00:00:00.000000Z", node="n", root=2, off={"n/0": (0, 0, 12, 1)}, taken=1, given=1
    )
    line = encode_line(event)[:-1]
    assert parse_line(line) == event
    for place in range(len(line)):
        changed = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
        assert parse_line(changed) is None, place


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(RunDirectoryInUse, match="another process"):
        EventLog(tmp_path / "events.jsonl")
    log.close()
    EventLog(tmp_path / "events.jsonl").close()


def test_a_group_that_the_disk_refused_leaves_no_torn_line_in_the_middle(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append([RunPaused(reason="one")])
    real = os.write

    def full(file: int, data: Any) -> int:
        real(file, bytes(data)[:20])
        raise OSError(28, "No space left on device")

    with mock.patch("os.write", full), pytest.raises(DiskError, match="no space left"):
        log.append([RunPaused(reason="two")])
    log.append([RunPaused(reason="three")])
    log.close()
    events = [event for _, event in read_log(tmp_path / "events.jsonl")]
    assert [(event.seq, event.reason) for event in events if isinstance(event, RunPaused)] == [(0, "one"), (1, "three")]


def test_a_torn_end_is_cut_off_before_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append([RunPaused(reason="one")])
    log.close()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b'{"type":"run_paused","reason":"' + b"x" * 1000)
    log = EventLog(path)
    log.continue_after(size, 0, 0)
    [(offset, event)] = log.append([RunPaused(reason="two")])
    log.close()
    assert offset == size and path.read_bytes()[size:] == encode_line(event)


def test_rows_are_on_the_disk_before_the_log_mentions_them(tmp_path: Path) -> None:
    """A power cut keeps only synced data: at every write to the log, all rows that it names must be synced."""
    synced: dict[str, int] = {}
    real_fsync, real_append = os.fsync, EventLog.append
    checked = 0

    def fsync(file: int) -> None:
        real_fsync(file)
        synced[str(Path(f"/proc/self/fd/{file}").readlink())] = os.fstat(file).st_size

    def append(self: EventLog, events: Any) -> Any:
        nonlocal checked
        for event in events:
            for file, (_, _, size, _) in getattr(event, "off", {}).items():
                assert synced.get(str((tmp_path / "run" / f"{file}.jsonl").resolve()), 0) >= size, file
                checked += 1
        return real_append(self, events)

    with mock.patch("os.fsync", fsync), mock.patch.object(EventLog, "append", append):
        everything().run(texts(20), tmp_path / "run", max_rows_per_file=7)
    assert checked > 30


class Growing(io.BytesIO):
    """A file that ends within a line when that is read, and has grown when it is read on."""

    def __init__(self, *reads: bytes) -> None:
        super().__init__()
        self._reads = iter(reads)

    def __next__(self) -> bytes:
        return next(self._reads)


def test_a_line_that_is_being_written_is_the_end_even_if_more_follows_while_it_is_read(tmp_path: Path) -> None:
    lines = [encode_line(RunPaused(seq=number, reason="r" * 100)) for number in range(3)]
    growing = Growing(lines[0], lines[1][:50], lines[1][50:], lines[2])
    with mock.patch.object(Path, "open", return_value=growing):
        assert [event.seq for _, event in read_log(tmp_path / "events.jsonl")] == [0]
