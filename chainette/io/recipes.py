"""How each tool reads a folder of a run: the code that the card shows.

Readers guess the types of JSON Lines and CSV, and change text that looks like something else. So the
code gives them the columns, from the empty Parquet file that lies in `.schema/` for every folder. It
goes by folder name alone, so that it reads another folder once that name is replaced.

Each recipe stands alone, and mentions no tool that comes after it.
"""

from __future__ import annotations

__all__ = ["recipes"]

_PARQUET: tuple[str, ...] = (
    """
import pyarrow.parquet
rows = pyarrow.parquet.read_table("{folder}")
""",
    """
import polars
rows = polars.scan_parquet("{folder}/*.parquet").collect()
""",
    """
import duckdb
rows = duckdb.read_parquet("{folder}/*.parquet")
""",
    """
import pandas  # its own types turn whole numbers beside nulls into floats
rows = pandas.read_parquet("{folder}", dtype_backend="pyarrow")
""",
    """
import os, datasets
rows = datasets.load_dataset(os.getcwd(), "{folder}", split="train")
""",
)

_TABLE_OF_CSV = """
import glob, pyarrow.csv, pyarrow.parquet  # only quoted empty text is text, and text may have several lines
schema = pyarrow.parquet.read_schema(".schema/{folder}.parquet")
how = {{
    "read_options": pyarrow.csv.ReadOptions(block_size=1 << 26),
    "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
    "convert_options": pyarrow.csv.ConvertOptions(
        column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    ),
}}
{name} = pyarrow.concat_tables(pyarrow.csv.read_csv(file, **how) for file in sorted(glob.glob("{folder}/*.csv")))
"""

_CSV: tuple[str, ...] = (
    _TABLE_OF_CSV.replace("{name}", "rows"),
    """
import polars  # without the schema, text like 007 becomes a number
schema = polars.read_parquet_schema(".schema/{folder}.parquet")
rows = polars.scan_csv("{folder}/*.csv", schema=schema).collect()
""",
    """
import duckdb  # without the columns, text like 007 or 2024-01-09 becomes a number or a date
columns = {{name: kind for name, kind, *_ in duckdb.sql("DESCRIBE FROM '.schema/{folder}.parquet'").fetchall()}}
how = {{"header": True, "sep": ",", "quotechar": '"', "escapechar": '"', "max_line_size": 1 << 26}}
rows = duckdb.read_csv("{folder}/*.csv", columns=columns, auto_detect=False, allow_quoted_nulls=False, **how)
""",
    _TABLE_OF_CSV.replace("{name}", "table")
    + """import pandas  # read_csv cannot tell "" from null
rows = table.to_pandas(types_mapper=pandas.ArrowDtype)
""",
    _TABLE_OF_CSV.replace("{name}", "table")
    + """import datasets  # load_dataset(os.getcwd(), "{folder}") guesses types, and cannot tell "" from null
rows = datasets.Dataset(table)
""",
)

_LINES = """list(map(json.loads, fileinput.FileInput(sorted(glob.glob("{folder}/*.jsonl")), encoding="utf-8")))"""

_TABLE_OF_LOOSE_JSONL = (
    """
import fileinput, glob, json, pyarrow.parquet
schema = pyarrow.parquet.read_schema(".schema/{folder}.parquet")
def fit(value, kind):  # a column has one type: what has no fixed shape becomes JSON text
    if value is not None and pyarrow.types.is_struct(kind):
        return {{field.name: fit(value.get(field.name), field.type) for field in kind}}
    if value is not None and pyarrow.types.is_list(kind):
        return [fit(item, kind.value_type) for item in value]
    return json.dumps(value) if pyarrow.types.is_string(kind) and not isinstance(value, str | None) else value
def listed(line):  # fields that the model does not list go to the column _extra
    extra = {{name: value for name, value in line.items() if name not in schema.names}}
    return line | {{"_extra": extra}} if extra else line
lines = """
    + _LINES
    + """
{name} = pyarrow.Table.from_pylist([fit(listed(line), pyarrow.struct(list(schema))) for line in lines], schema=schema)
"""
)

_PANDAS_JSONL = (
    """
import fileinput, glob, json, pandas, pyarrow.parquet  # read_json turns columns named like dates into timestamps
schema = pyarrow.parquet.read_schema(".schema/{folder}.parquet")
lines = """
    + _LINES
    + """
kept = [field for field in schema if pyarrow.types.is_nested(field.type) or b"chainette" in (field.metadata or {{}})]
types = {{field.name: pandas.ArrowDtype(field.type) for field in schema if field not in kept}}
rows = pandas.DataFrame(lines, dtype=object).astype(types)
"""
)

_JSONL: tuple[str, ...] = (
    """
import glob, pyarrow.json, pyarrow.parquet  # without the schema, text like 2024-01-09 becomes a timestamp
schema = pyarrow.parquet.read_schema(".schema/{folder}.parquet")
how = pyarrow.json.ReadOptions(block_size=1 << 25), pyarrow.json.ParseOptions(explicit_schema=schema)
rows = pyarrow.concat_tables(pyarrow.json.read_json(file, *how) for file in sorted(glob.glob("{folder}/*.jsonl")))
""",
    """
import polars  # without the schema, a column that begins with nulls or empty lists is an error
schema = polars.read_parquet_schema(".schema/{folder}.parquet")
rows = polars.scan_ndjson("{folder}/*.jsonl", schema=schema).collect()
""",
    """
import duckdb  # without the columns, text like 2024-01-09 becomes a date
columns = {{name: kind for name, kind, *_ in duckdb.sql("DESCRIBE FROM '.schema/{folder}.parquet'").fetchall()}}
how = {{"format": "newline_delimited", "maximum_object_size": 1 << 25}}
rows = duckdb.read_json("{folder}/*.jsonl", columns=columns, **how)
""",
    _PANDAS_JSONL,
    """
import json, os, datasets  # load_dataset(os.getcwd(), "{folder}") turns text like 2024-01-09 into a timestamp
features = datasets.load_dataset_builder(os.getcwd(), "{folder}").info.features
lines = datasets.load_dataset("text", data_files="{folder}/*.jsonl", split="train")
rows = lines.map(lambda line: json.loads(line["text"]), features=features, remove_columns="text")
""",
)

_TABLE = _TABLE_OF_LOOSE_JSONL.replace("{name}", "table")

#: For runs with values without a fixed shape: pyarrow reads none, and datasets takes the text "1" for a number in them.
_LOOSE_JSONL: tuple[str, ...] = (
    _TABLE_OF_LOOSE_JSONL.replace("{name}", "rows"),
    *_JSONL[1:4],
    _TABLE + 'import datasets  # load_dataset(os.getcwd(), "{folder}") guesses types\nrows = datasets.Dataset(table)\n',
)

#: For runs with fields that no column is named after.
_OPEN_JSONL: tuple[str, ...] = (
    _LOOSE_JSONL[0],
    _TABLE + "import polars\nrows = polars.from_arrow(table)\n",
    _TABLE + "import duckdb\nrows = duckdb.from_arrow(table)\n",
    *_LOOSE_JSONL[3:],
)


def recipes(folder: str, format: str, *, loose: bool, open: bool) -> str:
    """The Python code that reads `folder` with each tool; the tools are separated by blank lines.

    `loose`: some column of the run holds JSON. `open`: some model of it allows unknown fields.
    """
    return "\n\n".join(part.format(folder=folder).strip() for part in _chosen(format, loose, open))


def _chosen(format: str, loose: bool, open: bool) -> tuple[str, ...]:
    if format != "jsonl":
        return _PARQUET if format == "parquet" else _CSV
    return _OPEN_JSONL if open else _LOOSE_JSONL if loose else _JSONL
