"""A run directory of somebody else can be looked at; its chain does not run unasked, and nothing outside it is written."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Project
from tests.support.tools import some

EVIL = 'from pathlib import Path\nPath(__file__).with_name("ran").touch()\n'
LOOKS = (
    ("status", "out"),
    ("rows", "out"),
    ("why", "out", "0"),
    ("rejected", "out"),
    ("report", "out"),
    ("rejected", "out", "--json"),
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A run of which some rows are rejected, and an evil chain elsewhere."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/chain.py").write_text(EVIL)
    project = Project(tmp_path / "here", rows=16, invalid=0.5)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 3
    return project


def rewrite(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes lines of a log as somebody would who knows its checksum."""
    lines = []
    for line in (directory / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        del event["crc"]
        change(event)
        body = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
        lines.append(b'%b,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body)))
    (directory / "events.jsonl").write_bytes(b"".join(lines))


def names_evil(event: dict[str, Any]) -> None:
    if event["type"] == "run_created":
        event["chain_root"] = str(Path(event["chain_root"]).parent / "elsewhere")


def ran(project: Project) -> bool:
    return (project.path.parent / "elsewhere/ran").exists()


@pytest.mark.parametrize("words", [("resume", "out"), ("rejected", "out", "--retry")])
def test_a_changed_log_runs_no_chain_unasked_and_does_with_yes(project: Project, words: tuple[str, ...]) -> None:
    rewrite(project.path / "out", names_evil)
    for look in LOOKS:
        assert project.chainette(*look).returncode == 0
    refused = project.chainette(*words)
    assert refused.returncode == 1 and not ran(project)
    assert "you did not begin it on this machine, or its log was changed" in refused.stderr
    assert "elsewhere/chain.py:chain, which is code; if you trust it, add --yes" in refused.stderr
    project.chainette(*words, "--yes")
    assert ran(project)


@pytest.mark.long
def test_a_directory_that_came_from_another_machine_asks_unless_its_chain_is_in_the_current_folder(project: Project) -> None:
    other = {"XDG_STATE_HOME": str(project.path / "state")}
    assert project.chainette("resume", "out", "--quiet", **other).returncode == 3
    project.path = project.path.parent / "elsewhere"
    refused = project.chainette("resume", "../here/out", "--quiet", **other)
    assert refused.returncode == 1 and "if you trust it, add --yes" in refused.stderr
    assert project.chainette("resume", "../here/out", "--quiet").returncode == 3  # began here


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_log_of_another_user_asks(project: Project) -> None:
    os.chown(project.path / "out/events.jsonl", 12345, -1)
    refused = project.chainette("resume", "out")
    assert refused.returncode == 1
    assert "its log belongs to user 12345, but you are user 0" in refused.stderr
    assert project.chainette("resume", "out", "--yes", "--quiet").returncode == 3


def test_a_copied_and_a_moved_directory_of_ones_own_goes_on_as_it_is(project: Project) -> None:
    shutil.copytree(project.path / "out", project.path / "copy")
    (project.path / "out").rename(project.path.parent / "elsewhere/moved")
    for place in ("copy", "../elsewhere/moved"):
        assert project.chainette("resume", place, "--quiet").returncode == 3


LINKS = (".schema", "extract", "extract/0.jsonl", "metadata.json", ".versions", "events.jsonl", "rejected")


@pytest.mark.parametrize("link", some(LINKS, 3))
def test_nothing_is_written_through_a_link_of_a_run_directory(project: Project, link: str) -> None:
    precious = project.path.parent / "precious"
    path = project.path / "out" / link
    if link.endswith((".jsonl", ".json")) or path.exists():
        path.rename(precious)
    else:
        precious.mkdir()
    path.symlink_to(precious)
    before = contents(precious)
    for look in (*LOOKS, ("rebuild", "out"), ("resume", "out"), ("rejected", "out", "--retry"), ("rollback", "out")):
        done = project.chainette(*look)
        assert "Traceback" not in done.stderr
    refused = project.chainette("resume", "out", "--from", "grade")
    assert refused.returncode == 1 and "link" in refused.stderr
    assert dict(contents(precious)) == dict(before)


def contents(path: Path) -> list[tuple[str, bytes]]:
    files: Iterator[Path] = iter([path]) if path.is_file() else path.rglob("*")
    return [(str(file), file.read_bytes()) for file in files if file.is_file()]


@pytest.mark.parametrize("name", some(["../../precious", "/tmp/precious", "..", ".journal", "a/b", "a\u0000b"], 6))
def test_a_log_that_names_a_folder_outside_is_damaged(project: Project, name: str) -> None:
    def escape(event: dict[str, Any]) -> None:
        for node in event.get("graph", {}).get("nodes", []):
            node["folder"] = name
        if "off" in event:
            event["off"] = {f"{name}/0": span for span in event["off"].values()}

    rewrite(project.path / "out", escape)
    for words in (*LOOKS, ("rebuild", "out"), ("resume", "out", "--yes")):
        done = project.chainette(*words)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "damaged" in done.stderr or "no run" in done.stderr, done.stderr
    assert not (project.path.parent / "precious").exists()
