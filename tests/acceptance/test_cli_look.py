"""`ls`, `why` and `rows`: runs, rows and the story of a row, looked at without the chain and without a Redis."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chainette import open_run
from tests.support.cli import Project

FORMATS = ("jsonl", "csv", "parquet")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of 20 good lines and a bad one in each format; some grades are invalid."""
    project = Project(tmp_path_factory.mktemp("look"), rows=20, invalid=0.25)
    with (project.path / "in.jsonl").open("a") as file:
        file.write('{"text": 3}\n')
    for kind in FORMATS:
        done = project.chainette("run", "chain.py", "in.jsonl", "-o", f"runs/{kind}", "--format", kind, "--quiet")
        assert done.returncode == 3, done.stderr
    return project


def told(project: Project, *words: str) -> str:
    done = project.chainette(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def story(project: Project, kind: str, row: str) -> dict[str, list[tuple[str, str]]]:
    """Step -> the (row id, kind of outcome) pairs that `why` tells."""
    found: dict[str, list[tuple[str, str]]] = {}
    for outcome in json.loads(told(project, "why", f"runs/{kind}", row, "--json"))["outcomes"]:
        found.setdefault(outcome["step"], []).append((outcome["row_id"], outcome["kind"]))
    return found


def rejected_grade(project: Project) -> str:
    rows = told(project, "rejected", "runs/jsonl", "--json", "--step", "grade").splitlines()
    return str(json.loads(rows[0])["row_id"])


def test_ls_names_every_run_below_a_folder_and_nothing_inside_them(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.path / "runs/jsonl", tmp_path / "old/deep")
    shutil.copytree(project.path / "runs/csv", tmp_path / "old/deep/.versions/1")
    shutil.copytree(project.path / "runs/csv", tmp_path / "damaged")
    (tmp_path / "damaged/events.jsonl").write_bytes(b"\xff" * 300 + b"\n" * 3)
    (tmp_path / "damaged/metadata.json").unlink()
    runs = {run["directory"]: run for run in map(json.loads, told(project, "ls", str(tmp_path), "--json").splitlines())}
    assert set(runs) == {str(tmp_path / "old/deep"), str(tmp_path / "damaged")}
    whole = runs[str(tmp_path / "old/deep")]
    metadata = json.loads((project.path / "runs/jsonl/metadata.json").read_bytes())
    assert (whole["status"], whole["rows"], whole["rejected"]) == (
        "finished",
        metadata["rows_finished"],
        metadata["rows_rejected"],
    )
    assert runs[str(tmp_path / "damaged")]["status"].startswith("damaged: ")
    assert [line.split()[0] for line in told(project, "ls").splitlines()[2:]] == ["runs/parquet", "runs/csv", "runs/jsonl"]


def test_ls_reads_the_log_if_it_is_newer_than_the_metadata(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.path / "runs/jsonl", tmp_path / "run")
    derived = tmp_path / "run/metadata.json"
    derived.write_text(derived.read_text().replace('"rows_finished": ', '"rows_finished": 9'))
    (tmp_path / "run/events.jsonl").touch()
    whole = json.loads((project.path / "runs/jsonl/metadata.json").read_bytes())
    assert json.loads(told(project, "ls", str(tmp_path), "--json"))["rows"] == whole["rows_finished"]


def test_ls_without_a_run_says_how_to_make_one(project: Project, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert told(project, "ls", str(folder)) == f"no runs below {folder}; chainette run CHAIN INPUTS begins one\n"


@pytest.mark.parametrize("kind", FORMATS)
def test_why_tells_each_outcome_of_a_row_and_of_the_rows_made_from_it(project: Project, kind: str) -> None:
    finished = json.loads(told(project, "rows", "runs/jsonl", "--json", "--limit", "1"))["row_id"]
    assert story(project, kind, finished) == {
        "extract": [(finished, "output")],
        "split": [(f"{finished}~0", "output"), (f"{finished}~1", "output")],
        "side": [(finished, "output")],
        "grade": [(finished, "output")],
        "flattened": [(finished, "finished")],
    }
    child = story(project, kind, f"{finished}~1")
    assert child["split"] == [(f"{finished}~1", "output")], "a sibling is no kin"
    assert child["extract"] == [(finished, "output")]


@pytest.mark.parametrize("kind", FORMATS)
def test_why_shows_a_rejection_with_its_answer_and_a_bad_line_with_its_text(project: Project, kind: str) -> None:
    row = rejected_grade(project)
    shown = told(project, "why", f"runs/{kind}", row)
    assert f"row {row}: in.jsonl:{int(row) + 1}\n  text  row {row}\n" in shown
    assert re.search(rf"^grade, row {row}: rejected, \w+ after 1 answer$", shown, re.MULTILINE)
    assert "  raw " in shown and shown.endswith(f"row {row} is rejected at grade\n")
    bad = told(project, "why", f"runs/{kind}", "20")
    assert "chain_input, row 20: rejected, invalid_input\n" in bad and bad.endswith("row 20 is rejected at chain_input\n")


def test_why_shows_values_that_are_false_or_zero(tmp_path: Path) -> None:
    (tmp_path / "chain.py").write_text(
        "from pydantic import BaseModel\nfrom chainette import Chain, apply\n\n\n"
        "class Mark(BaseModel):\n    ok: bool\n    score: float\n\n\n"
        "@apply\ndef mark(item: Mark) -> Mark:\n    return item\n\n\nchain = Chain(name='marks', steps=[mark])\n"
    )
    project = Project.__new__(Project)
    project.path = tmp_path
    (tmp_path / "in.jsonl").write_text('{"ok": false, "score": 0}\n')
    told(project, "run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    assert "mark, row 0: output\n  ok     false\n  score  0.0\n" in told(project, "why", "out", "0")


def test_why_works_without_the_input_and_says_so(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.path / "runs/csv", tmp_path / "moved/run")
    shutil.copy(project.path / "chain.py", tmp_path / "moved/chain.py")
    (project.path / "in.jsonl").rename(project.path / "away.jsonl")
    try:
        shown = told(project, "why", str(tmp_path / "moved/run"), "1")
    finally:
        (project.path / "away.jsonl").rename(project.path / "in.jsonl")
    assert shown.startswith("row 1: its input cannot be read now\n\nextract, row 1: output after 1 answer\n")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("21", "has no row 21 so far: 21 records of its input done, and rows count from 0"),
        ("3~7", "has no row 3~7 so far"),
        ("seven", "'seven' is not a row id; they look like 17"),
    ],
)
def test_why_names_a_row_that_is_not_there(project: Project, row: str, words: str) -> None:
    done = project.chainette("why", "runs/jsonl", row)
    assert done.returncode in (1, 2) and words in " ".join(done.stderr.split())


def test_why_says_that_a_row_of_a_stopped_run_is_not_finished_yet(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.path / "runs/jsonl", tmp_path / "run")
    log = tmp_path / "run/events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if b'"node":"extract","root":0,' in line)
    log.write_bytes(b"".join(lines[: first + 1]))
    assert told(project, "why", str(tmp_path / "run"), "0").endswith(
        "row 0 is not finished yet; its last outcome is that of extract\n"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_shows_the_columns_that_are_named_exactly_or_readably(project: Project, kind: str) -> None:
    every = [json.loads(line) for line in told(project, "rows", f"runs/{kind}", "--json").splitlines()]
    metadata = json.loads((project.path / f"runs/{kind}/metadata.json").read_bytes())
    assert len(every) == metadata["rows_finished"]
    two = told(project, "rows", f"runs/{kind}", "--columns", "extract.name, row_id", "--json", "--limit", "2").splitlines()
    assert [json.loads(line) for line in two] == [{name: row[name] for name in ("extract.name", "row_id")} for row in every[:2]]
    assert [*json.loads(two[0])] == ["extract.name", "row_id"]


def test_rows_as_records_have_a_line_per_field_and_wide_rows_become_records_by_themselves(project: Project) -> None:
    records = told(project, "rows", "runs/jsonl", "--records", "--limit", "1").splitlines()
    assert [line.split()[0] for line in records[:3]] == ["row_id", "chain_input.text", "extract.name"]
    narrow = project.chainette("rows", "runs/jsonl", "--columns", "row_id,nmae")
    assert narrow.returncode == 2 and "the rows have no such column" in narrow.stderr


def test_rows_where_an_expression_holds(project: Project) -> None:
    every = [json.loads(line) for line in told(project, "rows", "runs/parquet", "--json").splitlines()]
    high = told(project, "rows", "runs/parquet", "--where", "grade.score > 0 and 'row 1' in chain_input.text", "--json")
    wanted = [row for row in every if row["grade.score"] > 0 and "row 1" in row["chain_input.text"]]
    assert [json.loads(line) for line in high.splitlines()] == wanted and 0 < len(wanted) < len(every)
    more = told(project, "rows", "runs/csv", "--where", "grade.score | int > 0", "--limit", "1").splitlines()[-1]
    assert more == f"and {sum(row['grade.score'] > 0 for row in every) - 1} more: --limit N shows more, --json all of them"
    assert told(project, "rows", "runs/jsonl", "--step", "rejected", "--where", "reason == 'nothing like it'") == "no rows\n"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("grade.scor > 1", "'grade.scor"),
        ("grade.score >", "--where 'grade.score >'"),
        ("().__class__", "unsafe"),
        ("grade.score > 'a'", "'>' not supported"),
    ],
)
def test_a_condition_that_cannot_be_evaluated_is_named(project: Project, where: str, words: str) -> None:
    done = project.chainette("rows", "runs/jsonl", "--where", where)
    assert done.returncode == 2 and words in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr


def changed_rows(project: Project, *words: str) -> dict[str, dict[str, list[object]]]:
    return {row["name"]: row["fields"] for row in map(json.loads, told(project, "diff", *words, "--json").splitlines())}


def test_diff_finds_no_change_between_formats_of_one_run(project: Project) -> None:
    for one, other in (("jsonl", "csv"), ("csv", "parquet"), ("parquet", "jsonl")):
        for step in ("flattened", "extract", "split", "rejected"):
            shown = told(project, "diff", f"runs/{one}", f"runs/{other}", step)
            assert re.fullmatch(rf"{step}: \d+ rows equal, 0 changed \(matched by row_id\)\n", shown), shown


def test_diff_names_changed_fields_and_rows_that_one_run_lacks(project: Project) -> None:
    made = project.chainette("run", "chain.py", "in.jsonl", "-o", "other", "--seed", "7", "--limit", "12", "--quiet")
    assert made.returncode in (0, 3), made.stderr
    rows = {
        kind: {
            row["row_id"]: row
            for row in map(json.loads, told(project, "rows", kind, "--step", "extract", "--json").splitlines())
        }
        for kind in ("runs/csv", "other")
    }
    changed = changed_rows(project, "runs/csv", "other", "extract")
    names = {row_id: row["name"] for row_id, row in rows["other"].items()}
    assert changed == {
        row_id: {"name": [rows["runs/csv"][row_id]["name"], name]}
        for row_id, name in names.items()
        if rows["runs/csv"][row_id]["name"] != name
    }
    assert len(changed) > 6, "another seed gives other names"
    shown = told(project, "diff", "runs/csv", "other", "extract", "--limit", "1")
    assert "only in A: 8 rows: 12, 13, 14, 15, 16, 17, 18, 19\n" in shown
    assert re.search(rf"^name +{len(changed)}$", shown, re.MULTILINE)
    assert f"and {len(changed) - 1} more" in shown and shown.count("    + ") == 1


def test_diff_matches_by_key_if_both_runs_have_one(project: Project) -> None:
    texts = [{"text": f"t{number}", "id": f"k{number}"} for number in range(6)]
    for name, order in (("forth", texts), ("back", texts[::-1])):
        (project.path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in order))
        made = project.chainette("run", "chain.py", f"{name}.jsonl", "-o", name, "--key", "id", "--quiet")
        assert made.returncode in (0, 3), made.stderr
    changed = changed_rows(project, "forth", "back", "extract")
    assert {name[0] for name in changed} == {"k"}
    assert "(matched by _key)" in told(project, "diff", "forth", "back", "extract")


def test_the_records_of_rejected_rows_are_asked_alone_with_another_prompt(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=20, invalid=0.5)
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet", "--seed", "7")
    rejected = [int(row) for row in project.ids("out", "rejected")]
    assert 1 < len(rejected) < 1 + max(rejected) - min(rejected), "there are good rows between them"
    chain = (tmp_path / "chain.py").read_text()
    (tmp_path / "chain.py").write_text(chain.replace('"{{ pieces }}"', '"Grade: {{ pieces }}"'))
    for words in (("rejected", "out", "--retry"), ("resume", "out", "--select", "rejected")):
        refused = project.chainette(*words)
        assert refused.returncode == 1
        assert f"To ask for them in a separate directory ({len(rejected)} rows):" in refused.stderr
        assert "`chainette rejected out --records > rejected.jsonl`" in refused.stderr
        assert "(20 rows of grade): `chainette resume out --from grade`" in refused.stderr
    printed = project.chainette("rejected", "out", "--records")
    assert printed.stdout == "".join(f'{{"text":"row {row}"}}\n' for row in sorted(rejected))
    (tmp_path / "rejected.jsonl").write_text(printed.stdout)
    command = printed.stderr.rpartition("chainette ")[2].split()
    assert command == ["run", "chain.py:chain", "rejected.jsonl", "--seed", "7", "--reuse", "out", "-o", "NEW"]
    project.chainette(*command, "--quiet")
    metadata = json.loads((tmp_path / "NEW/metadata.json").read_text())
    assert {step: counts["usage"]["requests"] for step, counts in metadata["steps"].items() if "usage" in counts} == {
        "grade": len(rejected)
    }


def test_records_of_a_csv_input_are_printed_as_csv(tmp_path: Path) -> None:
    project = Project(tmp_path, invalid=1.0)
    (tmp_path / "in.csv").write_text('id,body\n1,a\n2,"b\nc"\n3,\n')
    project.chainette("run", "chain.py", "in.csv", "--columns", "text=body", "-o", "out", "--quiet")
    printed = project.chainette("rejected", "out", "--records")
    assert printed.stdout == 'id,body\n1,a\n2,"b\nc"\n'
    assert "chain.py:chain rejected.csv --columns text=body --reuse out" in printed.stderr


def test_records_come_as_they_were_written_and_without_what_json_cannot_hold(tmp_path: Path) -> None:
    project = Project(tmp_path, invalid=1.0)
    line = '{"text":"a","exact":12345678901234567890.12345678901234567890,"text":"b"}'
    (tmp_path / "in.json").write_text("[" + line.replace(",", ",\n  ") + "]")
    project.chainette("run", "chain.py", "in.json", "-o", "json", "--quiet")
    assert project.chainette("rejected", "json", "--records").stdout == line + "\n"
    table = pa.table({"text": ["a"], "image": [b"\xff\xd8"], "name": [b"ab"], "score": [float("nan")]})
    pq.write_table(table, tmp_path / "in.parquet")
    project.chainette("run", "chain.py", "in.parquet", "-o", "parquet", "--quiet")
    assert project.chainette("rejected", "parquet", "--records").stdout == '{"text":"a","name":"ab","score":"NaN"}\n'


def test_why_shows_the_prompt_and_the_answer_that_was_rejected_before_a_retry(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=20, invalid=0.25)
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    retried = [*map(json.loads, told(project, "rejected", "out", "--json").splitlines())]
    rejected, row = retried[0], retried[0]["row_id"]
    project.chainette("rejected", "out", "--retry", "--engine", "writer", "--quiet")
    shown = told(project, "why", "out", row, "--prompt")
    assert f"  [user]  Name in: row {row}\n" in shown
    assert '  [user]  [{"name":' in shown, "the prompt of grade, which needs the rows before it"
    assert f"grade, row {row}: output after 2 answers\n" in shown
    assert f"  before a retry: rejected, {rejected['reason']} after 1 answer: {rejected['message']}\n" in shown
    assert "not kept" not in shown
    assert re.search(r"^grade.*\n(  .*\n)*  _engine  writer\n", shown, re.MULTILINE)
    frame = open_run(tmp_path / "out").to_pandas("grade")
    assert {*frame["_engine"][frame["_attempts"] > 1]} == {"writer"} and frame["_engine"].isna().sum() == 20 - len(retried)
    chain = (tmp_path / "chain.py").read_text()
    (tmp_path / "chain.py").write_text(chain.replace('"{{ pieces }}"', '"Grade: {{ pieces }}"'))
    shown = told(project, "why", "out", row, "--prompt")
    assert f"  [user]  Name in: row {row}\n" in shown
    assert "Grade: " not in shown, "it was not asked so"
    assert "its prompt cannot be shown: the chain has changed since: prompt of grade: 1 line changed\n" in shown
