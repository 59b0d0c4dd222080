"""Bad input of every kind: messages with fault, place and next step, the right exit code, and no other row lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chainette.errors import DiskError
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import Status
from chainette.run.executor import resume
from tests.support.chains import content, everything, texts, write_inputs
from tests.support.cli import Project
from tests.support.patience import LONG
from tests.support.tools import program, some


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, rows=3)


def refused(project: Project, *words: str, code: int) -> str:
    """Runs a command that cannot work; its one message."""
    done = project.chainette(*words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return message.removeprefix("error: ")


def rejections(project: Project, directory: str) -> dict[str, dict[str, Any]]:
    """The rejections, by row."""
    lines = (project.path / directory / "rejected/0.jsonl").read_text().splitlines()
    return {row["row_id"]: row for row in map(json.loads, lines)}


# -- inputs


def test_a_missing_input_is_named_with_its_nearest_neighbour(project: Project) -> None:
    message = refused(project, "run", "chain.py", "im.jsonl", "-o", "out", code=1)
    assert message == "im.jsonl: no such file; did you mean 'in.jsonl'?"
    assert not (project.path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n \n\r\n", "\ufeff"])
def test_an_empty_input_is_a_run_of_no_rows_and_said(project: Project, content: str) -> None:
    (project.path / "empty.jsonl").write_text(content, encoding="utf-8")
    done = project.chainette("run", "chain.py", "empty.jsonl", "-o", "out", "--quiet")
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert done.stderr.splitlines()[-1] == "warning: empty.jsonl holds no records"
    metadata = json.loads((project.path / "out/metadata.json").read_text())
    assert (metadata["status"], metadata["records"], metadata["balanced"]) == ("finished", 0, True)


def test_an_empty_standard_input_is_not_called_by_the_path_of_its_copy(project: Project) -> None:
    done = project.chainette("run", "chain.py", "-", "-o", "out", "--quiet", stdin="")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "warning: the input holds no records")


def test_a_file_in_another_encoding_is_refused_with_the_command_that_converts_it(project: Project) -> None:
    (project.path / "wide.jsonl").write_text('{"text": "caf\u00e9"}\n', encoding="utf-16")
    message = refused(project, "run", "chain.py", "wide.jsonl", "-o", "out", code=1)
    assert message == (
        "wide.jsonl: looks like UTF-16LE, not UTF-8; convert it: iconv -f UTF-16LE -t UTF-8 wide.jsonl > utf8-wide.jsonl"
    )
    if shutil.which("iconv"):
        command = message.partition("convert it: ")[2]
        subprocess.run(command, shell=True, cwd=project.path, check=True)
        assert project.chainette("run", "chain.py", "utf8-wide.jsonl", "-o", "out").returncode == 0


BAD_LINES = {
    b'{"text": "caf\xe9"}': "not UTF-8: byte 13 of the record is 0xe9; convert the file to UTF-8",
    b'{"text": 5}': "text: Input should be a valid string, got 5",
    b'{"txt": "a"}': "text: Field required",
    b"[1, 2]": "expected a JSON object, but this line is of type array",
    b'{"text": ': "not JSON: it ends too early",
    b'{"text": NaN}': "NaN and Infinity are not JSON, write null",
    b'{"text": ' + b"[" * 100_000: "nested too deeply",
    b'{"text": "' + b"x" * 50_000_000 + b'"}': "50,000,013 bytes long, more than the 16,777,216 allowed; split or shorten it",
}


def test_bad_lines_are_rejected_with_what_is_wrong_and_cost_no_other(project: Project) -> None:
    with (project.path / "in.jsonl").open("wb") as file:
        for bad in BAD_LINES:
            file.write(b'{"text": "good"}\n' + bad + b"\n")
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    assert done.returncode == 3, done.stderr
    assert "columns that Text does not have; they are ignored: 'txt'" in done.stderr
    found = rejections(project, "out")
    assert sorted(found) == ["1", "11", "13", "15", "3", "5", "7", "9"]
    for number, said in enumerate(BAD_LINES.values()):
        row = found[str(2 * number + 1)]
        assert said in row["message"]
        assert (row["line"], row["step_id"], row["reason"]) == (2 * number + 2, "chain_input", "invalid_input")
        assert len(row["raw"]) <= 65536
    assert project.ids("out", "grade") == sorted(str(2 * number) for number in range(len(BAD_LINES)))
    shown = project.chainette("rejected", "out")
    assert all(words in shown.stdout for words in ("Field required", "not UTF-8", "50,000,013"))


def test_unknown_fields_follow_the_model_and_ignored_ones_are_named_once(project: Project) -> None:
    (project.path / "in.jsonl").write_text('{"text": "a", "shop": 1}\n{"text": "b", "shop": 2, "sku": 3}\n{"text": "c"}\n')
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "ignored", "--quiet")
    assert done.returncode == 0
    said = "the input has columns that Text does not have; they are ignored: "
    assert [line for line in done.stderr.splitlines() if said in line] == [f"{said}'shop'", f"{said}'sku'"]

    chain = project.path / "chain.py"
    chain.write_text(chain.read_text().replace("    text: str", '    text: str\n    model_config = {"extra": "forbid"}'))
    strict = project.chainette("run", "chain.py", "in.jsonl", "-o", "forbidden", "--quiet")
    assert strict.returncode == 3 and said not in strict.stderr
    found = rejections(project, "forbidden")
    assert found["0"]["message"] == "shop: Extra inputs are not permitted, got 1" and sorted(found) == ["0", "1"]
    assert project.ids("forbidden", "grade") == ["2"]


# -- chains


@pytest.mark.parametrize(
    "content, message",
    [
        ('import json\nsettings = json.loads("{")\n', "bad.py:2: JSONDecodeError: Expecting property name"),
        ("import nothing_like_it\n", "bad.py:1: ModuleNotFoundError: No module named 'nothing_like_it' (looked next to the"),
        ("x = (\n", "bad.py:1: syntax error: '(' was never closed"),
        ("import sys\nsys.exit(4)\n", "bad.py:2: the chain's file ended the program (SystemExit: 4)"),
        ("x = 1\n", "bad.py declares no Chain; it needs one at module level: chain = Chain(name=..., steps=[...])"),
    ],
)
def test_a_chain_file_that_raises_is_said_with_its_line(project: Project, content: str, message: str) -> None:
    (project.path / "bad.py").write_text(content)
    assert message in refused(project, "run", "bad.py", "in.jsonl", "-o", "out", code=2)
    assert not (project.path / "out").exists()


def test_two_chains_in_a_file_are_told_apart_by_name(project: Project) -> None:
    with (project.path / "chain.py").open("a") as file:
        file.write('second = Chain(name="second", steps=[extract])\n')
    message = refused(project, "run", "chain.py", "in.jsonl", "-o", "out", code=2)
    assert message == "chain.py has 2 chains; say which: chain.py:chain, chain.py:second"
    assert project.chainette("run", "chain.py:second", "in.jsonl", "-o", "out").returncode == 0
    assert project.ids("out", "extract") == ["0", "1", "2"]


# -- engines

ASKING = """
from pydantic import BaseModel
from chainette import Chain, SamplingParams, Step, register_engine


class Text(BaseModel):
    text: str


class Fact(BaseModel):
    name: str


register_engine("llm", "some-model", "openai", endpoint="{endpoint}", startup_timeout=1)
chain = Chain(
    name="asking",
    steps=[Step(id="ask", input_model=Text, output_model=Fact, engine_name="llm", user_prompt="<{{{{ text }}}}>",
                sampling=SamplingParams(max_tokens=32), max_attempts=2)],
)
"""

Answer = tuple[str, str]


@contextmanager
def serving(project: Project, answer: Callable[[str], Answer]) -> Iterator[list[str]]:
    """A chain that asks a server of ours; `answer` gives (text, finish reason) for a prompt. Gives the prompts."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"data": [{"id": "some-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(next(message["content"] for message in body["messages"] if message["role"] == "user"))
            text, reason = answer(asked[-1])
            self.reply({"choices": [{"message": {"content": text}, "finish_reason": reason}], "usage": {}})

        def reply(self, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        (project.path / "chain.py").write_text(ASKING.format(endpoint=f"http://127.0.0.1:{server.server_port}/v1"))
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


def test_an_answer_that_is_not_json_or_was_cut_rejects_its_row_and_says_what_to_do(project: Project) -> None:
    def answer(prompt: str) -> Answer:
        if "row 0" in prompt:
            return "Sure! The name is Ada.", "stop"
        if "row 1" in prompt:
            return '{"name": "Ada Lovela', "length"
        return '{"name": "Ada"}', "stop"

    with serving(project, answer) as asked:
        done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    assert done.returncode == 3, done.stderr
    assert sorted(asked) == ["<row 0>", "<row 0>", "<row 1>", "<row 2>"]
    found = rejections(project, "out")
    assert (found["0"]["reason"], found["0"]["raw"], found["0"]["attempts"]) == ("not_json", "Sure! The name is Ada.", 2)
    assert "Invalid JSON" in found["0"]["message"]
    assert (found["1"]["reason"], found["1"]["raw"]) == ("truncated", '{"name": "Ada Lovela')
    assert found["1"]["message"] == (
        "the answer was cut at max_tokens=32; raise SamplingParams.max_tokens, "
        "or bound the answer: Field(max_length=...) on the strings and lists of Fact"
    )
    assert project.ids("out", "ask") == ["2"]
    shown = project.chainette("rejected", "out", "--reason", "truncated").stdout
    assert "max_tokens=32" in shown and "Sure!" not in shown


def test_an_engine_that_never_becomes_ready_rejects_nothing_and_the_run_goes_on_once_it_is(project: Project) -> None:
    (project.path / "chain.py").write_text(ASKING.format(endpoint="http://127.0.0.1:9/v1"))
    message = refused(project, "run", "chain.py", "in.jsonl", "-o", "out", "--engine-patience", "0.8", code=1)
    assert "engine 'llm' has not answered for " in message
    assert "http://127.0.0.1:9/v1/models cannot be reached" in message
    assert message.endswith("start the server, or correct the engine's endpoint")
    status = project.chainette("status", "out").stdout
    assert "paused: engine 'llm' has not answered" in status and "go on: chainette resume out" in status
    with serving(project, lambda prompt: ('{"name": "Ada"}', "stop")):
        assert project.chainette("resume", "out", "--engine-patience", str(LONG)).returncode == 0
    assert project.ids("out", "ask") == ["0", "1", "2"]
    assert not (project.path / "out/rejected").exists()


def test_an_engine_without_its_model_is_an_error_that_says_how_to_get_it(project: Project) -> None:
    chain = (project.path / "chain.py").read_text()
    (project.path / "chain.py").write_text(chain.replace('"writer-model", "simulated"', '"nowhere.gguf"'))
    stopped = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert stopped.returncode == 1
    words = "engine 'writer': there is no model file nowhere.gguf; `model` must name a .gguf file"
    assert stopped.stderr.splitlines() == ["error: the run cannot start: engines it needs cannot open here", f"  {words}"]
    assert not (project.path / "out").exists()


# -- directories

OTHER = """
from pydantic import BaseModel
from chainette import Chain, apply


class Text(BaseModel):
    text: str


@apply
def shout(item: Text) -> Text:
    return Text(text=item.text.upper())


chain = Chain(name="other", steps=[shout])
"""


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_directory_of_another_chain_is_refused_and_left_as_it_is(project: Project) -> None:
    (project.path / "other.py").write_text(OTHER)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out").returncode == 0
    before = files_of(project.path / "out")
    message = refused(project, "run", "other.py", "in.jsonl", "-o", "out", code=1)
    assert "out already holds the run" in message and "of chain 'facts' (finished)" in message
    assert "name another directory" in message

    shutil.copy(project.path / "other.py", project.path / "chain.py")
    for words in (["resume", "out"], ["resume", "out", "--from", "shout"], ["rejected", "out", "--retry"]):
        message = refused(project, *words, code=1)
        assert "is of another chain: it has rows of 'facts' (extract, split, side, grade)" in message, words
        assert "the chain now is 'other' (shout); put the old chain back, or name another directory" in message
    assert files_of(project.path / "out") == before


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_step_that_the_chain_no_longer_has_is_named_and_its_rows_go_only_when_told(tmp_path: Path, format: str) -> None:
    project = Project(tmp_path, rows=20, invalid=0.3)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--format", format).returncode == 3
    before = files_of(tmp_path / "out")
    chain = (tmp_path / "chain.py").read_text()
    (tmp_path / "chain.py").write_text(chain.replace(', Branch("aside", [side])', ""))
    message = refused(project, "resume", "out", code=1)
    assert "the chain has changed since its rows were written" in message
    assert "side is gone (its rows would be dropped)" in message and "chainette resume out --from flattened" in message
    assert files_of(tmp_path / "out") == before

    assert project.chainette("resume", "out", "--from", "flattened").returncode == 3
    after = files_of(tmp_path / "out")
    assert not [name for name in after if name.startswith("side/")]
    name = f"extract/0.{format}"
    assert after[name] == before[name]
    metadata = json.loads(after["metadata.json"])
    assert metadata["balanced"] and metadata["status"] == "finished"
    assert list(metadata["steps"]) == ["chain_input", "extract", "split", "grade", "+pieces_of"]
    assert metadata["steps"]["grade"]["in"] == 20


def test_two_changed_steps_in_branches_side_by_side_can_both_be_recomputed(project: Project) -> None:
    chain = (project.path / "chain.py").read_text()
    aside = chain.replace('Branch("pieces_of", [split])', 'Branch("pieces_of", [split, again])').replace(
        "side = Step(", 'again = Step(id="again", output_model=Fact, engine_name="writer", user_prompt="a")\nside = Step('
    )
    (project.path / "chain.py").write_text(aside)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out").returncode == 0
    edited = aside.replace('user_prompt="a"', 'user_prompt="b"').replace('id="side",', 'id="side", user_prompt="c",')
    (project.path / "chain.py").write_text(edited)
    for words in ([], ["--from", "again"], ["--from", "side"]):
        refused = project.chainette("resume", "out", *words)
        assert refused.returncode == 1 and "--from again --from side" in refused.stderr, refused.stderr
    done = project.chainette("resume", "out", "--from", "side", "--from", "again")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "directory, said",
    [
        ("mine", "mine is not empty and holds no run (thesis.tex); name another directory"),
        ("in.jsonl", "in.jsonl is a file; name a directory for the run"),
        ("in.jsonl/out", "cannot create in.jsonl/out: Not a directory"),
    ],
)
def test_a_directory_that_cannot_be_used_is_left_alone(project: Project, directory: str, said: str) -> None:
    (project.path / "mine").mkdir()
    (project.path / "mine/thesis.tex").write_text("mine")
    assert refused(project, "run", "chain.py", "in.jsonl", "-o", directory, code=1) == said
    assert [path.name for path in (project.path / "mine").iterdir()] == ["thesis.tex"]


# -- a disk that fills


class SmallDisk:
    """A file system of its own in memory, whose size a test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, size: int) -> None:
        done = subprocess.run(
            [program("mount", "apt-get install mount"), "-t", "tmpfs", "-o", f"size={size}k", "chainette-test", self.path],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip("a file system cannot be mounted (run as root)")

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", self.path], check=True)

    def fill(self) -> None:
        """Leaves no room at all."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", self.path], capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    found = SmallDisk(tmp_path / "disk")
    found.path.mkdir()
    found.mount(100)
    yield found
    found.unmount()


@pytest.mark.long
@pytest.mark.parametrize("format", some(["jsonl", "parquet", "csv"], 3))
def test_a_disk_that_fills_stops_the_run_and_with_room_it_comes_to_the_same_rows(
    tmp_path: Path, disk: SmallDisk, format: str
) -> None:
    """The disk grows a little at a time, so that it is full at shards, at the log, at sealing and at the last files."""
    chain, inputs = everything(), write_inputs(tmp_path / "inputs.jsonl", 40, bad=(3, 20))
    options: dict[str, Any] = {"format": format, "max_rows_per_file": 15, "chain_ref": ""}
    whole = content(chain.run(inputs, tmp_path / "whole", **options))
    run, size = disk.path / "run", 40
    stops: list[str] = []
    result: RunResult | None = None
    while result is None and size < 1000:
        disk.resize(size := size + 4)
        try:
            begun = (run / "events.jsonl").exists() and (run / "events.jsonl").stat().st_size > 0
            result = resume(run, chain) if begun else chain.run(inputs, run, **options)
        except DiskError as error:
            assert "no space left for" in str(error) and "free space, then resume" in str(error)
            stops.append(str(error).partition("no space left for ")[2].partition(" (")[0].removeprefix(f"{run}/"))
    assert len(stops) > 5 and {"events.jsonl", "closing"} <= {
        stop.removeprefix(".journal/").partition("/")[0] for stop in stops
    }
    assert result is not None and content(result) == whole
    assert result.metadata["balanced"]


def test_last_files_that_cannot_be_written_leave_a_finished_run_whose_resume_writes_them(tmp_path: Path) -> None:
    chain, metadata = everything(), tmp_path / "run/metadata.json"

    class Obstacle(Hook):
        """A folder lies in a file's place, from the middle of the run on."""

        def on_event(self, event: Event) -> None:
            if isinstance(event, UnitCommitted) and metadata.is_file():
                metadata.unlink()
                metadata.mkdir()

    with pytest.raises(DiskError, match=r"cannot write .*metadata\.json"):
        chain.run(texts(12), tmp_path / "run", hooks=(Obstacle(),))
    metadata.rmdir()
    result = resume(tmp_path / "run", chain)
    assert (result.status, result.metadata["balanced"]) == (Status.FINISHED, True)
    assert json.loads(metadata.read_text())["status"] == "finished"
    assert content(result) == content(chain.run(texts(12), tmp_path / "whole"))


def test_the_real_command_says_that_the_disk_is_full_and_goes_on_when_it_is_not(tmp_path: Path, disk: SmallDisk) -> None:
    project = Project(tmp_path, rows=400)
    disk.resize(120)
    words = ("run", "chain.py", "in.jsonl", "-o", "disk/run", "--format", "parquet", "--max-rows-per-file", "90", "--quiet")
    message = refused(project, *words, code=1)
    assert message.startswith("no space left for disk/run/")
    assert message.endswith("Nothing that was logged is lost; free space, then resume")
    assert project.chainette(*words).stderr.count("chainette resume disk/run") == 1
    again = project.chainette("resume", "disk/run", "--quiet")
    assert again.returncode == 1 and "no space left for" in again.stderr
    assert again.stderr.splitlines()[-1] == "go on: chainette resume disk/run"
    assert project.chainette("status", "disk/run").returncode == 0
    disk.resize(4000)
    assert project.chainette("resume", "disk/run", "--quiet").returncode == 0
    import pyarrow.parquet as pq

    every = [str(number) for number in range(400)]
    for step in ("extract", "side", "grade", "flattened"):
        found = pq.read_table([str(path) for path in (disk.path / "run" / step).glob("*.parquet")]).column("row_id")
        assert sorted(found.to_pylist(), key=int) == every, step


def test_a_disk_that_is_full_at_the_start_leaves_nothing_that_is_in_the_way(tmp_path: Path, disk: SmallDisk) -> None:
    project = Project(tmp_path, rows=5)
    disk.fill()
    for words in (["in.jsonl"], ["-"]):
        done = project.chainette("run", "chain.py", *words, "-o", "disk/run", stdin='{"text": "a"}\n')
        assert done.returncode == 1, done.stderr
        assert "no space left for disk/run" in done.stderr and "Traceback" not in done.stderr
        assert "internal error" not in done.stderr
    (disk.path / "ballast").unlink()
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "disk/run").returncode == 0
    assert project.ids("disk/run", "grade") == ["0", "1", "2", "3", "4"]
