"""The journals of a folder are restored to the state in the log."""

from __future__ import annotations

from pathlib import Path

from chainette.io.rundir.shard_recovery import cut_journals
from chainette.io.rundir.shards import StreamWriter


def test_recovery_keeps_the_rows_that_the_log_mentions_and_no_other_file_or_byte(tmp_path: Path) -> None:
    stream = StreamWriter("step", tmp_path / "step", max_rows=2)
    stream.append([b"1", b"2", b"3", b"4", b"5"])
    stream.sync()
    stream.let_go()
    whole = {path.name: path.read_bytes() for path in (tmp_path / "step").iterdir()}
    assert sorted(whole) == ["0.jsonl", "1.jsonl", "2.jsonl"]
    first, half = whole["0.jsonl"], whole["1.jsonl"][: len(whole["1.jsonl"]) // 2]
    again = StreamWriter("step", tmp_path / "step", max_rows=2)
    cut_journals(again, {0: (len(first), 2), 1: (len(half), 1)}, ())
    assert {path.name: path.read_bytes() for path in (tmp_path / "step").iterdir()} == {"0.jsonl": first, "1.jsonl": half}
