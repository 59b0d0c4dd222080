"""Exports the rows of a run to files for other tools: in any format, sorted on request, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from chainette.core.run_settings import Format
from chainette.io.tables.shard_formats import Row, seal_csv, seal_parquet
from chainette.records import row_order
from chainette.utils.private_files import new_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ExportFormat", "export_rows"]

#: Rows that are sorted in memory at once.
_SORTED_AT_ONCE = 100_000

_encode = msgspec.json.Encoder().encode


#: `hf` stands for Parquet files in `data/`, with a dataset card.
ExportFormat = Literal["parquet", "csv", "jsonl", "hf"]


def export_rows(
    rows: Iterable[Row], schema: pa.Schema, folder: Path, format: Format, *, ordered: bool, rows_per_file: int
) -> list[Path]:
    """Writes rows to `train-00000-of-00012.parquet` and so on; without rows, it writes one empty file. Returns the paths.

    `ordered` sorts by row id, then by round. Memory holds at most 100,000 rows; in addition to the files, the disk
    temporarily holds all rows as JSON.

    Raises:
        DiskError: the disk is full, or a read or write failed.
    """
    seals: dict[Format, Callable[[Path, Path], object]] = {
        "parquet": lambda journal, target: seal_parquet(journal, target, schema),
        "csv": lambda journal, target: seal_csv(journal, target, schema),
        "jsonl": Path.replace,
    }
    with TemporaryDirectory(prefix=".export-", dir=folder) as made:
        aside, parts = Path(made), list[Path]()
        lines = _sorted(iter(rows), aside) if ordered else map(_encode, rows)
        for journal in _journals(lines, aside, rows_per_file):
            parts.append(journal.with_suffix(f".{format}"))
            seals[format](journal, parts[-1])
            journal.unlink(missing_ok=True)
        names = [folder / f"train-{at:05}-of-{len(parts):05}.{format}" for at in range(len(parts))]
        for part, name in zip(parts, names, strict=True):
            part.replace(name)
    return names


def _journals(lines: Iterator[bytes], aside: Path, most: int) -> Iterator[Path]:
    """Files of at most `most` lines; at least one file."""
    for number in count():
        head = list(islice(lines, 1))
        if number and not head:
            return
        yield _written(aside / f"part-{number}.rows", chain(head, islice(lines, most - 1)))


def _sorted(rows: Iterator[Row], aside: Path) -> Iterator[bytes]:
    """An external merge sort: sorted runs on the disk, merged line by line."""
    runs: list[Path] = []
    while batch := sorted(islice(rows, _SORTED_AT_ONCE), key=_order):
        runs.append(_written(aside / f"sorted-{len(runs)}", map(_encode, batch)))
    with ExitStack() as stack:
        files = [stack.enter_context(run.open("rb")) for run in runs]
        for line in heapq.merge(*files, key=lambda line: _order(_decode(line))):
            yield line.removesuffix(b"\n")


def _written(path: Path, lines: Iterable[bytes]) -> Path:
    with new_file(path) as file:
        file.writelines(line + b"\n" for line in lines)
    return path


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def _order(row: Row) -> tuple[Any, list[int]]:
    rounds = str(row.get("_round") or 0)
    return row_order(row["row_id"]), [int(part) for part in rounds.split("~")]
