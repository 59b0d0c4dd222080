"""A process loads and compiles its chain once, whichever command it runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import Project
from tests.support.patience import LONG

COUNTING = """
import sys, threading
from collections import Counter

calls = Counter(compile_chain=0, load_chain=0)

def note(frame, event, _argument):
    if event == "call" and frame.f_code.co_name in calls:
        calls[frame.f_code.co_name] += 1

threading.setprofile(note)
sys.setprofile(note)
from chainette.cli.main import app
try:
    app(sys.argv[1:])
finally:
    sys.setprofile(None)
    print("counted:", *calls.values(), file=sys.stderr)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, rows=5)


def counted(project: Project, *words: str) -> list[int]:
    """How often `chainette WORDS` compiled a chain, and loaded one."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *words],
        cwd=project.path,
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode in (0, 3), done.stderr
    (found,) = re.findall(r"^counted: (\d+) (\d+)$", done.stderr, re.MULTILINE)
    return [int(number) for number in found]


@pytest.mark.long
@pytest.mark.parametrize("way", [[], ["--workers", "1"]], ids=["here", "workers"])
def test_a_run_and_a_resume_compile_their_chain_once(project: Project, way: list[str]) -> None:
    assert counted(project, "run", "chain.py", "in.jsonl", "-o", "out", *way) == [1, 1]
    assert counted(project, "resume", "out", "--from", "grade", *way) == [1, 1]


@pytest.mark.long
def test_a_retry_compiles_its_chain_once(project: Project) -> None:
    (project.path / "invalid").write_text("0.9")
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    assert counted(project, "rejected", "out", "--retry") == [1, 1]
