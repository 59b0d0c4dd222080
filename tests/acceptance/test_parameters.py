"""Chains with parameters as a user meets them, and fleets whose processes compile different chains from equal files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_enqueue import Site, stopped
from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.valkey import Database

MAKE = """
import os
from typing import Literal

from pydantic import BaseModel

from chainette import Chain, Step, apply, register_engine


class Text(BaseModel):
    text: str


class Said(BaseModel):
    said: str


def make(tone: Literal["formal", "casual"] = "formal", languages: list[str] = ["French"], *, last: str = "") -> Chain:
    register_engine("writer", "m", "simulated", latency=0.02)

    @apply
    def sign(item: Said) -> Said:
        return Said(said=f"{item.said} {tone} {languages} {MOOD}")

    prompt = f"{PROMPT} {tone}, in {languages}: {{{{ text }}}}"
    say = Step(id="say", input_model=Text, output_model=Said, engine_name="writer", user_prompt=prompt)
    after = Step(id="after", output_model=Said, engine_name="writer", user_prompt=last or "{{ said }}")
    return Chain(name="made", batch_size=4, steps=[say, sign, after])


PROMPT = os.environ.get("TONE", "Say")
MOOD = os.environ.get("MOOD", "")
"""


def made(path: Path, rows: int = 24) -> Project:
    project = Project(path, rows=rows)
    (path / "chain.py").write_text(MAKE)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return made(tmp_path)


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(made(tmp_path), database.url, stack)


CASUAL = ("--set", "tone=casual", "--set", 'languages=["German", "French"]')


def said(project: Project, directory: str) -> list[str]:
    rows = (project.path / directory / "sign" / "0.jsonl").read_text().splitlines()
    return sorted(json.loads(row)["said"] for row in rows)


def metadata(project: Project, directory: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.path / directory / "metadata.json").read_text())
    return found


def graph(project: Project, directory: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.path / directory / "graph.json").read_text())
    return found


# -- on one machine


def test_parameters_reach_the_chain_and_are_recorded_with_their_defaults(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", *CASUAL)
    assert done.returncode == 0, done.stderr
    expected = {"tone": "casual", "languages": ["German", "French"], "last": ""}
    assert metadata(project, "out")["parameters"] == graph(project, "out")["parameters"] == expected
    assert next(project.events("out"))["chain_ref"] == "chain.py:make"
    assert "casual, in ['German', 'French']" in graph(project, "out")["nodes"][0]["user_prompt"]
    assert all(line.endswith("casual ['German', 'French'] ") for line in said(project, "out"))
    shown = project.chainette("status", "out").stdout
    assert 'parameters: tone=casual, languages=["German", "French"], last=' in shown


def test_a_plain_resume_takes_the_recorded_values(project: Project) -> None:
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "whole", "--quiet", *CASUAL).returncode == 0
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet", *CASUAL)
    cut(project, "out")
    done = project.chainette("resume", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert said(project, "out") == said(project, "whole")
    assert metadata(project, "out")["parameters"] == metadata(project, "whole")["parameters"]


def cut(project: Project, directory: str) -> None:
    """Leaves the log of a run that was killed after its first unit."""
    log = project.path / directory / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    kept = next(number for number, line in enumerate(lines) if "unit_committed" in line)
    log.write_text("".join(lines[: kept + 1]))


def test_a_retry_of_rejected_rows_takes_the_recorded_values(project: Project) -> None:
    chain = project.path / "chain.py"
    chain.write_text(chain.read_text().replace("latency=0.02", "invalid_rate=0.7"))
    first = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet", *CASUAL)
    assert first.returncode == 3, first.stderr
    before = metadata(project, "out")["parameters"]
    chain.write_text(chain.read_text().replace('= "formal"', '= "casual"').replace('["French"]', '["Italian"]'))
    done = project.chainette("rejected", "out", "--retry", "--quiet")
    assert done.returncode in (0, 3), done.stderr
    assert metadata(project, "out")["parameters"] == before
    assert all("casual ['German', 'French']" in line for line in said(project, "out"))


def test_a_default_that_was_edited_meanwhile_does_not_change_a_run(project: Project) -> None:
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    cut(project, "out")
    chain = project.path / "chain.py"
    chain.write_text(chain.read_text().replace('= "formal"', '= "casual"'))
    assert project.chainette("resume", "out", "--quiet").returncode == 0
    assert metadata(project, "out")["parameters"]["tone"] == "formal"


def test_another_value_at_a_resume_is_refused_with_the_command_that_takes_it_and_recorded(project: Project) -> None:
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    refused = project.chainette("resume", "out", "--set", "last=Shorter: {{ said }}")
    assert refused.returncode == 1
    assert "prompt of after: 1 line changed" in refused.stderr
    assert "`chainette resume out --set 'last=Shorter: {{ said }}' --from after`" in refused.stderr
    assert metadata(project, "out")["parameters"]["last"] == ""
    plan = project.chainette("plan", "chain.py", "in.jsonl", "-o", "out", "--set", "last=Shorter: {{ said }}")
    assert "chainette resume out --set 'last=Shorter: {{ said }}' --select changed+" in plan.stdout, plan.stderr
    done = project.chainette("resume", "out", "--set", "last=Shorter: {{ said }}", "--from", "after", "--quiet")
    assert done.returncode == 0, done.stderr
    assert metadata(project, "out")["parameters"]["last"] == "Shorter: {{ said }}"
    assert graph(project, "out")["nodes"][2]["user_prompt"] == "Shorter: {{ said }}"
    assert project.chainette("resume", "out", "--quiet").returncode == 0
    mistyped = project.chainette("resume", "out", "--set", "lst=x")
    assert mistyped.returncode == 2 and "did you mean 'last'?" in mistyped.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "chain.py", "in.jsonl"),
        ("run", "chain.py", "in.jsonl", "--workers", "1"),
        ("enqueue", "chain.py", "in.jsonl"),
        ("inspect", "chain.py"),
        ("inspect-dag", "chain.py"),
        ("engines", "chain.py"),
        ("warmup", "chain.py"),
    ],
    ids=" ".join,
)
def test_every_command_that_takes_a_chain_names_a_mistyped_parameter_and_lists_them(
    project: Project, words: tuple[str, ...]
) -> None:
    done = project.chainette(*words, "--set", "tonne=formal")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "there is no parameter 'tonne'; did you mean 'tone'?" in done.stderr
    assert "  tone: Literal['formal', 'casual'] = \"formal\"\n  languages: list[str] = [\"French\"]\n" in done.stderr
    assert not [*project.path.glob("runs/*")]


def test_inspect_lists_the_parameters_and_their_values(project: Project) -> None:
    shown = project.chainette("inspect", "chain.py:make", *CASUAL).stdout
    rows = [line.split() for line in shown.splitlines()]
    assert ["tone", "Literal['formal',", "'casual']", "casual", '"formal"'] in rows
    assert ["languages", "list[str]", '["German",', '"French"]', '["French"]'] in rows


def test_two_values_for_one_parameter_are_a_usage_error(project: Project) -> None:
    done = project.chainette("inspect", "chain.py", "--set", "tone=formal", "--set", "tone=casual")
    assert done.returncode == 2 and "--set tone is given twice, as formal and as casual" in done.stderr


def test_a_local_fleet_gets_the_parameters_of_its_run(project: Project) -> None:
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet", *CASUAL).returncode == 0
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "fleet", "--quiet", "--workers", "1", *CASUAL)
    assert done.returncode == 0, done.stderr
    assert said(project, "fleet") == said(project, "local")


@pytest.mark.long
def test_a_chain_that_a_function_made_in_python_is_resumed_in_python(project: Project) -> None:
    code = "from chain import make; make(tone='casual').run('in.jsonl', 'out', resume=True)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], cwd=project.path, env=project.environment, check=True)
        cut(project, "out")
    refused = project.chainette("resume", "out")
    assert refused.returncode == 1 and "with the same parameters if a function makes it" in refused.stderr


# -- over a Redis


def refusal(worker: subprocess.Popen[str]) -> str:
    """The line with which a worker says that it takes nothing of a run."""
    assert worker.stderr is not None
    return next(line for line in worker.stderr if "takes nothing of run" in line)


def why(site: Site, run: str) -> str:
    return site.project.chainette("status", run, "--redis", site.url).stdout


@pytest.mark.long
def test_a_worker_takes_a_run_only_with_the_values_that_it_was_started_with(site: Site) -> None:
    site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet", *CASUAL)
    [other] = site.workers(1, "--set", "tone=formal")
    with stopped(other):
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet", *CASUAL)
        words = refusal(other)
        assert "tone is casual where it was enqueued, but formal here" in words
        assert 'start the worker with --set tone=casual --set \'languages=["German", "French"]\'' in words
        assert "tone is casual where it was enqueued" in until(lambda: why(site, site.run_id("fleet")))
        assert run.stderr is not None
        assert "tone is casual where it was enqueued" in next(line for line in run.stderr if "nothing moves" in line)
        assert site.committed("fleet") == 0
        with stopped(*site.workers(1, *CASUAL, "--set", "tone=formal", "--set", "elsewhere=1")):
            assert run.wait(LONG) == 0
    assert said(site.project, "fleet") == said(site.project, "local")


@pytest.mark.long
def test_a_worker_without_values_serves_a_run_of_the_defaults(site: Site) -> None:
    with stopped(*site.workers(1)):
        done = site.project.chainette("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--redis", site.url)
        assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("variable", "told"),
    [("TONE", "'say' has another prompt"), ("MOOD", "'sign' has other code or settings")],
    ids=["a prompt", "a function"],
)
def test_a_worker_with_another_environment_takes_nothing_and_names_the_steps(site: Site, variable: str, told: str) -> None:
    environment = site.project.environment | {variable: "Shout"}
    site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet", **{variable: "Shout"})
    [other] = site.workers(1)
    with stopped(other):
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet", env=environment)
        words = refusal(other)
        assert told in words and "environment variables" in words
        assert told in until(lambda: why(site, site.run_id("fleet")))
        assert run.stderr is not None
        assert told in next(line for line in run.stderr if "nothing moves" in line)
        assert site.committed("fleet") == 0
        with stopped(site.start("worker", "--engine", "writer", env=environment)):
            assert run.wait(LONG) == 0
    assert said(site.project, "fleet") == said(site.project, "local")


def detached(site: Site, directory: str, *words: str, **variables: str) -> str:
    """Hands a run over; its id."""
    call = ("enqueue", "chain.py", "in.jsonl", "-o", directory, "--detach", "--quiet", *words, "--redis", site.url)
    done = site.project.chainette(*call, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def served(site: Site, *words: str, **keys: Any) -> subprocess.Popen[str]:
    process = site.start(*words, **keys)
    assert process.stderr is not None
    assert "serving" in next(process.stderr)
    return process


@pytest.mark.long
@pytest.mark.parametrize("odd", ["coordinator", "sink"])
def test_a_service_with_another_environment_takes_nothing_and_names_the_steps(site: Site, odd: str) -> None:
    environment = site.project.environment | {"TONE": "Shout"}
    other = {"coordinator": "sink", "sink": "coordinator"}[odd]
    [worker] = site.workers(1)
    with stopped(worker, served(site, other)):
        with stopped(served(site, odd, env=environment)):
            run = detached(site, "fleet")
            assert "'say' has another prompt" in until(lambda: "another prompt" in (found := why(site, run)) and found)
            assert site.committed("fleet") == 0
        with stopped(served(site, odd)):
            until(lambda: f"no live run '{run}'" in site.project.chainette("status", run, "--redis", site.url).stderr)
    assert metadata(site.project, "fleet")["status"] == "finished"


@pytest.mark.long
def test_a_sink_begins_a_run_only_with_its_own_values_and_a_coordinator_takes_those_of_the_log(site: Site) -> None:
    site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet", *CASUAL)
    [worker] = site.workers(1, *CASUAL)
    with stopped(worker, served(site, "coordinator")):
        with stopped(served(site, "sink")):
            run = detached(site, "fleet", *CASUAL)
            told = "tone is casual where it was enqueued"
            assert "--set tone=casual" in until(lambda: told in (found := why(site, run)) and found)
            assert not (site.project.path / "fleet" / "events.jsonl").exists()
        with stopped(served(site, "sink", *CASUAL)):
            until(lambda: f"no live run '{run}'" in site.project.chainette("status", run, "--redis", site.url).stderr)
    assert said(site.project, "fleet") == said(site.project, "local")
