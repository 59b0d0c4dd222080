"""docs/migration.md: the sixteen examples, and the advice for the old forms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, Project

PAGE = REPOSITORY / "docs/migration.md"


def test_every_example_has_its_edits() -> None:
    named = re.findall(r"`(\d\d)_\w+`", "".join(line for line in PAGE.read_text().splitlines() if line.startswith("| `")))
    assert [int(number) for number in named] == [*range(1, 17)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('backend="openai", api_key="x"', 'write api_key_env="NAME"'),
        ('backend="ollama_api"', "write backend 'ollama'"),
        ('backend="vllm_api"', "write backend 'vllm' for a model in this process"),
        ('engine_kwargs={"dtype": "bfloat16"}', "write its entries as keys of their own: tensor_parallel_size=..., dtype=..."),
    ],
)
def test_an_old_form_is_answered_with_the_new_one_and_its_line(tmp_path: Path, old: str, new: str) -> None:
    project = Project(tmp_path, rows=0)
    (tmp_path / "chain.py").write_text(f'from chainette import register_engine\n\nregister_engine("e", model="m", {old})\n')
    refused = project.chainette("inspect", "chain.py")
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert "chain.py:3: engine 'e'" in said and new in said
