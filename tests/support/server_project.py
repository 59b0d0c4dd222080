"""A project whose chain has one step on a server of the test's, say a `SlowServer`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.cli import Project
from tests.support.patience import LONG

__all__ = ["ServerProject", "row_asked"]

CHAIN = """
import os
from pydantic import BaseModel
from chainette import Chain, SamplingParams, Step, register_engine


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


seconds = float(os.environ["TIMEOUT"])
register_engine("server", "m", "openai", endpoint=os.environ["SERVER"], capacity=64, max_retries=0, request_timeout=seconds,
                api_key_env="SERVER_KEY")
sampling = SamplingParams(temperature=float(os.environ["TEMPERATURE"]))
ask = Step(id="ask", input_model=Text, output_model=Word, engine_name="server", user_prompt="{{ text }}", sampling=sampling)
chain = Chain(name="failing", batch_size=64, steps=[ask])
"""


class ServerProject(Project):
    """A folder with the chain."""

    def __init__(self, path: Path, rows: int) -> None:
        super().__init__(path, rows)
        (path / "chain.py").write_text(CHAIN)
        self.url, self.timeout, self.temperature = "", LONG, 0.0

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "SERVER": self.url,
            "SERVER_KEY": "good",
            "TIMEOUT": str(self.timeout),
            "TEMPERATURE": str(self.temperature),
        }

    def rejected(self) -> dict[str, tuple[str, str]]:
        files = (self.path / "out/rejected").glob("*.jsonl")
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return {row["row_id"]: (row["reason"], row["message"]) for row in rows}


def row_asked(text: str) -> int:
    """The row a question is about; -1 for a probe."""
    return int(text.removeprefix("row ")) if text.startswith("row ") else -1
