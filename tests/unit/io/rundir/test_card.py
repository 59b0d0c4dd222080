"""The card against the real readers, offline, in every format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette.io.rundir.card import CardConfig, render_card
from chainette.io.tables.columns import arrow_schema, flattened_columns, step_columns
from chainette.io.tables.features import dataset_features
from chainette.io.tables.shard_formats import seal_csv, seal_parquet

FORMATS = ["jsonl", "parquet", "csv"]


class Product(BaseModel):
    name: str
    price: float | None = None
    tags: list[str] = []


class Summary(BaseModel):
    text: str


ADDED: list[tuple[str, Any]] = [("row_id", str), ("_attempts", int), ("_reasoning", str)]
COLUMNS = {
    "extract": step_columns(Product, ADDED),
    "summary": step_columns(Summary, ADDED),
    "flattened": flattened_columns({"extract": Product, "summary": Summary}, [("row_id", str)]),
    "rejected": step_columns(None, [("row_id", str), ("step_id", str), ("message", str), ("line", int)]),
}


def _products(names: list[str]) -> list[dict[str, Any]]:
    return [
        {"row_id": str(at), "name": name, "price": at + 0.5, "tags": [name, "ü"], "_attempts": 1, "_reasoning": None}
        for at, name in enumerate(names)
    ]


def _write(folder: Path, rows: list[dict[str, Any]], format: str, shard: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder.parent / ".journal.jsonl"
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = folder / f"{shard}.{format}"
    if format == "jsonl":
        journal.rename(target)
    else:
        (seal_parquet if format == "parquet" else seal_csv)(journal, target, arrow_schema(COLUMNS[folder.name]))
        journal.unlink()


def _run(path: Path, names: list[str], format: str, run_id: str = "r1") -> Path:
    rows = _products(names)
    summaries = [{"row_id": row["row_id"], "text": "about " + row["name"], "_attempts": 1, "_reasoning": None} for row in rows]
    flat = [
        {
            "row_id": a["row_id"],
            "extract.name": a["name"],
            "extract.price": a["price"],
            "extract.tags": a["tags"],
            "summary.text": b["text"],
        }
        for a, b in zip(rows, summaries, strict=True)
    ]
    for folder, content in {"extract": rows, "summary": summaries, "flattened": flat}.items():
        _write(path / folder, content, format)
    (path / "rejected").mkdir()
    (path / "events.jsonl").write_text('{"type": "run_created"}\n')
    _publish(path, format, run_id)
    return path


def _publish(path: Path, format: str, run_id: str = "r1") -> None:
    configs = []
    for name in COLUMNS:
        content = b"".join(file.read_bytes() for file in sorted((path / name).glob("*")))
        rows = len(content.splitlines())
        digest = hashlib.sha256(content).hexdigest()
        configs.append(CardConfig(name, name, rows, digest, f"rows | of {name}", dataset_features(COLUMNS[name])))
    (path / "README.md").write_text(render_card("products: one", run_id, "finished", format, configs))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()

    def rows(path: Path, *config: str) -> list[dict[str, Any]]:
        found = datasets.load_dataset(str(path), *config, split="train", cache_dir=str(tmp_path / "cache"))
        return [dict(row) for row in found]

    return rows


@pytest.mark.parametrize("format", FORMATS)
def test_load_dataset_gives_the_rows_of_a_step(tmp_path: Path, load: Any, format: str) -> None:
    run = _run(tmp_path / "run", ["a", "b"], format)
    rows = load(run, "extract")
    assert [row["name"] for row in rows] == ["a", "b"]
    assert [row["price"] for row in rows] == [0.5, 1.5]
    tags = rows[0]["tags"]
    assert (json.loads(tags) if format == "csv" else tags) == ["a", "ü"]
    assert [row["text"] for row in load(run, "summary")] == ["about a", "about b"]


@pytest.mark.parametrize("format", FORMATS)
def test_flattened_is_the_default_config(tmp_path: Path, load: Any, format: str) -> None:
    rows = load(_run(tmp_path / "run", ["a"], format))
    assert set(rows[0]) == {"row_id", "extract.name", "extract.price", "extract.tags", "summary.text"}


@pytest.mark.parametrize("format", FORMATS)
def test_a_directory_of_the_same_name_gives_its_own_rows(tmp_path: Path, load: Any, format: str) -> None:
    first = _run(tmp_path / "one" / "run", ["a"], format)
    second = _run(tmp_path / "two" / "run", ["x", "y"], format)
    assert [row["name"] for row in load(first, "extract")] == ["a"]
    assert [row["name"] for row in load(second, "extract")] == ["x", "y"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_new_shard_is_loaded_although_the_first_load_was_cached(tmp_path: Path, load: Any, format: str) -> None:
    run = _run(tmp_path / "run", ["a"], format)
    assert len(load(run, "extract")) == 1
    _write(run / "extract", _products(["b", "c"]), format, shard=1)
    _publish(run, format)
    assert sorted(row["name"] for row in load(run, "extract")) == ["a", "b", "c"]


class Mixed(BaseModel):
    note: str | None
    any: Any
    tags: list[str]
    inner: list[Product]
    deep: list[list[int]]
    one: Summary | None


def test_jsonl_loads_if_the_first_shard_is_all_null_and_the_next_is_not(tmp_path: Path, load: Any) -> None:
    product = {"name": "p", "price": 1.5, "tags": []}
    rows: list[dict[str, Any]] = [
        {"row_id": "0", "note": None, "any": {"a": 1}, "tags": [], "inner": [], "deep": [], "one": None},
        {"row_id": "1", "note": "n", "any": [2], "tags": ["t"], "inner": [product], "deep": [[1]], "one": {"text": "x"}},
    ]
    for shard, row in enumerate(rows):
        _write(tmp_path / "run" / "mixed", [row], "jsonl", shard)
    features = dataset_features(step_columns(Mixed, [("row_id", str)]))
    card = render_card("c", "r", "finished", "jsonl", [CardConfig("mixed", "mixed", 2, "0", "rows", features)])
    (tmp_path / "run" / "README.md").write_text(card)
    assert load(tmp_path / "run", "mixed") == rows


def test_a_config_without_rows_is_left_out_of_the_configs_and_shown_in_the_table(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", ["a"], "jsonl")
    card = (run / "README.md").read_text()
    assert "config_name: rejected" not in card
    assert "| `rejected` | 0 | rows \\| of rejected |" in card


def test_the_last_step_is_the_default_if_nothing_is_flattened() -> None:
    configs = [CardConfig(name, name, 3, "0", "rows") for name in ("extract", "summary", "rejected")]
    card = render_card("c", "r", "finished", "jsonl", configs)
    assert card.index("config_name: summary") < card.index("default: true") < card.index("config_name: rejected")
    assert card.count("default: true") == 1


def test_a_run_without_rows_has_a_card_without_configs() -> None:
    card = render_card("c", "r", "running", "jsonl", [CardConfig("extract", "extract", 0, "0", "rows")])
    assert "configs:" not in card
    assert "no rows yet" in card


def test_a_title_that_yaml_could_misread_stays_a_title() -> None:
    import yaml

    card = render_card("yes: {a} # 'b'\n", "r", "finished", "jsonl", [])
    assert yaml.safe_load(card.split("---\n")[1])["pretty_name"] == "yes: {a} # 'b'\n"
