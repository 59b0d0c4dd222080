"""The index of `--reuse`: `python benchmarks/reuse.py [ROWS ...]` (default: 1,000,000).

For each number of rows it writes a directory as a run would have left it, makes its index in a fresh process, and looks
rows up in another one: CPU seconds, microseconds a lookup, bytes on the disk, and peak RSS of each process.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.io.rundir.answer_collection import index_of
from chainette.io.rundir.event_log import encode_line, read_log
from chainette.io.rundir.event_types import RunCreated, UnitCommitted
from chainette.io.rundir.paths import RunDir
from chainette.run.answer_sources import AnswerSources
from chainette.run.stored_answers import StoredAnswers

LINE, SHARD, LOOKUPS = 10_000, 100_000, 100_000


class Text(BaseModel):
    text: str


def chain() -> Chain:
    register_engine("sim", "none", "simulated")
    return Chain(name="bench", steps=[Step(id="ask", input_model=Text, output_model=Text, engine_name="sim")])


def key(row: int) -> bytes:
    return hashlib.blake2b(b"%d" % row, digest_size=16).digest()


def write_run(directory: Path, rows: int) -> None:
    """A directory with so many rows of one step, whose log ends before the run does."""
    chain().run([{"text": "x"}], directory)
    log = directory / "events.jsonl"
    created = next(event for _, event in read_log(log) if isinstance(event, RunCreated))
    shards = directory / "ask"
    with log.open("wb") as lines:
        lines.write(encode_line(created))
        for seq, first in enumerate(range(0, rows, LINE), 1):
            data = b"".join(
                b'{"row_id":"%d","text":"an answer of some length, number %d"}\n' % (row, row)
                for row in range(first, first + LINE)
            )
            number, before = divmod(first, SHARD)
            if not before:
                size, crc = 0, 0
                (shards / f"{number}.jsonl").unlink(missing_ok=True)
            with (shards / f"{number}.jsonl").open("ab") as shard:
                shard.write(data)
            crc = zlib.crc32(data, crc)
            off = {f"ask/{number}": (size, before, size + len(data), before + LINE)}
            size += len(data)
            keys = b"".join(map(key, range(first, first + LINE)))
            event = UnitCommitted(
                node="ask", root=seq - 1, off=off, sums={f"ask/{number}": crc}, taken=LINE, given=LINE, keys=keys
            )
            lines.write(encode_line(msgspec.structs.replace(event, seq=seq)))


def measured(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of some work in a fresh process, with its peak RSS beyond the start."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    before = _peak()
    found = work(*arguments)
    return found | {"peak RSS, MiB": _peak() >> 10, "at the start": before >> 10}


def _peak() -> int:
    """The peak RSS of this process, KiB."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1])


def make(directory: Path, pinned: Path) -> dict[str, Any]:
    began = time.process_time()
    index_of(RunDir(directory), pinned).close()
    spent = time.process_time() - began
    return {"CPU seconds": round(spent, 1), "bytes a row": round(pinned.stat().st_size / rows_of(directory))}


def rows_of(directory: Path) -> int:
    return int((directory / "rows").read_text())


def look_up(directory: Path, folder: Path) -> dict[str, Any]:
    """Rows in random order, the worst case."""
    node, rows = compile_chain(chain()).nodes["ask"], rows_of(directory)
    began = time.process_time()
    stored = StoredAnswers.open(AnswerSources((str(directory),), str(folder)))
    opened = time.process_time()
    for row in random.Random(1).choices(range(rows), k=LOOKUPS):
        [output] = stored.find(node, "0", key(row)) or []
        assert json.loads(output.value)["text"].endswith(f" {row}")
    assert stored.find(node, "0", bytes(16)) is None
    spent = (time.process_time() - opened) / LOOKUPS
    return {"CPU seconds to open": round(opened - began, 2), "us of CPU a lookup": round(spent * 1e6, 1)}


def main() -> None:
    for rows in map(int, sys.argv[1:] or ["1000000"]):
        with tempfile.TemporaryDirectory() as folder:
            directory, answers = Path(folder) / "run", Path(folder) / "answers"
            write_run(directory, rows)
            (directory / "rows").write_text(str(rows))
            log = (directory / "events.jsonl").stat().st_size
            print(f"{rows:,} rows, log {log / rows:.1f} bytes a row")
            print("  make:", measured(make, directory, answers / "made"))
            print("  look up:", measured(look_up, directory, answers))


if __name__ == "__main__":
    main()
