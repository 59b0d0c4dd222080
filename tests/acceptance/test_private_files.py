"""Every file a run leaves, or has while it lives, can be read by its owner only, unless the user says otherwise."""

from __future__ import annotations

import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.cli import Project, until


@pytest.fixture(autouse=True)
def usual_umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(root: Path, more: int = 0) -> list[str]:
    """Files, folders, sockets and pipes below a folder with permissions of others (but for `more`), and the folder itself."""
    modes = dict[Path, int]()
    for path in (root, *root.rglob("*")):
        with suppress(FileNotFoundError):  # it went since it was listed
            if not path.is_symlink():
                modes[path] = stat.S_IMODE(path.lstat().st_mode)
    return [f"{path.relative_to(root)} {mode:o}" for path, mode in modes.items() if mode & 0o077 & ~more]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_every_file_of_a_run_is_private(tmp_path: Path, format: str) -> None:
    project = Project(tmp_path, invalid=0.2)
    rows = (tmp_path / "in.jsonl").read_text()
    done = project.chainette(
        "run", "chain.py", "-", "-o", "runs/out", "--format", format, "--max-rows-per-file", "7", stdin=rows
    )
    assert done.returncode == 3, done.stderr
    assert project.chainette("rejected", "runs/out", "--retry", "--quiet").returncode in (0, 3)
    assert project.chainette("report", "runs/out").returncode == 0
    assert project.chainette("rebuild", "runs/out").returncode == 0
    names = {path.name for path in (tmp_path / "runs/out").iterdir()}
    kinds = {"events.jsonl", "graph.json", "metadata.json", "README.md", "report.html", ".versions", "inputs", "extract"}
    assert kinds | ({".schema"} if format != "parquet" else set()) <= names
    assert open_to_others(tmp_path / "runs") == []


@pytest.mark.long
def test_a_run_that_lives_has_private_files(tmp_path: Path) -> None:
    project = Project(tmp_path, latency=30)  # it is stopped long before its end
    words = ("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "1", "--format", "csv", "--quiet")
    with TemporaryDirectory() as short:  # a socket's path may have 100 bytes, and `tmp_path` is nearly as long
        temporary = Path(short)
        with project.start(*words, env=project.environment | {"TMPDIR": short}) as running:
            try:
                journal, fleet = tmp_path / "out/.journal/extract", tmp_path / "out/.fleet"
                until(lambda: journal.exists() and [*fleet.rglob("worker-*.log")])
                assert open_to_others(tmp_path / "out") == []
                assert [*temporary.rglob("socket")] and open_to_others(temporary) == []
            finally:
                running.send_signal(signal.SIGINT)
                running.communicate()
    assert running.returncode == 130


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_the_group_may_read_if_the_user_says_so(tmp_path: Path, way: str) -> None:
    project = Project(tmp_path)
    run = ("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    done = project.chainette("--umask", "027", *run) if way == "flag" else project.chainette(*run, CHAINETTE_UMASK="027")
    assert done.returncode == 0, done.stderr
    assert open_to_others(tmp_path / "out", 0o050) == []
    assert stat.S_IMODE((tmp_path / "out/events.jsonl").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "out/extract").stat().st_mode) == 0o750


def test_a_wrong_umask_is_one_sentence(tmp_path: Path) -> None:
    done = Project(tmp_path).chainette("--umask", "private", "run", "chain.py", "in.jsonl", "-o", "out")
    assert done.returncode == 1
    assert done.stderr == "error: CHAINETTE_UMASK is 'private'; it must be an octal number such as 077 or 027\n"
