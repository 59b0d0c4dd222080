"""The examples beyond their READMEs, which `test_pages.py` follows: their files, without their models, and on a fleet."""

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

#: Examples whose README asks a real model or a fleet -> rows in their folders under --simulate; None: some, drawn at random.
EXPECTED: dict[str, dict[str, int | None]] = {
    "01_sentiment": {"classify": 28, "flattened": 28},
    "02_extraction": {"extract": 24, "advertise": 24, "flattened": 24},
    "06_two_models": {"read": 24, "judge": 24, "flattened": 24},
    "07_one_device": {"reply": 60, "grade": 60, "flattened": 60},
    "15_accept": {"write": None, "check": None, "flattened": 20},
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def paths(name: str) -> tuple[str, str]:
    return str(EXAMPLES / name / chain_file(name)), str(EXAMPLES / name / "inputs.jsonl")


def chain_file(name: str) -> str:
    return "chain.yml" if name == "14_yaml" else "chain.py"


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


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs_without_its_model(project: Project, name: str) -> None:
    done = project.chainette("run", *paths(name), "--simulate", "-o", "out")
    assert (done.returncode, done.stderr) == (0, "")  # no warning of the check, no column that is ignored
    assert "accounting: balanced" in done.stdout
    for folder, rows in EXPECTED[name].items():
        found = project.ids("out", folder)
        assert len(found) == len(set(found))
        assert len(found) == rows if rows is not None else 0 < len(found) < 40, folder


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


@pytest.mark.long
@pytest.mark.parametrize("name", ["09_triage", "10_revise", "11_self_consistency"])
def test_rows_take_the_same_ways_and_rounds_in_a_fleet(project: Project, name: str) -> None:
    call = ("run", *paths(name), "--simulate")
    assert project.chainette(*call, "-o", "local").returncode == 0
    done = project.chainette(*call, "--workers", "1", "-o", "fleet")
    assert done.returncode == 0, done.stderr
    local, fleet = (sorted((project.path / out / "flattened/0.jsonl").read_text().splitlines()) for out in ("local", "fleet"))
    assert fleet == local
