"""The dataset card: the README.md that makes a run directory a Hugging Face dataset.

`datasets.load_dataset(<run dir>, "<step id>")` works on it. The description of every config carries a
digest of its content, because `datasets` takes its cache key from the card alone: without it, grown
shards, or another directory of the same name, would give the rows of the first load. A config
without rows is left out, since one that matches no file breaks the loading of the others. JSONL
configs should state their features: `datasets` infers the types of the first file only, and fails on a
column that is null all through it and text in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chainette.io.columns import EXTRA_COLUMN, Columns
from chainette.io.shape import Kind, Shape

__all__ = ["CardConfig", "dataset_features", "render_card"]


@dataclass(frozen=True)
class CardConfig:
    """One folder of shards."""

    name: str
    folder: str
    rows: int
    #: Changes with the content of the folder.
    digest: str
    #: What a row is, for people.
    description: str
    #: `dataset_features` of its columns, for JSONL.
    features: Sequence[Any] | None = None


def dataset_features(columns: Columns) -> list[Any] | None:
    """The columns of JSONL shards as `datasets` writes them in YAML.

    None for a model with unknown fields, whose columns are not known. Parquet has its own in the file, and
    `datasets` cannot read nulls into declared numbers of a CSV file, so they are for JSONL only.
    """
    if any(name == EXTRA_COLUMN for name, _ in columns):
        return None
    return [_feature(name, shape) for name, shape in columns]


def _feature(name: str, shape: Shape) -> dict[str, Any]:
    return {"name": name, **_described(shape)}


def _described(shape: Shape) -> dict[str, Any]:
    match shape.kind:
        case Kind.LIST:
            item = _described(shape.item or Shape(Kind.JSON))
            return {"list": item.get("dtype") or item.get("struct") or item}
        case Kind.STRUCT:
            return {"struct": [_feature(name, field) for name, field in shape.fields]}
        case Kind.INTEGER:
            return {"dtype": "int64"}
        case Kind.NUMBER:
            return {"dtype": "float64"}
        case Kind.BOOLEAN:
            return {"dtype": "bool"}
        case Kind.STRING | Kind.JSON:
            return {"dtype": shape.kind.value}


def render_card(title: str, run_id: str, status: str, format: str, configs: Sequence[CardConfig]) -> str:
    """The card: YAML front matter for `datasets`, then a page for people. Pure.

    `flattened` is the default config where it has rows, else the last step is.
    """
    import yaml

    loadable = [config for config in configs if config.rows > 0]
    head = yaml.safe_dump(_front_matter(title, run_id, format, loadable), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n\n{_body(title, run_id, status, format, configs, loadable)}"


def _front_matter(title: str, run_id: str, format: str, configs: Sequence[CardConfig]) -> dict[str, Any]:
    default = _default(configs)
    entries = [_entry(config, run_id, format, config is default) for config in configs]
    typed = [{"config_name": config.name, "features": list(config.features)} for config in configs if config.features]
    return (
        {"pretty_name": title, "tags": ["chainette"]}
        | ({"configs": entries} if entries else {})
        | ({"dataset_info": typed} if typed else {})
    )


def _default(configs: Sequence[CardConfig]) -> CardConfig | None:
    flattened = [config for config in configs if config.name == "flattened"]
    steps = [config for config in configs if config.name not in ("flattened", "rejected")]
    return next(iter([*flattened, *reversed(steps), *configs]), None)


def _entry(config: CardConfig, run_id: str, format: str, default: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "config_name": config.name,
        "data_files": f"{config.folder}/*.{format}",
        "description": f"{config.description} (run {run_id}, sha256:{config.digest})",
    }
    if format == "csv":  # the text "None" or "NA" is an answer, not a missing one
        entry |= {"keep_default_na": False, "na_values": [""]}
    return entry | {"default": True} if default else entry


def _body(
    title: str, run_id: str, status: str, format: str, configs: Sequence[CardConfig], loadable: Sequence[CardConfig]
) -> str:
    table = "\n".join(f"| `{config.name}` | {config.rows:,} | {_cell(config.description)} |" for config in configs)
    page = f"# {title}\n\nRun `{run_id}` of Chainette, {status}.\n\n| config | rows | what a row is |\n|---|--:|---|\n{table}\n"
    shown = _default(loadable)
    return page + (_loading(shown, format) if shown else "\nThere are no rows yet.\n")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _loading(config: CardConfig, format: str) -> str:
    files = f"{config.folder}/*.{format}"
    polars = {"jsonl": "scan_ndjson", "parquet": "scan_parquet", "csv": "scan_csv"}[format]
    duckdb = {"jsonl": "read_json", "parquet": "read_parquet", "csv": "read_csv"}[format]
    pandas = {
        "jsonl": "read_json(file, lines=True, dtype=False, precise_float=True)",
        "parquet": "read_parquet(file)",
        "csv": _PANDAS_CSV,
    }[format]
    typed = {name: hint if format == "csv" else "" for name, hint in _CSV_TYPES.items()}
    return (
        _LOADING.format(name=config.name, files=files, polars=polars, duckdb=duckdb, pandas=pandas, **typed)
        + (_FORMAT_NOTES[format])
    )


_LOADING = """
## Loading

From this directory:

```python
import os, datasets
rows = datasets.load_dataset(os.getcwd(), "{name}", split="train")

import polars
rows = polars.{polars}("{files}"{polars_types}).collect()

import duckdb
rows = duckdb.sql("SELECT * FROM {duckdb}('{files}'{duckdb_types})")

import glob, pandas
rows = pandas.concat([pandas.{pandas} for file in sorted(glob.glob("{files}"))])
```

`row_id` joins the folders. """

#: CSV has no types: "0.10", the eleventh row made of row 0, would be read as the number 0.1, and the text "None" as missing.
_PANDAS_CSV = 'read_csv(file, dtype={"row_id": str}, keep_default_na=False, na_values=[""])'
_CSV_TYPES = {
    "polars_types": ', schema_overrides={"row_id": polars.String}',
    "duckdb_types": ", types={'row_id': 'VARCHAR'}",
}

_FORMAT_NOTES = {
    "jsonl": "One JSON object per line.\n",
    "parquet": "Dates, times and decimals are text; values without a fixed shape (dicts, unions) are JSON text.\n",
    "csv": 'Nothing between two commas is null, `""` is the empty string; lists and objects are JSON in their cell.\n'
    "CSV has no types: text that looks like a number has to be named as text when it is read, as `row_id` is here.\n",
}
