"""The code on a run's card gives every value back, in every tool and format."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from chainette import Chain, apply
from chainette.io.rundir.result import RunResult
from tests.support.readers import TOOLS, offline, read

FORMATS = ["jsonl", "parquet", "csv"]

#: Text that some reader takes for something else.
TEXTS = [
    *("2024-01-09", "2024-01-09T10:00:00", "2024-01-09 10:00:00", "2024-01-01T10:00:00+05:00", "2024-01-01T10:00:00Z"),
    *("10:00:00", "2024-01", "20240109", "9/1/2024", "Jan 9 2024", "2024-13-45", "P1D", "1 day"),
    *("NaN", "nan", "inf", "-Infinity", "null", "NULL", "None", "N/A", "NA", "-", "--", ""),
    *("true", "TRUE", "false", "007", "+1", "1e5", "0x10", "1_000", "1,5", "1.10", ".5", "50%", "9007199254740993", "9" * 40),
    *("123e4567-e89b-12d3-a456-426614174000", " ", "\t", "  x ", "a,b", "a;b", "a\tb", "'", "\\", "\\n", "\\N", "=1+1", "#c"),
    *(
        '"',
        '""',
        '"a"',
        "a\nb",
        "a\rb",
        "a\r\nb",
        "\n",
        "\r",
        "a\u2028b",
        "a\u2029b",
        "a\u0085b",
        "\ufeffx",
        "é ü 漢 😀",
        "\x1f",
    ),
    *("{}", "[]", '{"a":1}', "long " * 30_000),
]
NUMBERS = [2**53 + 1, -(2**63), 2**63 - 1, 0, None]
RATIOS = [1.0, 0.1, 1e300, 5e-324, None]


class Index(BaseModel):
    at: int


class Inner(BaseModel):
    day: str | None
    count: int | None


class Value(BaseModel):
    value: str | None
    count: int | None
    ratio: float | None
    sure: bool | None
    tags: list[str | None]
    inner: Inner | None
    many: list[Inner]
    #: pandas takes columns with such names for dates.
    date: str
    created_at: str


class Free(BaseModel):
    anything: Any
    either: int | str
    scores: dict[str, float | str]
    deep: list[dict[str, int]]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Case(BaseModel):
    t: int
    T: str


class Cases(Case):
    inner: Case


#: Rows without any value come first, so that nothing can be told from the first file, nor from the first 1,000 rows.
EMPTY = 1_100


def value(item: Index) -> list[Value]:
    at, day = item.at - EMPTY, "2024-01-09"
    if at < 0:
        nothing: dict[str, Any] = dict.fromkeys(("value", "count", "ratio", "sure", "inner"))
        return [Value(**nothing, tags=[], many=[], date=day, created_at=day)]
    text, inner = TEXTS[at], Inner(day=TEXTS[at], count=NUMBERS[at % 5])
    return [
        Value(
            value=text,
            count=NUMBERS[at % 5],
            ratio=RATIOS[at % 5],
            sure=[True, False, None][at % 3],
            tags=[None, text] if twin else [text],
            inner=inner if twin else Inner(day=None, count=None),
            many=[inner, Inner(day=None, count=None)],
            date=day,
            created_at="2024-01-01T00:00:00Z",
        )
        for twin in range(2)
    ]


FREE: list[Any] = [None, {"a": [1, "é"]}, [1, 2], "2024-01-09", 1.5, True, 2**60, {"b": {"c": None}}]


def free(item: Index) -> Free:
    thing = FREE[item.at % len(FREE)]
    scores: dict[str, float | str] = {} if item.at < 4 else {f"k{item.at}": 0.5, "day": "2024-01-09"}
    return Free(anything=thing, either="007" if item.at % 2 else item.at, scores=scores, deep=[{"n": item.at}] * (item.at % 3))


def opened(item: Index) -> Open:
    more: dict[str, Any] = {} if item.at < 4 else {"day": "2024-01-09", f"k{item.at}": {"n": [item.at]}}
    return Open(name="007", **more)


def cased(item: Index) -> Cases:
    day = f"2024-01-0{item.at + 1}"
    return Cases(t=item.at, T=day, inner=Case(t=item.at, T=day))


CHAINS: dict[str, tuple[Callable[[Index], Any], int]] = {
    "value": (value, EMPTY + len(TEXTS)),
    "free": (free, 24),
    "opened": (opened, 24),
    "cased": (cased, 3),
}


@pytest.fixture(scope="module", params=FORMATS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """A run of each chain, in two shards or more."""
    folder = tmp_path_factory.mktemp("readers")
    return {
        name: Chain(name=name, steps=[apply(function, id=name)]).run(
            [Index(at=at) for at in range(rows)], folder / name, format=request.param, max_rows_per_file=2 * rows // 3
        )
        for name, (function, rows) in CHAINS.items()
    }


def plain(found: Any, expected: Any) -> Any:
    """A value as JSON has it: values without a fixed shape may have come as JSON text."""
    if isinstance(found, str) and not isinstance(expected, str) and expected is not None:
        found = json.loads(found)
    if isinstance(found, list) and isinstance(expected, list):
        return [plain(*pair) for pair in zip(found, expected, strict=True)]
    return found


def differences(found: list[dict[str, Any]], expected: list[dict[str, Any]], json_columns: str = "") -> list[str]:
    by_id = {row["row_id"]: row for row in found}
    assert len(by_id) == len(found) == len(expected)
    other = []
    for row in expected:
        for name, wanted in row.items():
            got = by_id.get(row["row_id"], {}).get(name)
            if name.rpartition(".")[2] in json_columns.split():
                got = plain(got, wanted)
            if type(got) is not type(wanted) or got != wanted:
                other.append(f"{row['row_id']} {name}: {wanted!r:.60} came as {got!r:.60}")
    return other


@pytest.mark.parametrize("folder", ["value", "flattened"])
@pytest.mark.parametrize("tool", TOOLS)
def test_every_value_comes_back_with_the_code_of_the_card(runs: dict[str, RunResult], tool: str, folder: str) -> None:
    run = runs["value"]
    texts = "tags inner many" if run.metadata["settings"]["format"] == "csv" else ""
    assert differences(read(run.dir, tool, folder), list(run.rows(folder)), texts) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_values_without_a_fixed_shape_come_back_as_themselves_or_as_json_text(runs: dict[str, RunResult], tool: str) -> None:
    run, found = runs["free"], read(runs["free"].dir, tool, "free")
    if run.metadata["settings"]["format"] != "jsonl":  # JSON text of text has quotes
        found = [row | {name: json.loads(row[name] or "null") for name in ("anything", "either")} for row in found]
    assert differences(found, list(run.rows("free")), "anything either scores deep") == []


@pytest.mark.parametrize("tool", TOOLS)
def test_fields_that_a_model_does_not_list_come_back(runs: dict[str, RunResult], tool: str) -> None:
    run = runs["opened"]
    found = [row | json.loads(row.get("_extra") or "{}") for row in read(run.dir, tool, "opened")]
    assert differences(found, list(run.rows("opened"))) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_fields_that_differ_in_case_only_come_back(runs: dict[str, RunResult], tool: str) -> None:
    run, second = runs["cased"], "T_1" if tool == "duckdb" else "T"
    rows = sorted(read(run.dir, tool, "cased"), key=lambda row: str(row["row_id"]))
    assert [(row["t"], row[second]) for row in rows] == [(0, "2024-01-01"), (1, "2024-01-02"), (2, "2024-01-03")]
    if run.metadata["settings"]["format"] != "csv":
        assert [list(row["inner"].values()) for row in rows] == [[row["t"], row[second]] for row in rows]


def test_the_dataset_of_a_result_holds_the_same_values(runs: dict[str, RunResult]) -> None:
    run = runs["value"]
    with offline(run.dir.parent / "cache"):
        found = run.dataset()
        alone = {folder: run.dataset(folder) for folder in ("value", "flattened")}
    for folder in ("value", "flattened"):
        assert differences([dict(row) for row in found[folder]], list(run.rows(folder))) == []
        assert alone[folder].to_list() == found[folder].to_list()
