"""A user's folder with a chain and an input, and the real `chainette` command in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import warm
from tests.support.patience import LONG

__all__ = ["CHAIN", "FOLDERS", "REPOSITORY", "Project", "lines", "logged", "until"]

FOLDERS = ("extract", "split", "side", "grade", "rejected", "flattened")

REPOSITORY = Path(__file__).resolve().parents[2]

#: Two steps and two branches; the judge is slow where the folder's file `latency` says so, and errs where `invalid` does.
#: While there is a file `hold`, no row gets past the first branch.
CHAIN = """
import time
from pathlib import Path

from pydantic import BaseModel

from chainette import Branch, Chain, Step, apply, register_engine


class Text(BaseModel):
    text: str


class Fact(BaseModel):
    name: str


class Grade(BaseModel):
    score: int


def setting(name):
    path = Path(__file__).with_name(name)
    return float(path.read_text()) if path.exists() else 0.0


register_engine("writer", "writer-model", "simulated")
register_engine("judge", "judge-model", "simulated", latency=setting("latency"), capacity=4, invalid_rate=setting("invalid"))


@apply
def split(item: Fact) -> list[Fact]:
    while Path(__file__).with_name("hold").exists():
        time.sleep(0.01)
    return [item, item]


print("the chain was loaded")

extract = Step(id="extract", input_model=Text, output_model=Fact, engine_name="writer", user_prompt="Name in: {{ text }}")
side = Step(id="side", output_model=Grade, engine_name="writer")
grade = Step(id="grade", output_model=Grade, engine_name="judge", user_prompt="{{ pieces }}", max_attempts=1)

chain = Chain(
    name="facts", batch_size=8, steps=[extract, [Branch("pieces_of", [split]).join("pieces"), Branch("aside", [side])], grade]
)
"""


class Project:
    """One folder; every command runs in it as a process of its own."""

    def __init__(self, path: Path, rows: int = 40, **settings: float) -> None:
        self.path = path
        (path / "chain.py").write_text(CHAIN)
        (path / "in.jsonl").write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(rows)))
        for name, value in settings.items():
            (path / name).write_text(str(value))

    def chainette(self, *words: str, stdin: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs `chainette WORDS` to its end, with these variables in its environment."""
        if not variables:  # which might matter to an import
            return warm.run(words, self.path, self.environment, stdin)
        return subprocess.run(
            self._command(words),
            cwd=self.path,
            env=self.environment | variables,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LONG,
        )

    def start(self, *words: str, **keys: Any) -> subprocess.Popen[str]:
        """Starts `chainette WORDS` with pipes."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment} | keys
        return subprocess.Popen(self._command(words), cwd=self.path, text=True, **pipes)

    def _command(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "chainette.cli.main", *words]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", "PYTHONUTF8": "1"}

    def events(self, directory: str) -> Iterator[dict[str, Any]]:
        """The log of a run directory, without a line that is being written."""
        return logged(self.path / directory)

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """A run of `CHAIN` cannot end within the block, however long its commands take: no row gets past the first branch."""
        (self.path / "hold").touch()
        try:
            yield
        finally:
            (self.path / "hold").unlink()

    def ids(self, directory: str, folder: str) -> list[str]:
        """The row ids in a folder of JSONL shards, sorted."""
        files = sorted((self.path / directory / folder).glob("*.jsonl"))
        return sorted(json.loads(line)["row_id"] for file in files for line in file.read_text().splitlines())


def logged(directory: Path) -> Iterator[dict[str, Any]]:
    """The log of a run directory, without a line that is being written."""
    for line in (directory / "events.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def until(condition: Callable[[], Any], seconds: float = LONG) -> Any:
    """The condition's value once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def lines(project: Project, directory: str) -> dict[str, list[str]]:
    shards = {folder: sorted((project.path / directory / folder).glob("*.jsonl")) for folder in FOLDERS}
    return {
        folder: sorted(line for path in paths for line in path.read_text().splitlines()) for folder, paths in shards.items()
    }
