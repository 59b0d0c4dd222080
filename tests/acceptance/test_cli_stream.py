"""`chainette run --stream` as a process: tokens appear while they come, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
from pathlib import Path

from tests.support.cli import Project
from tests.support.patience import LONG

FLAGS = ("run", "chain.py", "in.jsonl", "-o", "out", "--limit", "1", "--stream")


def test_every_answer_is_printed_with_what_became_of_it(tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = project.chainette(*FLAGS)
    assert (done.returncode, done.stderr) == (0, "")
    [fact] = [json.loads(line) for line in (tmp_path / "out/extract/0.jsonl").read_text().splitlines()]
    [grade] = [json.loads(line) for line in (tmp_path / "out/grade/0.jsonl").read_text().splitlines()]
    blocks = done.stdout.split("\n\n")
    assert any(block.endswith(f'extract, row 0\n{{"name":"{fact["name"]}"}}\nvalidated') for block in blocks), done.stdout
    assert f'grade, row 0\n{{"score":{grade["score"]}}}\nvalidated' in blocks
    assert f'split, row 0~1\n{{"name":"{fact["name"]}"}}' in blocks
    assert "pieces, row 0\njoined" in blocks
    assert "accounting: balanced" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_rejected_answer_says_why_and_exits_with_3(tmp_path: Path) -> None:
    project = Project(tmp_path, invalid=1.0)
    done = project.chainette(*FLAGS)
    assert done.returncode == 3
    assert "\nrejected (" in done.stdout.partition("grade, row 0\n")[2]


def test_ctrl_c_in_the_middle_of_an_answer_ends_the_run_resumably(tmp_path: Path) -> None:
    project = Project(tmp_path, latency=600)
    with project.start(*FLAGS) as process:
        assert process.stdout is not None and process.stderr is not None
        seen = ""
        while "grade, row 0" not in seen:
            seen += process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(LONG) == 130
    assert said.endswith("interrupted\ngo on: chainette resume out\n")
    assert "Traceback" not in said


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with project.kept_open():  # it cannot have written everything before its reader goes away
        process = project.start(*FLAGS)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "the chain was loaded\n"
        process.stdout.close()
    with process:
        said = process.stderr.read()
        assert process.wait(LONG) == 130
    assert said == "go on: chainette resume out\n"


def test_a_terminal_shows_the_tokens_one_by_one(tmp_path: Path) -> None:
    project = Project(tmp_path, latency=4.5)
    ours, theirs = pty.openpty()
    with project.start(*FLAGS, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        reads = _reads(ours)
        assert process.wait(LONG) == 0
    os.close(ours)
    whole = "".join(reads)
    assert "\x1b[1mgrade, row 0\x1b[0m\r\n" in whole
    assert "\x1b[32mvalidated\x1b[0m" in whole
    [grade] = [json.loads(line) for line in (tmp_path / "out/grade/0.jsonl").read_text().splitlines()]
    answer = f'{{"score":{grade["score"]}}}'
    assert answer in whole
    assert not any(answer in read for read in reads)  # pieces of four characters, 1.5 s apart


def _reads(terminal: int) -> list[str]:
    reads: list[str] = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            return reads
        if not part:
            return reads
        reads.append(part.decode(errors="replace"))


def test_a_fleet_does_not_stream(tmp_path: Path) -> None:
    done = Project(tmp_path).chainette("enqueue", "chain.py", "in.jsonl", "--limit", "1", "--stream")
    assert done.returncode == 2
    assert "--stream sees requests of this process only" in done.stderr
