"""Data frames and Arrow tables as inputs: any object with the Arrow PyCapsule interface is written to a Parquet file.

Source: https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
"""

from __future__ import annotations

import json
from pathlib import Path

from chainette.core.chain import ArrowStream
from chainette.errors import InputError
from chainette.io.rundir.paths import published

__all__ = ["spool_frame"]


def spool_frame(frame: ArrowStream, path: Path) -> Path:
    """Writes a frame to `path` as Parquet, batch by batch: whole and fsynced, or not at all. The index of pandas is left out.

    Raises:
        InputError: Arrow or Parquet cannot hold a column.
        DiskError: the disk is full, or a write failed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pa.RecordBatchReader.from_stream(frame)
        kept = [at for at, name in enumerate(batches.schema.names) if name not in _index(batches.schema)]
        schema = pa.schema([batches.schema.field(at) for at in kept])
        with published(path) as file, pq.ParquetWriter(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.select(kept))
    except (pa.ArrowException, TypeError, ValueError) as error:
        kind = f"{type(frame).__module__.partition('.')[0]}.{type(frame).__name__}"
        raise InputError(f"the {kind} cannot be written as Parquet: {error}; give its rows as dicts") from error
    return path


def _index(schema: object) -> set[str]:
    """The columns that are the index of a pandas frame."""
    metadata = getattr(schema, "metadata", None) or {}
    columns = json.loads(metadata.get(b"pandas", b"{}")).get("index_columns", ())
    return {name for name in columns if isinstance(name, str)}
