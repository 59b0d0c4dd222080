"""`--reuse` through the command line, over real HTTP, and with worker processes; a server counts the questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Project
from tests.support.slow_server import SlowServer
from tests.support.tools import many

CHAIN = """
from pydantic import BaseModel

from chainette import Chain, SamplingParams, Step, apply, register_engine


class Text(BaseModel):
    text: str


class Note(BaseModel):
    note: str


register_engine("llm", "m", "openai", endpoint="URL", capacity=64)


@apply
def shorten(item: Note) -> list[Note]:
    return [Note(note=item.note[:40])]


def step(id, prompt):
    return Step(id=id, output_model=Note, engine_name="llm", user_prompt=prompt, output_format_instruction="")


chain = Chain(
    name="notes",
    input_model=Text,
    steps=[step("first", "1 {{ text }}"), step("second", "2 {{ first.note }}"), shorten, step("third", "3 {{ note }}")],
)
"""


async def echo(text: str) -> str:
    return json.dumps({"note": f"about {text}"[:60]})


@pytest.fixture
def server() -> Iterator[SlowServer]:
    with SlowServer(echo) as server:
        yield server


class Notes(Project):
    """A project whose chain asks the server."""

    def __init__(self, path: Path, server: SlowServer, rows: int) -> None:
        super().__init__(path)
        self.server = server
        self.declare(CHAIN)
        self.write("in.jsonl", map(str, range(rows)))

    def declare(self, text: str) -> None:
        (self.path / "chain.py").write_text(text.replace("URL", self.server.url))

    def write(self, name: str, texts: Any) -> None:
        (self.path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def asked(self, *words: str) -> Counter[str]:
        """Runs the command; the questions the server got meanwhile, by step."""
        self.server.asked.clear()
        done = self.chainette(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        asked = {text: times for text, times in self.server.asked.items() if text[:2] in ("1 ", "2 ", "3 ")}
        return Counter({number: sum(asked[text] for text in asked if text[0] == number) for number in "123"})


def reuse_in_every_way(notes: Notes, rows: int, added: int, *flags: str) -> None:
    """Asks for nothing, for one step, and for the rows that were inserted, by the server's own count."""
    assert notes.asked("run", "chain.py", "in.jsonl", "-o", "a", *flags) == {"1": rows, "2": rows, "3": rows}
    assert notes.asked("run", "chain.py", "in.jsonl", "-o", "b", "--reuse", "a", *flags).total() == 0
    notes.declare(CHAIN.replace("3 {{", "3 in short: {{"))
    assert notes.asked("run", "chain.py", "in.jsonl", "-o", "c", "--reuse", "b", *flags) == {"1": 0, "2": 0, "3": rows}
    notes.write("more.jsonl", (f"new {row}" if row % 2 else str(row // 2) for row in range(2 * added)))
    with (notes.path / "more.jsonl").open("a") as file:
        file.writelines((notes.path / "in.jsonl").read_text().splitlines(keepends=True)[added:])
    asked = notes.asked("run", "chain.py", "more.jsonl", "-o", "d", "--reuse", "a", "--reuse", "c", *flags)
    assert asked == {"1": added, "2": added, "3": added}
    metadata = json.loads((notes.path / "d/metadata.json").read_text())
    assert metadata["balanced"] and metadata["rows_reused"] == 4 * rows
    assert metadata["usage"]["requests"] == 3 * added


def test_an_unchanged_chain_a_changed_step_and_inserted_rows_ask_for_what_is_new(tmp_path: Path, server: SlowServer) -> None:
    notes = Notes(tmp_path, server, rows=40)
    reuse_in_every_way(notes, 40, 3)
    told = notes.chainette("status", "d").stdout
    assert (
        "reused from earlier runs: 40 of 43 rows of first, 40 of 43 rows of second, 40 of 43 rows of shorten, "
        "40 of 43 rows of third" in told
    )
    events = notes.chainette("run", "chain.py", "in.jsonl", "-o", "e", "--reuse", "c", "--json-logs").stdout
    assert '"reused":40' in events and '"keys"' not in events


@pytest.mark.long
def test_thousands_of_rows_ask_for_what_is_new(tmp_path: Path, server: SlowServer) -> None:
    rows = many(2_000, 2_000, 10_000)
    reuse_in_every_way(Notes(tmp_path, server, rows), rows, 100)


@pytest.mark.long
def test_worker_processes_take_from_earlier_runs_too(tmp_path: Path, server: SlowServer) -> None:
    reuse_in_every_way(Notes(tmp_path, server, rows=200), 200, 10, "--workers", "2")


def test_what_cannot_be_reused_is_told_with_what_to_do(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "empty").mkdir()
    for directory in ("nowhere", "empty"):
        told = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--reuse", directory)
        assert told.returncode == 1 and "there is no run in it; name the directory of an earlier run" in told.stderr
    assert not (tmp_path / "out").exists()
