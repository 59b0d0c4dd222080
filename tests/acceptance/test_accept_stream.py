"""`--accept` from the command line: over a stream that never ends, killed and resumed, and over an input that is too short."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cli import Project, until

#: Two thirds of the numbers get through, each as up to four rows; every 50th is rejected.
CHAIN = """
from pydantic import BaseModel

from chainette import Chain, apply


class Number(BaseModel):
    v: int


@apply
def keep(number: Number) -> Number | None:
    if number.v % 50 == 49:
        raise ValueError("no")
    return number if number.v % 3 else None


@apply
def expand(number: Number) -> list[Number]:
    return [number] * (number.v % 5)


chain = Chain(name="numbers", batch_size=4, accept=20, steps=[keep, expand])
"""

#: Prints numbers until nobody reads them any more.
STREAM = "import itertools\nfor v in itertools.count(): print('{\"v\": %d}' % v, flush=True)"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    (tmp_path / "chain.py").write_text(CHAIN)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"v": v}) + "\n" for v in range(60)))
    return project


@contextmanager
def over_the_stream(project: Project, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`chainette WORDS` with the stream as its standard input."""
    with subprocess.Popen([sys.executable, "-c", STREAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as stream:
        assert stream.stdout is not None
        with project.start(*words, stdin=stream.stdout) as started:
            stream.stdout.close()  # so that it ends when the command does
            yield started


def test_an_endless_stream_is_read_until_enough_rows_are_accepted_also_after_kill_9(project: Project) -> None:
    log = project.path / "out/events.jsonl"
    with over_the_stream(project, "run", "chain.py", "-", "-o", "out", "--accept", "500") as run:
        until(lambda: log.exists() and log.read_bytes().count(b'"records":4') > 5)
        run.kill()
    with over_the_stream(project, "resume", "out", "--input", "-") as run:
        said, errors = run.communicate()
    assert run.returncode == 0, errors  # though rows were rejected
    assert "accepted: 500 of 500 rows, the last is row" in said
    records = (project.path / "out/inputs/0").read_text().splitlines()
    assert [json.loads(line) for line in records[:1000]] == [{"v": v} for v in range(len(records[:1000]))]
    (project.path / "whole.jsonl").write_text("\n".join(records[:2000]) + "\n")
    done = project.chainette("run", "chain.py", "whole.jsonl", "-o", "whole", "--accept", "500", "--quiet")
    assert done.returncode == 0, done.stderr
    rows, expected = ((project.path / name / "flattened/0.jsonl").read_text() for name in ("out", "whole"))
    assert rows == expected and rows.count("\n") == 500


def test_an_input_with_too_few_rows_is_said_to_be_so_and_ends_with_3(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "few", "--accept", "1000", "--quiet")
    assert done.returncode == 3
    assert "accepted 76 of 1,000 rows: the input has no more records" in done.stderr
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert done.returncode == 0, done.stderr
    shown = project.chainette("status", "out").stdout
    assert "accepted: 20 of 20 rows, the last is row 14~3" in shown
    assert "stops after 20 accepted rows" in project.chainette("inspect", "chain.py").stdout
    assert "accept: 20" in project.chainette("inspect", "chain.py", "--as-yaml").stdout
    (project.path / "chain.yml").write_text("name: n\naccept: 20\nsteps: [{apply: 'chain:keep'}, {apply: 'chain:expand'}]\n")
    assert project.chainette("run", "chain.yml", "in.jsonl", "-o", "yaml", "--quiet").returncode == 0
    assert project.ids("yaml", "flattened") == project.ids("out", "flattened")
    many = [json.loads(line) for line in project.chainette("rows", "out", "--step", "keep", "--json").stdout.splitlines()]
    every = project.chainette("rows", "out", "--step", "keep", "--json", "--surplus").stdout.splitlines()
    assert max(int(row["row_id"]) for row in many) == 14 and len(every) >= len(many)
    lower = project.chainette("resume", "out", "--accept", "10")
    assert lower.returncode == 1 and "not lowered to 10" in lower.stderr
    more = project.chainette("resume", "out", "--accept", "25")
    assert more.returncode == 0 and "accepted: 25 of 25 rows" in more.stdout, more.stderr
    assert len(project.ids("out", "flattened")) == 25
