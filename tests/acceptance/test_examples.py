"""Every example does as its README says: the chain runs, and leaves the rows a reader is told to expect."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, Project
from tests.support.models import needs_model
from tests.support.valkey import Database
from tests.support.vllm import needs_vllm

EXAMPLES = REPOSITORY / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))

#: Example -> rows in its folders under --simulate, as its README says; None: some, drawn at random.
EXPECTED: dict[str, dict[str, int | None]] = {
    "01_sentiment": {"classify": 28, "flattened": 28},
    "02_extraction": {"extract": 24, "advertise": 24, "flattened": 24},
    "03_translate_join_grade": {"to_french": 24, "to_german": 24, "grade": 24, "flattened": 24},
    "04_pure_python": {"split_lines": 36, "keep_valid": 32, "invoice": 31, "flattened": 31, "rejected": 2},
    "05_rag": {"passages": 40, "read": 40, "findings": None, "flattened": None},
    "06_two_models": {"read": 24, "judge": 24, "flattened": 24},
    "07_one_device": {"reply": 60, "grade": 60, "flattened": 60},
    "08_parameters": {"rewrite": 24, "to_german": 24, "flattened": 24},
    "09_triage": {"classify": 24, "handle": 24, "offer": None, "file_report": None, "reply": 24, "flattened": 24},
    "10_revise": {"flattened": 24},
    "11_self_consistency": {"read_candidates": 216, "read": 24, "check": 24, "flattened": 24},
    "12_escalate": {"read": 24, "flattened": 24},
    "13_batches": {"look_up": 22, "score": 21, "flattened": 21, "rejected": 1},
    "14_yaml": {"clean": 22, "classify": 22, "topic": 22, "reply": 22, "flattened": 22},
    "15_accept": {"write": None, "check": None, "flattened": 20},
    "16_cost": {"sum_up": 120, "judge": 116, "flattened": 116, "rejected": 4},
    "17_reuse": {"sort": 24, "reply": 24, "flattened": 24},
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def paths(name: str) -> tuple[str, str]:
    return str(EXAMPLES / name / chain_file(name)), str(EXAMPLES / name / "inputs.jsonl")


def chain_file(name: str) -> str:
    return "chain.yml" if name == "14_yaml" else "chain.py"


def test_there_are_the_examples_that_are_tested() -> None:
    assert list(EXPECTED) == FOLDERS


def test_pages_name_examples_and_files_that_are_there() -> None:
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert {*re.findall(r"\(examples\.md#(\w+)\)", page.read_text())} <= {*FOLDERS}, page.name
    rooms = [REPOSITORY / room for room in ("chainette", "workers", "deploy", "tests")]
    there = [str(path.relative_to(REPOSITORY)) for room in rooms for path in room.rglob("*.*")]
    architecture = (REPOSITORY / "docs/architecture.md").read_text()
    named = re.findall(r"`(?:\.\.\.)?([\w/]+\.(?:py|lua|acl))`", architecture)
    assert len(named) > 50
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name.removeprefix('/')}") for path in there)] == []


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example_has_a_readme_a_chain_and_20_to_200_rows(name: str) -> None:
    folder = EXAMPLES / name
    assert {"README.md", chain_file(name), "inputs.jsonl"} <= {path.name for path in folder.iterdir()}
    rows = [json.loads(line) for line in (folder / "inputs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 20 <= len(rows) <= 200
    assert all(isinstance(row, dict) for row in rows)
    repeated = [row for row, times in Counter(json.dumps(row, sort_keys=True) for row in rows).items() if times > 1]
    assert not repeated
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# ")
    assert f"chainette run examples/{name}/{chain_file(name)} examples/{name}/inputs.jsonl" in readme


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example_runs_and_leaves_what_its_readme_says(project: Project, name: str) -> None:
    simulate = [] if name == "04_pure_python" else ["--simulate"]
    done = project.chainette("run", *paths(name), *simulate, "-o", "out")
    expected = EXPECTED[name]
    assert done.returncode == (3 if "rejected" in expected else 0), done.stderr
    assert done.stderr == ""  # no warning of the check, no column that is ignored
    assert "accounting: balanced" in done.stdout
    for folder, rows in expected.items():
        found = project.ids("out", folder)
        assert len(found) == len(set(found))
        assert len(found) == rows if rows is not None else 0 < len(found) < 40, folder


def test_pure_python_rejects_the_two_rows_that_its_readme_names(project: Project) -> None:
    done = project.chainette("run", *paths("04_pure_python"), "-o", "out", "--quiet")
    assert done.returncode == 3
    rejected = [json.loads(line) for line in (project.path / "out/rejected/0.jsonl").read_text().splitlines()]
    assert {row["step_id"]: row["reason"] for row in rejected} == {"split_lines": "apply_error", "invoice": "apply_error"}
    steps = json.loads((project.path / "out/metadata.json").read_text())["steps"]
    assert steps["keep_valid"]["dropped"] == 4


def test_the_flattened_rows_of_the_branches_have_the_columns_that_their_readme_names(project: Project) -> None:
    assert project.chainette("run", *paths("03_translate_join_grade"), "--simulate", "-o", "out").returncode == 0
    row = json.loads((project.path / "out/flattened/0.jsonl").read_text().splitlines()[0])
    columns = {"chain_input.text", "french.translation", "german.translation", "grade.better"}
    assert columns <= row.keys()


def test_the_hard_rows_of_the_escalating_example_are_answered_by_the_engine_that_its_readme_names(project: Project) -> None:
    engines = ("--engines", str(EXAMPLES / "12_escalate/engines.yml"))
    done = project.chainette("run", *paths("12_escalate"), *engines, "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "read: 16 rows answered by small, 8 rows answered by large" in done.stdout
    rows = [json.loads(line) for line in (project.path / "out/read/0.jsonl").read_text().splitlines()]
    assert Counter(row["_engine"] for row in rows) == {"small": 16, "large": 8}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_vllm if name == "07_one_device" else ()) for name in FOLDERS])
def test_inspect_finds_nothing_wrong_with_an_example(project: Project, name: str) -> None:
    done = project.chainette("inspect", paths(name)[0])
    assert (done.returncode, done.stderr) == (0, "")


@needs_model
def test_the_extraction_example_answers_with_the_real_model(project: Project) -> None:
    done = project.chainette("run", *paths("02_extraction"), "--limit", "2", "-o", "out", "--show")
    assert done.returncode == 0, done.stderr
    assert "simulated" not in done.stdout
    products = [json.loads(line) for line in (project.path / "out/extract/0.jsonl").read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in Path(paths("02_extraction")[1]).read_text().splitlines()[:2]]
    assert len(products) == 2
    for product in products:
        text = texts[int(product["row_id"])].lower()
        assert any(word in text for word in re.findall(r"[a-z]{3,}", product["name"].lower())), (product, text)
    metadata = json.loads((project.path / "out/metadata.json").read_text())
    assert (metadata["simulated"], metadata["engines"]["smol"]["backend"]) == (False, "llama_cpp")
    assert metadata["usage"]["completion_tokens"] > 10


@needs_model
def test_the_majority_of_the_real_models_answers_is_picked(project: Project) -> None:
    done = project.chainette("run", *paths("11_self_consistency"), "--limit", "2", "-o", "out")
    assert done.returncode == 0, done.stderr
    folders = ("read_candidates", "read")
    candidates, picked = (
        [json.loads(line) for line in (project.path / f"out/{folder}/0.jsonl").read_text().splitlines()] for folder in folders
    )
    assert len(candidates) == 18 and len(picked) == 2
    for row in picked:
        votes = Counter(each["material"] for each in candidates if each["row_id"].startswith(f"{row['row_id']}~"))
        assert votes[row["material"]] == max(votes.values())


@needs_model
def test_the_accepting_example_stops_after_as_many_real_answers_as_its_readme_says(project: Project) -> None:
    done = project.chainette("run", *paths("15_accept"), "--accept", "2", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "simulated" not in done.stdout and "accepted: 2 of 2 rows" in done.stdout
    reviews = [json.loads(line)["check.review"] for line in (project.path / "out/flattened/0.jsonl").read_text().splitlines()]
    assert len(reviews) == 2 and all(len(review) >= 20 for review in reviews)


@needs_model
def test_the_two_models_are_warmed_up_and_watched_as_their_readme_says(project: Project) -> None:
    chain, inputs = paths("06_two_models")
    engines = ("--engines", str(EXAMPLES / "06_two_models/engines.yml"))
    for engine in ("reader", "judge"):
        done = project.chainette("warmup", chain, "--engine", engine, *engines)
        assert done.returncode == 0, done.stderr
        assert 'text: {"answer":' in done.stdout
    done = project.chainette("run", chain, inputs, *engines, "--limit", "1", "--stream", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "\nread, row 0\n" in done.stdout and "\njudge, row 0\n" in done.stdout
    assert done.stdout.count("\nvalidated\n") == 2


def test_one_device_goes_in_phases_also_on_a_fleet_as_its_readme_says(project: Project, database: Database) -> None:
    call = (*paths("07_one_device"), "--engines", str(EXAMPLES / "07_one_device/engines.yml"), "--chain-root", str(EXAMPLES))
    assert project.chainette("run", *call, "-o", "local").returncode == 0
    shared = ("--redis", database.url, *call[2:])
    with project.start("worker", "--engine", "writer", "--engine", "judge", *shared) as worker:
        done = project.chainette("enqueue", *call[:2], *shared, "--window", "16", "--usage", "-o", "fleet")
        worker.terminate()
        _, errors = worker.communicate()
    assert (done.returncode, worker.returncode) == (0, 0), done.stderr + errors
    assert "the run goes in phases, one engine after the other" in done.stderr
    phases = [event.get("phase", 0) for event in project.events("fleet") if event["type"] == "run_resumed"]
    assert phases == [1]
    for folder in ("reply", "grade", "flattened"):
        assert project.ids("fleet", folder) == project.ids("local", folder)
    row = json.loads((project.path / "fleet/grade/0.jsonl").read_text().splitlines()[0])
    assert row["_completion_tokens"] > 0 and row["_seconds"] >= 0.05


def test_parameters_decide_the_steps_of_a_chain_as_its_readme_says(project: Project) -> None:
    chain, inputs = paths("08_parameters")
    wrong = project.chainette("inspect", chain, "--set", "tone=cheerful")
    assert wrong.returncode == 2 and "formal" in wrong.stderr and "languages" in wrong.stderr
    words = ("--set", "tone=friendly", "--set", 'languages=["German", "French"]')
    assert project.chainette("run", chain, inputs, "--simulate", "-o", "out", *words).returncode == 0
    assert len(project.ids("out", "to_french")) == 24
    shown = project.chainette("status", "out").stdout
    assert "tone=friendly" in shown and "French" in shown


@pytest.mark.long
@pytest.mark.parametrize("name", ["09_triage", "10_revise", "11_self_consistency"])
def test_rows_take_the_same_ways_and_rounds_in_a_fleet(project: Project, name: str) -> None:
    call = ("run", *paths(name), "--simulate")
    assert project.chainette(*call, "-o", "local").returncode == 0
    done = project.chainette(*call, "--workers", "1", "-o", "fleet")
    assert done.returncode == 0, done.stderr
    local, fleet = (sorted((project.path / out / "flattened/0.jsonl").read_text().splitlines()) for out in ("local", "fleet"))
    assert fleet == local
