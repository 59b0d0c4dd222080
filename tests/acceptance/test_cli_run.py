"""`chainette run` as a process: its two outputs, its exit codes, and the files it leaves."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.support.cli import Project, until
from tests.support.patience import LONG


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_clean_run_exits_with_0_and_says_what_it_did(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "the chain was loaded"
    assert re.fullmatch(r"run \S+: chain facts started, 40 rows, into out", lines[1])
    assert "accounting: balanced" in lines
    assert lines[-1] == "directory: out"
    assert next(line.split()[:3] for line in lines if line.startswith("grade")) == ["grade", "40", "40"]
    assert project.ids("out", "grade") == sorted(map(str, range(40)))


def test_several_inputs_are_read_one_after_another_and_a_bad_line_is_named_with_its_file(project: Project) -> None:
    (project.path / "more.jsonl").write_text('{"text": "more"}\n{bad\n')
    done = project.chainette("run", "chain.py", "in.jsonl", "more.jsonl", "-o", "out")
    assert done.returncode == 3, done.stderr
    assert project.ids("out", "grade") == sorted(map(str, range(41)))
    assert "more.jsonl:2: not JSON" in project.chainette("rejected", "out").stdout


def test_rejected_rows_exit_with_3_and_point_to_them(project: Project) -> None:
    with (project.path / "in.jsonl").open("a") as file:
        file.write("{bad\n")
    done = project.chainette("run", "chain.py:chain", "in.jsonl", "-o", "out")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "rejected rows: chainette rejected out"
    assert project.ids("out", "rejected") == ["40"]


def test_a_quiet_run_prints_the_directory_alone_and_chooses_it(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "--quiet", "--stream-writer")
    assert done.returncode == 0
    directory = done.stdout.removesuffix("\n")
    assert re.fullmatch(r"runs/\d{8}-\d{6}-[0-9a-f]{8}", directory)
    assert project.ids(directory, "grade") == sorted(map(str, range(40)))
    assert done.stderr == "the chain was loaded\n"


def test_json_logs_are_the_events_and_nothing_else(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--json-logs")
    assert done.returncode == 0
    logged = list(project.events("out"))
    for event in logged:
        del event["crc"]
        event.pop("keys", None)
    assert [json.loads(line) for line in done.stdout.splitlines()] == logged
    assert logged[0]["type"] == "run_created"
    assert logged[-1]["type"] == "run_finished"


def test_flags_reach_the_run(project: Project) -> None:
    (project.path / "engines.yml").write_text("engines:\n  judge: {model: other-model, backend: simulated}\n")
    flags = (
        "--limit 5 --batch-size 2 --seed 7 --format csv --max-rows-per-file 2 --no-flattened --key text --engines engines.yml"
    )
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", *flags.split())
    assert done.returncode == 0, done.stderr
    settings = json.loads((project.path / "out/metadata.json").read_text())["settings"]
    expected = {
        "limit": 5,
        "batch_size": 2,
        "seed": 7,
        "format": "csv",
        "max_rows_per_file": 2,
        "flattened": False,
        "key": "text",
    }
    assert {name: settings[name] for name in expected} == expected
    assert sorted(path.name for path in (project.path / "out/extract").iterdir()) == ["0.csv", "1.csv", "2.csv"]
    assert "_key" in (project.path / "out/extract/0.csv").read_text().splitlines()[0]
    assert "other-model" in (project.path / "out/graph.json").read_text()


@pytest.mark.parametrize("text", ["text\na\nb\n", "text,n\na,1\nb,2\n", '[{"text": "a"},\n {"text": "b"}]'])
def test_a_csv_of_one_column_is_read_from_standard_input(project: Project, text: str) -> None:
    done = project.chainette("run", "chain.py", "-", "-o", "out", "--quiet", stdin=text)
    assert done.returncode == 0, done.stderr
    assert project.ids("out", "grade") == ["0", "1"]
    plain = project.chainette("run", "chain.py", "-", "-o", "plain", "--quiet", stdin="a\nb\n")
    assert plain.returncode == 1 and "none of its columns is a field of Text ('text'): it has 'a'" in plain.stderr


def test_standard_input_is_an_input(project: Project) -> None:
    done = project.chainette("run", "chain.py", "-", "-o", "out", stdin='{"text": "a"}\n{"text": "b"}\n')
    assert done.returncode == 0, done.stderr
    assert project.ids("out", "grade") == ["0", "1"]


def test_show_prints_prompts_beside_answers(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--limit", "2", "--show")
    assert done.returncode == 0
    for number in range(2):
        assert f"Name in: row {number}" in done.stdout
    answers = (json.loads(line)["name"] for line in (project.path / "out/extract/0.jsonl").read_text().splitlines())
    assert all(answer in done.stdout for answer in answers)


def test_debug_tells_events_prompts_and_answers_on_stderr(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--limit", "1", "--debug", "--json-logs")
    assert done.returncode == 0
    assert "Name in: row 0" in done.stderr
    assert "unit_committed node=extract" in done.stderr
    assert all(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["chain.py", "gone.jsonl"], 1, "gone.jsonl"),
        (["gone.py", "in.jsonl"], 2, "gone.py"),
        (["chain.py:nothing", "in.jsonl"], 2, "nothing"),
        (["chain.py", "in.jsonl", "--engines", "gone.yml"], 2, "gone.yml"),
        (["chain.py"], 2, "INPUTS"),
        (["chain.py", "in.jsonl", "--limit", "0"], 2, "--limit"),
        (["chain.py", "in.jsonl", "--format", "xml"], 2, "xml"),
        (["chain.py", "in.jsonl", "--quiet", "--json-logs"], 2, "exclude each other"),
        (["chain.py", "in.jsonl", "--workers", "0"], 2, "--workers"),
        (["chain.py", "in.jsonl", "--stream"], 2, "--limit 1"),
        (["chain.py", "in.jsonl", "--stream", "--limit", "101"], 2, "at most 100"),
        (["chain.py", "in.jsonl", "--stream", "--limit", "1", "--quiet"], 2, "--quiet and --stream exclude"),
        (["chain.py", "in.jsonl", "--stream", "--limit", "1", "--json-logs"], 2, "--json-logs and --stream exclude"),
        (["chain.py", "in.jsonl", "--stream", "--limit", "1", "--workers", "2"], 2, "--stream sees requests of this process"),
    ],
)
def test_what_cannot_work_is_said_in_one_message_and_leaves_nothing(
    project: Project, words: list[str], code: int, said: str
) -> None:
    done = project.chainette("run", *words, "-o", "out")
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert not (project.path / "out").exists()


def test_a_key_that_the_input_does_not_have_is_said_with_those_it_has(project: Project) -> None:
    (project.path / "in.csv").write_text("text,other\nrow 0,1\n")
    done = project.chainette("run", "chain.py", "in.csv", "--key", "nothing")
    assert done.returncode == 1
    assert "--key" in done.stderr and "text, other" in done.stderr


def test_a_directory_with_a_run_is_refused_with_the_command_to_go_on(project: Project) -> None:
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out").returncode == 0
    before = (project.path / "out/events.jsonl").read_bytes()
    again = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert again.returncode == 1
    assert "chainette resume out" in again.stderr
    assert (project.path / "out/events.jsonl").read_bytes() == before


def test_too_many_rejects_pause_the_run_and_say_how_to_go_on(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=400, invalid=1.0)
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--max-reject-rate", "0.5")
    assert done.returncode == 1
    assert "--max-reject-rate" in done.stderr
    assert "go on: chainette resume out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_the_run_quietly_and_resumably(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with project.kept_open():  # it cannot have written everything before its reader goes away
        process = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--json-logs")
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["type"] == "run_created"
        process.stdout.close()
    with process:
        said = process.stderr.read()
        assert process.wait(LONG) == 130
    assert "Traceback" not in said and "rror" not in said
    assert said.endswith("go on: chainette resume out\n")
    assert project.chainette("resume", "out").returncode == 0
    assert project.ids("out", "grade") == sorted(map(str, range(40)))


def test_the_live_view_fits_an_80_by_24_terminal_and_leaves_the_summary(tmp_path: Path) -> None:
    project = Project(tmp_path, latency=0.05)
    screen = _in_terminal(project, "run", "chain.py", "in.jsonl", "-o", "out")
    head, _, bars = screen.partition("\x1b[?25l")
    assert "extract  Text → Fact  [writer]" in head
    assert all(len(line) <= 80 for line in _plain(screen).splitlines())
    assert "40 rows done" in bars
    assert re.search(r"grade +━+─* +\d+/40", _plain(bars))
    assert "\x1b[?25h" in bars  # the cursor is back
    assert "accounting: balanced" in bars.rpartition("\x1b[?25h")[2]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def _in_terminal(project: Project, *words: str) -> str:
    """Everything a command writes to a terminal of 80 x 24."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in project.environment.items() if name not in ("COLUMNS", "LINES")}
    with project.start(*words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm-256color"}):
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(ours)
    return b"".join(parts).decode()


#: A `chainette` for which every Ctrl-C after the first is the same one, however busy the machine is.
PATIENT = f"""
from chainette.cli.main import main
from chainette.run import blocking
blocking._ECHO = {LONG}
main()
"""


@pytest.mark.parametrize("gap", [0, 0.002, 0.01])
def test_ctrl_c_that_a_wrapper_passes_on_once_more_is_one(tmp_path: Path, gap: float) -> None:
    project = Project(tmp_path, rows=200, latency=600)  # it cannot end before the signals come
    words = [sys.executable, "-c", PATIENT, "run", "chain.py", "in.jsonl", "-o", "out", "--json-logs"]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=project.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        until(lambda: '"unit_committed"' in process.stdout.readline())  # type: ignore[union-attr]
        process.send_signal(signal.SIGINT)
        time.sleep(gap)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LONG)
    assert process.returncode == 130 and "Traceback" not in said
    assert said.endswith("interrupted\ngo on: chainette resume out\n")
