"""RunResult: the results of a finished or stopped run, as rows and as frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from html import escape
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, get_args, overload

import msgspec

from chainette.engine.price import Cost
from chainette.errors import RunDirectoryError
from chainette.io.rundir.card import CardConfig, render_card, shards_digest
from chainette.io.rundir.folder_rows import accepted_only, shard_schema_of, typed_rows
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir, publish
from chainette.io.rundir.run_state import RunState, Status
from chainette.io.tables.row_lines import parse_output
from chainette.records import Source, row_order
from chainette.utils.plurals import counted
from chainette.utils.private_files import is_taken, make_folder
from chainette.utils.remote_files import is_url, shown_url
from chainette.utils.terminal_text import visible

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    from chainette.core.run_settings import Format
    from chainette.io.tables.exported_files import ExportFormat

__all__ = ["RunResult", "open_run"]

T = TypeVar("T")

#: The rows that a notebook shows, and the characters of a cell.
_HEAD, _CELL = 5, 300


def open_run(directory: str | os.PathLike[str]) -> RunResult:
    """The run in a directory: finished, stopped or still running, in any format.

        result = chainette.open_run("runs/20260501-101500-1a2b3c4d")
        result.to_pandas("extract")

    It imports no code of the chain: values are plain data. If the run is still running, the rows that are durable now are read.

    Raises:
        RunDirectoryError: the directory holds no run.
        DamagedRun: its log is damaged.
    """
    run = RunDir(Path(directory))
    return RunResult(run, read_state(run)[0])


class RunResult:
    """A run directory and the status of its run. Rows are read on demand; none are kept in memory.

    Any library that takes Arrow streams (`polars.DataFrame(result)`, `duckdb`, `pyarrow.table(result)`) reads `flattened`
    from it without a copy.
    """

    def __init__(self, directory: RunDir, state: RunState) -> None:
        #: The run directory.
        self.dir: Path = directory.path
        self._directory = directory
        self._state = state

    def __repr__(self) -> str:
        return f"RunResult({str(self.dir)!r}: {self._summary()})"

    def _repr_html_(self) -> str:
        """Counts by step, rejections by reason, and the first finished (or else rejected) rows, for notebooks."""
        counts = [
            {"step": step} | {name: found[name] for name in ("in", "out", "rejected")} for step, found in self.counts.items()
        ]
        reasons = [
            {"step": step, "reason": reason, "rows": count}
            for step, found in self.counts.items()
            for reason, count in found.get("reasons", {}).items()
        ]
        shown = ("flattened", "rejected", *reversed(self._state.graph.row_folders))
        rows = next((list(islice(self.rows(name), _HEAD)) for name in shown if self._state.rows_of(name)), [])
        tables = "".join(map(_html_table, filter(None, (counts, reasons, rows))))
        return f"<p><b>{_shown(str(self.dir))}</b>: {escape(self._summary())}</p>{tables}"

    def _summary(self) -> str:
        """The status with the number of rows that reached the end, which may be none."""
        metadata = self.metadata
        rejected = f", {metadata['rows_rejected']:,} rejected" if metadata["rows_rejected"] else ""
        in_vain = rejected and not metadata["rows_finished"] and self.status is Status.FINISHED
        status = f"{self.status.value}, but no row reached the end: " if in_vain else f"{self.status.value}, "
        return f"{status}{counted(metadata['rows_finished'], 'row')} from {counted(metadata['records'], 'record')}{rejected}"

    @property
    def status(self) -> Status:
        """`finished` if every row is accounted for."""
        return self._state.status

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of metadata.json."""
        return metadata_of(self._state)

    @property
    def redis(self) -> list[str]:
        """The URL, without its password, of every Redis that the run used."""
        return sorted(self._state.redis)

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Step -> in, out, rejected, dropped, stopped, expanded, balanced."""
        steps: dict[str, dict[str, Any]] = self.metadata["steps"]
        return steps

    @property
    def cost(self) -> Cost:
        """Dollars and GPU-hours so far, over all resumes, including discarded answers and rejected rows.

        An engine without a price adds nothing; GPU-hours are the seconds in which an engine had requests, times its GPUs.
        """
        return self._state.bill.cost()

    @property
    def rejected(self) -> Iterator[dict[str, Any]]:
        """The rejected rows: row_id, step_id, reason, message, attempts, raw, line."""
        return self.rows("rejected")

    def rows(self, step: str, *, surplus: bool = False) -> Iterator[dict[str, Any]]:
        """The rows of a step (or `rejected`, `flattened`) as plain dicts, in the order of the shards.

        A run with `accept` may have computed rows after the last accepted one; they are left out unless `surplus` is set.

        Raises:
            RunDirectoryError: no folder of that name was written.
            DamagedRun: a file is missing, or does not hold the bytes that were written.
        """
        return self._read(step, surplus=surplus)

    def models(self, node: Source[T]) -> Iterator[tuple[str, T]]:
        """(row id, validated output) of a node, in the order of the shards: `for row_id, item in result.models(extract)`.

        Raises as `rows` does.
        """
        for row in self.rows(node.key):
            output = parse_output(msgspec.json.encode(row))
            yield output.row_id, node.decode(output.value)

    def to_arrow(self, step: str = "flattened") -> pa.Table:
        """The rows of a step as an Arrow table, in the order of row ids, with the columns of Parquet for any format of the run.

        Values without a fixed type are JSON text. Raises as `rows` does.
        """
        from chainette.io.tables.shard_formats import table_of

        table = table_of(self._read(step), self._schema(self._folder(step)))
        ids = table.column("row_id").to_pylist()
        order = sorted(range(len(ids)), key=lambda at: row_order(ids[at]))
        return table.take(order) if order else table

    def to_pandas(self, step: str = "flattened") -> pd.DataFrame:
        """`to_arrow` as a pandas frame, in which whole numbers and booleans may be missing (`Int64`, `boolean`).

        Raises:
            RunDirectoryError: pandas is not installed, or as for `rows`.
        """
        pandas = _library("pandas", "to_pandas")
        import pyarrow as pa

        nullable = {pa.int64(): pandas.Int64Dtype(), pa.bool_(): pandas.BooleanDtype()}
        frame: pd.DataFrame = self.to_arrow(step).to_pandas(types_mapper=nullable.get)
        return frame

    def to_polars(self, step: str = "flattened") -> pl.DataFrame:
        """`to_arrow` as a polars frame.

        Raises:
            RunDirectoryError: polars is not installed, or as for `rows`.
        """
        frame: pl.DataFrame = _library("polars", "to_polars").from_arrow(self.to_arrow(step))
        return frame

    def export(
        self,
        folder: str | os.PathLike[str],
        to: ExportFormat = "parquet",
        step: str = "flattened",
        *,
        ordered: bool = False,
        rows_per_file: int = 1_000_000,
    ) -> list[Path]:
        """Writes the rows of a step to a new or empty folder, as `train-00000-of-00012.parquet` and so on. Returns the paths.

        `to` is "parquet", "csv", "jsonl", or "hf" (Parquet in `data/` with a dataset card). With `ordered`, rows are sorted by
        row id; otherwise they are in the order of the shards. Memory is bounded. Raises as `rows` does.

        Raises:
            RunDirectoryError: the folder holds files, or the format is unknown.
            DiskError: the disk is full, or a write failed.
        """
        from chainette.io.tables.exported_files import ExportFormat, export_rows

        if is_url(folder):
            raise RunDirectoryError(f"{shown_url(str(folder))} is not a folder on this machine; result.upload writes to URLs")
        target, name = Path(folder), self._folder(step)
        if to not in get_args(ExportFormat):
            raise RunDirectoryError(f"the format {to!r} is unknown; known: {', '.join(get_args(ExportFormat))}")
        if is_taken(target):
            raise RunDirectoryError(f"{target} exists and is not an empty folder; name a new one")
        files = target / "data" if to == "hf" else target
        kind: Format = "parquet" if to == "hf" else to
        make_folder(files)
        written = export_rows(self._read(step), self._schema(name), files, kind, ordered=ordered, rows_per_file=rows_per_file)
        if to == "hf":
            publish(target / "README.md", self._card(step, name).encode())
        return written

    def upload(
        self,
        url: str,
        to: ExportFormat = "parquet",
        step: str = "flattened",
        *,
        ordered: bool = False,
        rows_per_file: int = 1_000_000,
    ) -> list[str]:
        """Writes the rows of a step to a new or empty folder at a URL (`s3://`, `gs://`, ...). Returns the URLs of the files.

            result.upload("s3://bucket/reviews", to="parquet")

        The other parameters are those of `export`. Files get their names when all of them have been sent; until then, they
        are in `_unfinished/`. If the call is interrupted, the same call sends only the missing files. Raises as `rows` does.

        Raises:
            RunError: the folder holds other files, or the store refused the upload.
            DiskError: the disk is full, or a write failed.
        """
        from chainette.io.tables.url_upload import send

        with TemporaryDirectory(prefix="chainette-export-") as made:
            self.export(made, to, step, ordered=ordered, rows_per_file=rows_per_file)
            return send(Path(made), url)

    def push(
        self,
        repo: str,
        step: str = "flattened",
        *,
        private: bool = False,
        ordered: bool = False,
        rows_per_file: int = 1_000_000,
    ) -> str:
        """Uploads the rows of a step as a data set of the Hugging Face Hub, with its card. Returns its URL.

            result.push("me/reviews", private=True)

        All rows become visible at once, or none. If the call is interrupted, the same call sends only the files that the hub
        does not have. In a data set with earlier rows of this run, they are replaced. `private` applies only to a new data
        set. Needs `chainette[hf]` and a token that may write (`hf auth login`, or HF_TOKEN). Raises as `rows` does.

        Raises:
            RunError: the data set holds other data, or the hub refused the upload.
            DiskError: the disk is full, or a write failed.
        """
        from chainette.io.tables.hub_upload import upload

        with TemporaryDirectory(prefix="chainette-export-") as made:
            self.export(made, "hf", step, ordered=ordered, rows_per_file=rows_per_file)
            return upload(Path(made), repo, self._state.run.run_id, private=private)

    def _card(self, step: str, folder: str) -> str:
        """The dataset card of an export."""
        run = self._state.run
        digest = shards_digest(run.run_id, folder, self._state.shards.ends.get(folder, {}))
        config = CardConfig(
            step, "data", self._state.rows_of(step), digest, f"rows of {step}", self._state.graph.features[folder]
        )
        return render_card(run.chain, run.run_id, self.status, "parquet", [config])

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """`flattened` as an Arrow stream (the Arrow PyCapsule interface)."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    @overload
    def dataset(self) -> DatasetDict: ...
    @overload
    def dataset(self, step: str) -> Dataset: ...
    def dataset(self, step: str | None = None) -> DatasetDict | Dataset:
        """The rows of a step as a Hugging Face Dataset; without a step, the run as a DatasetDict, one split per folder.

        The rows are in memory, unless the files are Parquet. The columns are those of Parquet for any format, because
        `datasets` would guess other types.

        Raises:
            RunDirectoryError: the package `datasets` is not installed, or as for `rows`.
        """
        datasets = _library("datasets", "dataset")
        if step is not None:
            return self._dataset(datasets, self._folder(step), step)
        names = datasets.get_dataset_config_names(str(self.dir))
        steps = {folder: name for name, folder in self._state.graph.row_folders.items()}
        made: DatasetDict = datasets.DatasetDict({name: self._dataset(datasets, name, steps[name]) for name in names})
        return made

    def _dataset(self, datasets: Any, folder: str, step: str) -> Dataset:
        from chainette.io.tables.shard_formats import table_of

        if self._state.run.settings["format"] == "parquet" and self._state.boundary is None:
            found = datasets.load_dataset(str(self.dir), folder, split="train")
        else:
            found = datasets.Dataset(table_of(self._read(step), self._schema(folder)))
        made: Dataset = found
        return made

    def _folder(self, step: str) -> str:
        folders = self._state.graph.row_folders
        if step not in folders:
            raise RunDirectoryError(f"{self.dir} has no rows of {step!r}; it has {', '.join(folders)}")
        return folders[step]

    def _read(self, step: str, *, surplus: bool = False) -> Iterator[dict[str, Any]]:
        rows = typed_rows(self._directory, self._state, self._folder(step))
        return rows if surplus else accepted_only(rows, self._state, step)

    def _schema(self, folder: str) -> pa.Schema:
        return shard_schema_of(self._state, folder)


def _library(name: str, method: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise RunDirectoryError(f"RunResult.{method}() needs the package {name}: pip install {name}") from error


def _shown(text: str) -> str:
    """A text of the run as HTML text. Control characters and reversed text are escaped, because notebooks are printed too."""
    return escape(visible(text))


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"


def _html_table(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    def line(cells: Iterator[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{_shown(_cut(str(cell)))}</{tag}>' for cell in cells)}</tr>"

    head = line(iter(rows[0]), "th")
    return f"<table>{head}{''.join(line(iter(row.values()), 'td') for row in rows)}</table>"
