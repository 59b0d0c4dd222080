"""The dataset card: the README.md that makes a run directory a Hugging Face dataset.

`datasets.load_dataset(<run dir>, "<step id>")` works on it. The description of every config contains a
digest of its content, because the cache key of `datasets` depends only on the card: without the digest, shards
that have grown, or another directory of the same name, would give the rows of the first load. A config
without rows is left out, because one that matches no file breaks the loading of the others. JSONL
configs should state their features: `datasets` infers types from the first file only, and fails if a column
is null in all of it and text in the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainette.io.rundir.card_snippets import recipes
from chainette.io.tables.features import columns_of, differ_in_case, is_loose, is_open

__all__ = ["CardConfig", "render_card", "shards_digest"]


@dataclass(frozen=True)
class CardConfig:
    """One folder of shards."""

    name: str
    folder: str
    rows: int
    #: A digest that changes with the content of the folder.
    digest: str
    #: Describes a row, for people.
    description: str
    #: `dataset_features` of its columns.
    features: Sequence[Any] | None = None


def shards_digest(run_id: str, folder: str, ends: Mapping[int, tuple[int, int]]) -> str:
    """The digest of a folder's content, from the ends of its shards by number."""
    return hashlib.sha256(f"{run_id} {folder} {sorted(ends.items())}".encode()).hexdigest()


def render_card(title: str, run_id: str, status: str, format: str, configs: Sequence[CardConfig]) -> str:
    """The card: YAML front matter for `datasets`, then a page for people. A pure function.

    The default config is `flattened` if it has rows, or else the last step.
    """
    import yaml

    loadable = [config for config in configs if config.rows > 0]
    head = yaml.safe_dump(_front_matter(title, run_id, format, loadable), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n\n{_body(title, run_id, status, format, configs, loadable)}"


def _front_matter(title: str, run_id: str, format: str, configs: Sequence[CardConfig]) -> dict[str, Any]:
    default = _default(configs)
    entries = [_entry(config, run_id, format, config is default) for config in configs]
    typed = [{"config_name": config.name, "features": list(config.features or ())} for config in configs if _is_typed(config)]
    return (
        {"pretty_name": title, "tags": ["chainette"]}
        | ({"configs": entries} if entries else {})
        | ({"dataset_info": typed} if typed and format == "jsonl" else {})
    )


def _is_typed(config: CardConfig) -> bool:
    """Whether all columns are known. The front matter of JSONL declares them; Parquet has them in the file, and
    `datasets` cannot read nulls into declared numbers of a CSV file."""
    return bool(config.features) and not is_open(columns_of(config.features or ()))


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
    if format == "csv":  # the text "None" or "NA" is an answer, not a missing value
        entry |= {"keep_default_na": False, "na_values": [""]}
    return entry | {"default": True} if default else entry


def _body(
    title: str, run_id: str, status: str, format: str, configs: Sequence[CardConfig], loadable: Sequence[CardConfig]
) -> str:
    table = "\n".join(f"| `{config.name}` | {config.rows:,} | {_cell(config.description)} |" for config in configs)
    page = f"# {title}\n\nRun `{run_id}` of Chainette, {status}.\n\n| config | rows | a row is |\n|---|--:|---|\n{table}\n"
    shown = _default(loadable)
    return page + (_loading(shown, format, loadable) if shown else "\nThere are no rows yet.\n")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _loading(config: CardConfig, format: str, configs: Sequence[CardConfig]) -> str:
    folders = [columns_of(each.features or ()) for each in configs]
    columns = tuple(column for folder in folders for column in folder)
    code = recipes(config.folder, format, loose=is_loose(columns), open=is_open(columns) or any(map(differ_in_case, folders)))
    return _LOADING.format(folder=config.folder, code=code) + _NOTES[format] + (_OPEN if is_open(columns) else "")


_LOADING = """
## Loading

With Chainette: `chainette.open_run(".").to_pandas("{folder}")`, or `to_polars`, `to_arrow`, `rows`. Without it, run
one of these in this directory. Put the name of another folder in its place to read that one.

```python
{code}
```

`row_id` joins the folders. Dates, times and decimals are text. """

_NOTES = {
    "jsonl": "One JSON object per line. `.schema/` holds the columns of each folder, since readers guess types otherwise.\n"
    "Values without a fixed shape (dicts, unions) are Python values in pandas; elsewhere everything but text is JSON text.\n",
    "parquet": "Values without a fixed shape (dicts, unions) are JSON text.\n",
    "csv": 'Nothing between two commas is null, `""` is the empty string; lists and objects are JSON in their cell.\n'
    "CSV has no types: `.schema/` holds the columns of each folder, since readers guess types otherwise.\n",
}

_OPEN = (
    "Fields that a model does not list, or may leave out, are JSON text in the column `_extra`, "
    "except that pandas gives those of JSON Lines a column each.\n"
)
