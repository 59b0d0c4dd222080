"""The files in `.schema/`, which are written without pyarrow, as readers of Parquet see them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chainette.io.tables.columns import Columns, arrow_schema, flattened_columns, step_columns
from chainette.io.tables.schema_file import schema_file
from tests.unit.io.tables.test_features import COLUMNS, Flat, Open, Row

#: More columns, and longer names, than fit in one byte.
MANY = flattened_columns({f"größe {number}": Row for number in range(20)}, [("row_id", str), ("_" + "k" * 200, str)])


def _by_pyarrow(schema: pa.Schema) -> io.BytesIO:
    file = io.BytesIO()
    pq.ParquetWriter(file, schema).close()
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize("columns", [COLUMNS, step_columns(Open), MANY], ids=["nested", "open", "many"])
def test_every_reader_sees_the_columns_that_pyarrow_would_write(columns: Columns, tmp_path: Path) -> None:
    schema, data = arrow_schema(columns), schema_file(columns, "jsonl")
    mine, theirs = tmp_path / "mine.parquet", tmp_path / "theirs.parquet"
    mine.write_bytes(data)
    theirs.write_bytes(_by_pyarrow(schema).getvalue())
    assert pq.read_schema(mine).equals(schema, check_metadata=True) and pq.read_table(mine).num_rows == 0
    assert pq.ParquetFile(mine).schema.equals(pq.ParquetFile(theirs).schema)
    assert polars.read_parquet_schema(mine) == polars.read_parquet_schema(theirs)
    types = [duckdb.read_parquet(str(file)).types for file in (mine, theirs)]
    assert types[0] == types[1]


def test_lists_and_objects_are_text_in_csv() -> None:
    schemas = [pq.read_schema(io.BytesIO(schema_file(step_columns(Flat), kind))) for kind in ("jsonl", "csv")]
    assert [schema.field("words").type for schema in schemas] == [pa.list_(pa.field("element", pa.string())), pa.string()]


def test_the_file_is_written_without_pyarrow() -> None:
    code = (
        "import sys; from chainette.io.tables.columns import step_columns;"
        "from chainette.io.tables.schema_file import schema_file;"
        "assert schema_file(step_columns(None, [('row_id', str)]), 'jsonl')[:4] == b'PAR1'; assert 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
