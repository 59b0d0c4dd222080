"""A function may close streams or empty `sys.path` in its process; a local run still ends with all of its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAIN = """
import os, sys
from pydantic import BaseModel
from chainette import Chain, apply

class Item(BaseModel):
    text: str

{kind} f(item: Item) -> Item:
    if item.text == "1":
        {deed}
    return item

chain = Chain(name="c", batch_size=2, steps=[apply(f)])
"""

DEEDS = ["sys.stdout.close()", "sys.stderr.close()", "sys.stdout = None", "os.close(1)", "os.close(2)", "sys.path.clear()"]


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("deed", DEEDS)
def test_a_function_that_closes_a_stream_or_empties_the_path_costs_nothing(tmp_path: Path, kind: str, deed: str) -> None:
    (tmp_path / "chain.py").write_text(CHAIN.format(kind=kind, deed=deed))
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{number}"}}\n' for number in range(6)))
    command = [sys.executable, "-m", "chainette.cli.main", "run", "chain.py", "in.jsonl", "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/metadata.json").read_text())["status"] == "finished"
    rows = [json.loads(line)["text"] for line in (tmp_path / "out/f/0.jsonl").read_text().splitlines()]
    assert sorted(rows) == list("012345")
