"""`run --workers N` in trouble: its workers killed, its Valkey killed, Ctrl-C in a terminal, engines that never open.

The whole fleet is processes: whatever happens to them, the rows are those of one process, or the run ends with a reason
and a directory that can be gone on with; and no process of it is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from chainette_workers.runtime import UNUSABLE
from chainette_workers.worker.configuration import WorkerConfig
from chainette_workers.worker.entry import WORKER_NAME

from tests.support.cli import Project, lines, until
from tests.support.patience import LONG
from tests.support.processes import words_of
from tests.support.valkey import Database

ALL = ("run", "chain.py", "in.jsonl", "-o", "fleet", "--workers", "2")

FUNCTIONS = """
from pydantic import BaseModel

from chainette import Chain, apply


class Text(BaseModel):
    text: str


class Half(BaseModel):
    half: str


@apply
def halve(item: Text) -> list[Half]:
    return [] if "7" in item.text else [Half(half=item.text[:3]), Half(half=item.text[3:])]


@apply
def shout(item: Half) -> Half:
    return Half(half=item.half.upper())


chain = Chain(name="functions", batch_size=7, steps=[halve, shout])
"""


class FleetProject(Project):
    """A project, and who works in its folder."""

    def processes(self, words: str = "") -> list[int]:
        """Live processes that work in the folder."""
        return [pid for pid, told, folder in every_process() if folder.is_relative_to(self.path) and words in told]

    def begin(self, *words: str, **keys: Any) -> subprocess.Popen[str]:
        """A fleet that has made something durable."""
        run = self.start(*ALL, *words, **keys)
        self.await_commits(run, 3)
        return run

    def await_commits(self, run: subprocess.Popen[str], number: int) -> None:
        until(lambda: self.committed() >= number or run.poll() is not None)

    def committed(self) -> int:
        log = self.path / "fleet/events.jsonl"
        return log.read_bytes().count(b'"unit_committed"') if log.exists() else 0

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events("fleet") if event["type"] == kind]

    def change(self, old: str, new: str) -> None:
        """Edits the chain file."""
        chain = self.path / "chain.py"
        text = chain.read_text()
        assert text.count(old) == 1
        chain.write_text(text.replace(old, new))

    def assert_nothing_left(self) -> None:
        until(lambda: not self.processes())
        assert not (self.path / "fleet/.fleet").exists()


def every_process() -> Iterator[tuple[int, str, Path]]:
    """(pid, command line, folder) of every live process."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = words_of(int(entry.name))
            folder = (entry / "cwd").readlink()
        except OSError:
            continue
        if words:
            yield int(entry.name), words, folder


@pytest.fixture
def project(tmp_path: Path) -> FleetProject:
    """96 rows, and the rows of one process in `local`."""
    project = FleetProject(tmp_path, rows=96, latency=0.03)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    return project


def finish(run: subprocess.Popen[str]) -> None:
    out, errors = run.communicate(timeout=LONG)
    assert run.returncode == 0, out + errors


@pytest.mark.long
def test_workers_that_are_killed_again_and_again_cost_nothing(project: FleetProject) -> None:
    (project.path / "latency").write_text("0.2")  # it must not be over before the kills
    run = project.begin()
    kills = 0
    while run.poll() is None and kills < 4:
        for pid in project.processes(WORKER_NAME)[:1]:
            with suppress(ProcessLookupError):  # the run has just ended
                os.kill(pid, signal.SIGKILL)
                kills += 1
        project.await_commits(run, project.committed() + 2)
    finish(run)
    assert kills > 2
    assert lines(project, "fleet") == lines(project, "local")
    project.assert_nothing_left()


@pytest.mark.long
def test_a_valkey_that_is_killed_is_started_again_and_costs_nothing(project: FleetProject) -> None:
    with project.kept_open():
        run = project.begin()
        [valkey] = project.processes("valkey-server")
        os.kill(valkey, signal.SIGKILL)
    project.await_commits(run, project.committed() + 2)
    for again in project.processes("valkey-server"):
        with suppress(ProcessLookupError):  # the run has just ended
            os.kill(again, signal.SIGKILL)
    finish(run)
    assert lines(project, "fleet") == lines(project, "local")
    assert {event.get("epoch", 0) for event in project.told("unit_committed")} == {0}, "work was thrown away"
    project.assert_nothing_left()


@pytest.mark.long
def test_a_valkey_that_is_killed_while_the_workers_start_costs_nothing(project: FleetProject) -> None:
    run = project.start(*ALL)
    log = project.path / "fleet/events.jsonl"
    until(lambda: log.exists() and b'"run_started"' in log.read_bytes())  # the workers began to start before
    [valkey] = project.processes("valkey-server")
    os.kill(valkey, signal.SIGKILL)
    finish(run)
    assert lines(project, "fleet") == lines(project, "local")
    project.assert_nothing_left()


@pytest.mark.long
def test_a_way_that_the_chain_as_it_is_now_cannot_go_takes_no_row_away(project: FleetProject) -> None:
    run = project.start("run", "chain.py", "in.jsonl", "-o", "fleet", "--workers", "writer=1,judge=1")
    finish(run)
    assert next(project.events("fleet"))["way"] == {"workers": "writer=1,judge=1"}
    chain = project.path / "chain.py"
    chain.write_text(chain.read_text().replace('"judge"', '"critic"'))
    durable = lines(project, "fleet")
    refused = project.chainette("resume", "fleet", "--from", "grade")
    assert refused.returncode == 1 and "--workers writer=1,judge=1: the chain has no engine 'judge'" in refused.stderr
    assert lines(project, "fleet") == durable
    done = project.chainette("resume", "fleet", "--from", "grade", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert lines(project, "fleet") == durable


@pytest.mark.long
def test_a_validator_that_interrupts_its_worker_ends_the_run_with_the_reason(project: FleetProject) -> None:
    # not before the chain is compiled, when the simulated engine tries some answers
    project.change(
        "    score: int\n",
        "    score: int\n\n    def model_post_init(self, context, made=[]):\n        made.append(1)\n"
        "        if len(made) > 60:\n            raise KeyboardInterrupt\n",
    )
    done = project.chainette(*ALL, "--quiet")
    assert done.returncode == 1 and "processing it failed: KeyboardInterrupt" in done.stderr, done.stderr
    project.assert_nothing_left()


@pytest.mark.long
def test_a_worker_that_finds_no_redis_may_find_one_later_and_one_that_may_not_enter_never_will(
    tmp_path: Path, database: Database
) -> None:
    """The exit code tells a supervisor whether to start the worker again."""
    urls = {f"unix://{tmp_path}/nobody": 1, re.sub(r"://[^@/]*@", "://:wrong@", database.url): UNUSABLE, "gopher://x": UNUSABLE}
    for url, code in urls.items():
        command = [sys.executable, "-m", "chainette_workers.worker.entry"]
        told = msgspec.json.encode(WorkerConfig(url, ["judge"], str(tmp_path))).decode() + "\n"
        done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=LONG, check=False)
        assert (done.returncode, "Redis" in done.stderr, "wrong" in done.stderr) == (code, True, False), done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_a_users_files_take_no_modules_place_in_worker_processes(tmp_path: Path) -> None:
    project = FleetProject(tmp_path, rows=50)
    (tmp_path / "chain.py").write_text(FUNCTIONS)
    for name in ("secrets", "chainette", "redis"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the wrong {name}')\n")
    # as the console script: without the current folder
    run = [sys.executable, "-P", "-m", "chainette.cli.main", "run", "chain.py", "in.jsonl", "-o", "fleet", "--workers", "1"]
    done = subprocess.run(run, cwd=tmp_path, env=project.environment, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0 and "the wrong" not in done.stderr, done.stderr
    assert project.ids("fleet", "shout")


@pytest.mark.long
def test_ctrl_c_in_a_terminal_ends_every_process_and_the_run_can_be_gone_on_with(project: FleetProject) -> None:
    (project.path / "latency").write_text("2")  # it must not be over before the signal comes
    run = project.begin(start_new_session=True)
    os.killpg(run.pid, signal.SIGINT)
    out, errors = run.communicate(timeout=LONG)
    (project.path / "latency").write_text("0.02")
    assert run.returncode == 130 and "chainette resume fleet" in out + errors
    assert "Traceback" not in out + errors
    project.assert_nothing_left()
    assert project.chainette("resume", "fleet").returncode == 0
    assert lines(project, "fleet") == lines(project, "local")


@pytest.mark.long
def test_a_chain_that_has_changed_is_refused_as_one_process_refuses_it(project: FleetProject) -> None:
    with project.kept_open():
        run = project.begin()
        run.kill()
        run.communicate()
    until(lambda: not project.processes())
    project.change("Name in: {{ text }}", "Whose name is in {{ text }}?")
    alone, fleet = (project.chainette("resume", "fleet", *words) for words in (("--local",), ()))
    assert (alone.returncode, fleet.returncode) == (1, 1)
    assert fleet.stderr == alone.stderr and "resume fleet --from extract" in alone.stderr
    done = project.chainette("resume", "fleet", "--workers", "2", "--from", "extract")
    assert done.returncode == 0, done.stderr
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "anew", "--quiet").returncode == 0
    assert lines(project, "fleet") == lines(project, "anew")
    project.assert_nothing_left()


def test_a_chain_of_functions_alone_runs_through_workers(tmp_path: Path) -> None:
    project = FleetProject(tmp_path, rows=50)
    (tmp_path / "chain.py").write_text(FUNCTIONS)
    for words in (("-o", "local"), ("-o", "fleet", "--workers", "2")):
        done = project.chainette("run", "chain.py", "in.jsonl", *words, "--quiet")
        assert done.returncode == 0, done.stderr
    assert len(project.ids("fleet", "shout")) == 2 * len([number for number in range(50) if "7" not in str(number)])
    for folder in ("halve", "shout", "flattened"):
        assert project.ids("fleet", folder) == project.ids("local", folder)
    project.assert_nothing_left()


@pytest.mark.long
def test_an_engine_that_can_never_open_ends_the_run_with_what_it_said(project: FleetProject) -> None:
    judge = '"judge-model", "simulated", latency=setting("latency"), capacity=4, invalid_rate=setting("invalid")'
    (project.path / "broken.gguf").write_bytes(b"GGUF, but not a model" * 100)  # only loading it shows that
    project.change(judge, f'"{project.path}/broken.gguf", "llama_cpp"')
    alone = project.chainette("run", "chain.py", "in.jsonl", "-o", "alone", "--quiet")
    [said] = [line for line in alone.stderr.splitlines() if "broken.gguf" in line]
    done = project.chainette(*ALL, "--quiet")
    assert done.returncode == 1
    assert said.removeprefix("error: ") in done.stderr and "ended with code 78" in done.stderr
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr and "chainette resume fleet" in done.stderr
    project.assert_nothing_left()


@pytest.mark.long
def test_too_many_rejected_rows_stop_the_run(tmp_path: Path) -> None:
    project = FleetProject(tmp_path, rows=1000, invalid=0.9, latency=0.01)
    done = project.chainette(*ALL, "--quiet", "--max-reject-rate", "0.5")
    assert done.returncode == 1
    assert "'grade'" in done.stderr and "chainette resume fleet" in done.stderr
    assert json.loads((tmp_path / "fleet/metadata.json").read_text())["status"] == "paused"
    project.assert_nothing_left()


@pytest.mark.long
def test_the_log_tells_of_engines_that_were_loaded_and_of_calls_that_did_not_get_through(project: FleetProject) -> None:
    project.change('"writer-model", "simulated"', '"writer-model", "simulated", error_rate=0.2')
    done = project.chainette(*ALL, "--quiet")
    assert done.returncode == 0, done.stderr
    assert {event["engine"] for event in project.told("engine_loaded")} == {"writer", "judge"}
    retried = project.told("unit_retried")
    assert retried and {event["node"] for event in retried} <= {"extract", "side"}
    assert json.loads((project.path / "fleet/metadata.json").read_text())["balanced"]
    project.assert_nothing_left()
