"""`--csv-safe`: no cell of a CSV file is a formula, and Chainette reads the exact text."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.support.cli import Project

CHAIN = """
from pydantic import BaseModel

from chainette import Chain, apply


class Text(BaseModel):
    text: str
    number: int = -5


@apply
def echo(item: Text) -> Text:
    if "bad" in item.text:
        raise ValueError(f"={item.text}")
    return item


@apply
def again(item: Text) -> Text:
    return item


chain = Chain(name="echo", batch_size=2, steps=[echo, again])
"""
TEXTS = ['=HYPERLINK("http://127.0.0.1")', "+1", "-1", "@A1", "\t=1", "plain", "'=kept", "'plain", " =1", "=bad"]


def test_a_csv_safe_run_has_no_formula_and_its_rows_come_back_exactly(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "chain.py").write_text(CHAIN)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run = ("run", "chain.py", "in.jsonl", "-o", "out", "--format", "csv", "--max-rows-per-file", "3", "--csv-safe")
    assert project.chainette(*run, "--limit", "4").returncode == 0
    assert project.chainette("resume", "out", "--limit", "10").returncode == 3
    assert project.chainette("resume", "out", "--from", "again").returncode == 3
    cells = []
    for file in (tmp_path / "out").glob("*/*.csv"):
        with file.open(newline="") as opened:
            cells += [cell for row in csv.reader(opened) for cell in row]
    assert [cell for cell in cells if cell.lstrip(" '")[:1] in ("=", "+", "@", "\t") and cell[0] != "'"] == []
    assert "-5" in cells and "'-1" in cells and "'plain" in cells
    shown = project.chainette("rows", "out", "--step", "again", "--limit", "20").stdout
    assert "'+1" not in shown and "+1" in shown
    [rejected] = map(json.loads, project.chainette("rejected", "out", "--json").stdout.splitlines())
    assert rejected["message"].startswith("ValueError: =") or "=bad" in rejected["message"]
    assert "--csv-safe" in (tmp_path / "out/README.md").read_text()
