"""The chains that are run under faults, each with an input and with the rows it must come to."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.cli import REPOSITORY
from tests.support.models import SMOL

__all__ = ["Project", "drawn", "environment"]

HEAD = """
from pydantic import BaseModel

from chainette import Branch, Chain, Step, apply, register_engine


class Text(BaseModel):
    text: str


class Fact(BaseModel):
    name: str


class Grade(BaseModel):
    score: int
"""

#: Functions that expand, drop and raise, in joined and unjoined branches; every row takes a moment.
FUNCTIONS = """
import time


@apply
def words(item: Text) -> list[Fact]:
    time.sleep({pause})
    return [Fact(name=word) for word in item.text.split()]


@apply
def no_seven(item: Fact) -> Fact:
    if "7" in item.name:
        raise ValueError("no seven, please")
    return item


@apply
def long_only(item: Fact) -> Fact | None:
    return item if len(item.name) > 2 else None


@apply
async def grade(item: Fact) -> Grade:
    time.sleep({pause})
    return Grade(score=len(item.name))


fork = [Branch("clean", [no_seven]).join("clean"), Branch("side", [long_only])]
chain = Chain(name="functions", batch_size=8, steps=[words, fork, grade])
"""

#: Two simulated engines, one of which errs now and then, with a fork between them.
STEPS = """
register_engine("writer", "writer-model", "simulated", latency={pause}, capacity=8)
register_engine("judge", "judge-model", "simulated", latency={pause}, capacity=8, invalid_rate=0.1)


@apply
def split(item: Fact) -> list[Fact]:
    return [item, item]


extract = Step(id="extract", input_model=Text, output_model=Fact, engine_name="writer", user_prompt="Name in: {{{{ text }}}}")
side = Step(id="side", output_model=Grade, engine_name="writer")
grade = Step(id="grade", output_model=Grade, engine_name="judge", user_prompt="{{{{ pieces }}}}", max_attempts=2)

chain = Chain(
    name="steps", batch_size=8, steps=[extract, [Branch("pieces_of", [split]).join("pieces"), Branch("aside", [side])], grade]
)
"""

#: The small real model, asked twice for each row.
MODEL = """
register_engine("writer", "{model}", "llama_cpp", capacity=2)
extract = Step(id="extract", input_model=Text, output_model=Grade, engine_name="writer", user_prompt="Score {{{{ text }}}}")
grade = Step(id="grade", output_model=Grade, engine_name="writer", user_prompt="Better than {{{{ extract.score }}}}")
chain = Chain(name="model", batch_size=4, steps=[extract, grade])
"""


@dataclass(frozen=True)
class Project:
    """A chain file, its input, and how both are run."""

    name: str
    chain: str
    rows: int
    engines: tuple[str, ...]
    format: str
    #: Whether every run gives the same answers.
    repeats: bool = True

    @property
    def worker(self) -> list[str]:
        return ["worker", *(word for name in self.engines for word in ("--engine", name))]

    @property
    def flags(self) -> list[str]:
        return ["--format", self.format, "--max-rows-per-file", "100"]

    def write(self, folder: Path) -> None:
        (folder / "chain.py").write_text(HEAD + self.chain)
        lines = [json.dumps({"text": f"row number {number}"}) for number in range(self.rows)]
        lines[self.rows // 3] = "{bad"
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")

    def run_undisturbed(self, folder: Path) -> Path:
        """The directory of a local run that nothing happens to."""
        out = folder / "undisturbed"
        self.write(folder)
        command = [
            sys.executable,
            "-m",
            "chainette.cli.main",
            "run",
            "chain.py",
            "in.jsonl",
            "-o",
            str(out),
            *self.flags,
            "--quiet",
        ]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
        assert done.returncode in (0, 3), done.stderr
        return out


def environment() -> dict[str, str]:
    """Of a process that runs `chainette`, wherever it is."""
    return os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'workers'}"}


def drawn(rng: random.Random, *, model: bool) -> Project:
    shards = rng.choice(["jsonl", "jsonl", "parquet", "csv"])
    if model:
        return Project("model", MODEL.format(model=SMOL), 40, ("writer",), shards, repeats=False)
    if rng.random() < 0.4:
        return Project("functions", FUNCTIONS.format(pause=0.01), 900, ("python",), shards)
    return Project("steps", STEPS.format(pause=0.3), 1200, ("writer", "judge"), shards)
