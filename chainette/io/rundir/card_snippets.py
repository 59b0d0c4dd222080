"""The code on the card with which each tool reads a folder of a run.

Readers guess the types of JSON Lines and CSV, and convert text that looks like another type. So the
code gives them the columns, from the empty Parquet file in `.schema/` for every folder.

Each recipe is complete and mentions no tool that comes after it. All recipes are written for the folder
`flattened`; for other folders, its name is replaced.
"""

from __future__ import annotations

__all__ = ["recipes"]

_PARQUET = (
    """import pyarrow.parquet
rows = pyarrow.parquet.read_table("flattened")""",
    """import polars
rows = polars.scan_parquet("flattened/*.parquet").collect()""",
    """import duckdb
rows = duckdb.read_parquet("flattened/*.parquet")""",
    """import pandas  # its own types turn whole numbers beside nulls into floats
rows = pandas.read_parquet("flattened", dtype_backend="pyarrow")""",
    """import os, datasets
rows = datasets.load_dataset(os.getcwd(), "flattened", split="train")""",
)

_CSV_TABLE = """import glob, pyarrow.csv, pyarrow.parquet  # without these options, "" is null and a line break ends a row
schema = pyarrow.parquet.read_schema(".schema/flattened.parquet")
how = {
    "read_options": pyarrow.csv.ReadOptions(block_size=1 << 26),
    "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
    "convert_options": pyarrow.csv.ConvertOptions(
        column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    ),
}
rows = pyarrow.concat_tables(pyarrow.csv.read_csv(file, **how) for file in sorted(glob.glob("flattened/*.csv")))"""

_CSV = (
    _CSV_TABLE,
    """import polars  # without the schema, text like 007 becomes a number
schema = polars.read_parquet_schema(".schema/flattened.parquet")
rows = polars.scan_csv("flattened/*.csv", schema=schema, has_header=False, skip_rows=1).collect()""",
    """import duckdb  # without the columns, text like 007 or 2024-01-09 becomes a number or a date
columns = {name: kind for name, kind, *_ in duckdb.sql("DESCRIBE FROM '.schema/flattened.parquet'").fetchall()}
how = {"header": True, "sep": ",", "quotechar": '"', "escapechar": '"', "max_line_size": 1 << 26}
rows = duckdb.read_csv("flattened/*.csv", columns=columns, auto_detect=False, allow_quoted_nulls=False, **how)""",
    f"""{_CSV_TABLE}
import pandas  # read_csv cannot tell "" from null
rows = rows.to_pandas(types_mapper=pandas.ArrowDtype)""",
    f"""{_CSV_TABLE}
import datasets  # load_dataset(os.getcwd(), "flattened") guesses types, and cannot tell "" from null
rows = datasets.Dataset(rows)""",
)

_LINES = 'list(map(json.loads, fileinput.FileInput(sorted(glob.glob("flattened/*.jsonl")), encoding="utf-8")))'

_JSONL = (
    """import glob, pyarrow.json, pyarrow.parquet  # without the schema, text like 2024-01-09 becomes a timestamp
schema = pyarrow.parquet.read_schema(".schema/flattened.parquet")
how = pyarrow.json.ReadOptions(block_size=1 << 25), pyarrow.json.ParseOptions(explicit_schema=schema)
rows = pyarrow.concat_tables(pyarrow.json.read_json(file, *how) for file in sorted(glob.glob("flattened/*.jsonl")))""",
    """import polars  # without the schema, a column that begins with nulls or empty lists is an error
schema = polars.read_parquet_schema(".schema/flattened.parquet")
rows = polars.scan_ndjson("flattened/*.jsonl", schema=schema).collect()""",
    """import duckdb  # without the columns, text like 2024-01-09 becomes a date
columns = {name: kind for name, kind, *_ in duckdb.sql("DESCRIBE FROM '.schema/flattened.parquet'").fetchall()}
how = {"format": "newline_delimited", "maximum_object_size": 1 << 25}
rows = duckdb.read_json("flattened/*.jsonl", columns=columns, **how)""",
    f"""import fileinput, glob, json, pandas, pyarrow.parquet  # read_json takes columns named like dates for timestamps
schema = pyarrow.parquet.read_schema(".schema/flattened.parquet")
kept = [field for field in schema if pyarrow.types.is_nested(field.type) or b"chainette" in (field.metadata or {{}})]
types = {{field.name: pandas.ArrowDtype(field.type) for field in schema if field not in kept}}
rows = pandas.DataFrame({_LINES}, dtype=object).astype(types)""",
    """import json, os, datasets  # load_dataset(os.getcwd(), "flattened") turns text like 2024-01-09 into a timestamp
features = datasets.load_dataset_builder(os.getcwd(), "flattened").info.features
lines = datasets.load_dataset("text", data_files="flattened/*.jsonl", split="train")
rows = lines.map(lambda line: json.loads(line["text"]), features=features, remove_columns="text")""",
)

#: A column has one type, so values without a fixed shape are read in Python.
_FIT = f"""import fileinput, glob, json, pyarrow.parquet
schema = pyarrow.parquet.read_schema(".schema/flattened.parquet")
def fit(value, kind):  # a column has one type: values without a fixed shape become JSON text
    if value is not None and pyarrow.types.is_struct(kind):
        return {{field.name: fit(value.get(field.name), field.type) for field in kind}}
    if value is not None and pyarrow.types.is_list(kind):
        return [fit(item, kind.value_type) for item in value]
    return json.dumps(value) if pyarrow.types.is_string(kind) and not isinstance(value, str | None) else value
lines = {_LINES}"""

_FITTED = "\nrows = pyarrow.Table.from_pylist([fit(line, pyarrow.struct(list(schema))) for line in lines], schema=schema)"

_LOOSE_TABLE = _FIT + _FITTED

#: For runs in which some column holds JSON. The JSON type of `datasets` turns the text "1" into a number and
#: rounds floats.
_LOOSE_JSONL = (
    _LOOSE_TABLE,
    *_JSONL[1:4],
    f"""{_LOOSE_TABLE}
import datasets  # load_dataset(os.getcwd(), "flattened") rounds floats of unknown shape, and takes text for dates
rows = datasets.Dataset(rows)""",
)

_OPEN_TABLE = f"""{_FIT}
for line in lines:  # fields that the model does not list go to the column _extra
    extra = {{name: line.pop(name) for name in list(line) if name not in schema.names}}
    line |= {{"_extra": extra}} if extra else {{}}{_FITTED}"""

#: For runs that have fields without a column, or fields that differ only in case, of which duckdb omits one.
_OPEN_JSONL = (
    _OPEN_TABLE,
    f"{_OPEN_TABLE}\nimport polars\nrows = polars.from_arrow(rows)",
    f"{_OPEN_TABLE}\nimport duckdb\nrows = duckdb.from_arrow(rows)",
    _JSONL[3],
    f"""{_OPEN_TABLE}
import datasets  # load_dataset(os.getcwd(), "flattened") guesses types
rows = datasets.Dataset(rows)""",
)


def recipes(folder: str, format: str, *, loose: bool, open: bool) -> str:
    """The Python code that reads a folder with each tool, with a blank line between the tools.

    `loose` says that some column of the run holds JSON; `open`, that some model allows unknown fields, or has fields
    that differ only in case.
    """
    return "\n\n".join(_chosen(format, loose, open)).replace("flattened", folder)


def _chosen(format: str, loose: bool, open: bool) -> tuple[str, ...]:
    if format != "jsonl":
        return _PARQUET if format == "parquet" else _CSV
    return _OPEN_JSONL if open else _LOOSE_JSONL if loose else _JSONL
