"""`run --workers N`: the whole fleet on this machine, and nothing of it left when the run ends, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from chainette_workers.worker.entry import WORKER_NAME

from tests.support.cli import Project, lines, until
from tests.support.patience import LONG
from tests.support.processes import children, words_of


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path, rows=64, latency=0.02)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    return project


def processes_of(project: Project) -> dict[int, str]:
    """Live processes that work in the project's folder, with their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(project.path):
                found[int(entry.name)] = words_of(int(entry.name))
        except OSError:
            continue
    return {pid: words for pid, words in found.items() if words}


def committed(project: Project) -> int:
    log = project.path / "fleet/events.jsonl"
    return log.read_bytes().count(b"unit_committed") if log.exists() else 0


def start(project: Project, *words: str) -> subprocess.Popen[str]:
    call = words or ("run", "chain.py", "in.jsonl", "-o", "fleet", "--workers", "writer=1,judge=2")
    run = project.start(*call)
    until(lambda: committed(project) > 3)
    return run


@pytest.mark.long
def test_a_fleet_gives_the_rows_of_one_process_also_when_workers_are_killed(project: Project) -> None:
    with project.kept_open():
        run = start(project)
        until(lambda: len(children(run.pid, WORKER_NAME)) == 3)
        workers = children(run.pid, WORKER_NAME)
        assert all("run chain.py in.jsonl" in words_of(pid) for pid in workers)  # forked by the command
        for pid in workers[:2]:
            os.kill(pid, signal.SIGKILL)
    out, errors = run.communicate(timeout=LONG)
    assert run.returncode == 0, errors
    assert "accounting: balanced" in out
    assert lines(project, "fleet") == lines(project, "local")
    assert until(lambda: not processes_of(project))
    assert not (project.path / "fleet/.fleet").exists()


def test_a_fleet_tells_what_the_answers_of_each_row_took(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=24, latency=0.02, invalid=0.5)
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "fleet", "--workers", "1", "--usage")
    assert done.returncode == 3, done.stderr
    rows = [json.loads(line) for folder in ("grade", "rejected") for line in lines(project, "fleet")[folder]]
    assert len(rows) == 24 and {row["_seconds"] for row in rows} == {0.02}
    counted = json.loads((tmp_path / "fleet/metadata.json").read_text())["steps"]["grade"]["usage"]
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(row[f"_{name}"] for row in rows) == counted[name]


def test_a_row_goes_on_to_a_worker_of_the_next_engine(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=48, latency=0.02, invalid=0.5)
    chain = tmp_path / "chain.py"
    chain.write_text(chain.read_text().replace('engine_name="judge"', 'engine_name="judge", escalate=["writer"]', 1))
    for name, flags in (("local", ()), ("fleet", ("--workers", "1"))):
        done = project.chainette("run", "chain.py", "in.jsonl", "-o", name, *flags, "--quiet")
        assert done.returncode in (0, 3), done.stderr
    assert lines(project, "fleet") == lines(project, "local")
    answered = Counter(json.loads(line)["_engine"] for line in lines(project, "fleet")["grade"])
    assert answered["judge"] and answered["writer"] and answered.total() == len(lines(project, "fleet")["grade"])


DEADLY = """
    @model_validator(mode="after")
    def end(self):
        deadly = Path(__file__).with_name("deadly")
        if deadly.exists() and self.name == deadly.read_text():
            os._exit(9)
        return self
"""


@pytest.mark.long
def test_a_row_whose_answer_ends_its_worker_is_found_and_rejected_and_costs_no_other(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=2)
    text = (tmp_path / "chain.py").read_text().replace("    name: str\n", "    name: str\n" + DEADLY)
    (tmp_path / "chain.py").write_text(f"import os\nfrom pydantic import model_validator\n{text}")
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    rows = {row["row_id"]: row for row in map(json.loads, lines(project, "local")["extract"])}
    (tmp_path / "deadly").write_text(rows["1"]["name"])
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "fleet", "--workers", "1")
    assert done.returncode == 3, done.stderr
    [poison] = map(json.loads, lines(project, "fleet")["rejected"])
    assert (poison["row_id"], poison["step_id"], poison["reason"]) == ("1", "extract", "poison")
    assert "unit_split" in [event["type"] for event in project.events("fleet")]
    left = [line for line in lines(project, "local")["extract"] if json.loads(line)["row_id"] != "1"]
    assert lines(project, "fleet")["extract"] == left
    assert until(lambda: not processes_of(project))


@pytest.mark.long
def test_a_fleet_whose_head_is_killed_leaves_no_process_and_is_gone_on_with(project: Project) -> None:
    with project.kept_open():
        run = start(project)
        run.kill()
        run.communicate()
    assert until(lambda: not processes_of(project)), processes_of(project)
    before = [event["type"] for event in project.events("fleet")].count("worker_joined")
    done = project.chainette("resume", "fleet")  # as it was started
    assert done.returncode == 0, done.stderr
    assert lines(project, "fleet") == lines(project, "local")
    assert [event["type"] for event in project.events("fleet")].count("worker_joined") > before


@pytest.mark.long
def test_ctrl_c_ends_the_fleet_and_one_process_can_go_on(project: Project) -> None:
    (project.path / "latency").write_text("2")  # it must not be over before the signal comes
    run = start(project)
    run.send_signal(signal.SIGINT)
    out, errors = run.communicate(timeout=LONG)
    (project.path / "latency").write_text("0.02")
    assert run.returncode == 130 and "chainette resume fleet" in out + errors
    assert until(lambda: not processes_of(project))
    assert project.chainette("resume", "fleet", "--local").returncode == 0
    assert lines(project, "fleet") == lines(project, "local")


@pytest.mark.long
def test_nothing_of_a_fleet_that_was_killed_stays_when_one_process_goes_on(project: Project) -> None:
    with project.kept_open():
        run = start(project)
        run.kill()
        run.communicate()
    assert until(lambda: not processes_of(project)) and (project.path / "fleet/.fleet").exists()
    assert project.chainette("resume", "fleet", "--local").returncode == 0
    assert lines(project, "fleet") == lines(project, "local")
    assert not (project.path / "fleet/.fleet").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "expected a number"),
        (["--workers", "nobody=1"], "no engine 'nobody'; it has writer, judge"),
        (["--workers", "1", "--show"], "--show sees requests of this process only"),
        (["--workers", "1", "--redis", "redis://127.0.0.1:1"], "--workers starts a Redis of its own"),
    ],
)
def test_flags_that_cannot_work_are_said(project: Project, words: list[str], said: str) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "fleet", *words)
    assert done.returncode in (1, 2) and said in " ".join(done.stderr.split())


@pytest.mark.long
def test_an_input_that_changes_while_a_fleet_reads_it_stops_the_run_and_the_old_file_ends_it(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=160, latency=0.02)
    path = tmp_path / "in.jsonl"
    old = path.read_bytes()
    with project.kept_open():
        run = start(project, "run", "chain.py", "in.jsonl", "-o", "fleet", "--workers", "1", "--window", "16", "--quiet")
        path.write_bytes(old.replace(b"row", b"new"))
    _, errors = run.communicate(timeout=LONG)
    assert run.returncode == 1 and "in.jsonl changed while the run was reading it" in errors, errors
    assert "go on: chainette resume fleet" in errors
    refused = project.chainette("resume", "fleet", "--quiet")
    assert refused.returncode == 1 and "in.jsonl has changed since the run in fleet began" in refused.stderr
    path.write_bytes(old)
    done = project.chainette("resume", "fleet", "--quiet")
    assert done.returncode == 0, done.stderr
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    assert lines(project, "fleet") == lines(project, "local")


@pytest.mark.long
def test_a_fleet_accepts_the_rows_that_one_process_accepts_also_when_all_are_killed(project: Project) -> None:
    call = ("run", "chain.py", "in.jsonl", "--accept", "40", "--batch-size", "4")
    assert project.chainette(*call, "-o", "one", "--quiet").returncode == 0
    run = start(project, *call, "-o", "fleet", "--workers", "writer=1,judge=2")
    run.kill()
    run.communicate(timeout=LONG)
    assert until(lambda: not processes_of(project))
    done = project.chainette("resume", "fleet", "--workers", "writer=1,judge=2")
    assert done.returncode == 0 and "accepted: 40 of 40 rows" in done.stdout, done.stderr
    one, other = ((project.path / name / "flattened/0.jsonl").read_text() for name in ("one", "fleet"))
    assert one == other and one.count("\n") == 40
