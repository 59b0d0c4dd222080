"""The command starts fast because it imports nothing that it may not need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"aiohttp", "anyio", "datasets", "jinja2", "msgspec", "pyarrow", "pydantic", "rich", "xllamacpp", "yaml"}


def test_starting_the_command_imports_nothing_heavy() -> None:
    words = [sys.executable, "-c", "import chainette.cli.main, sys; print(*sys.modules)"]
    names = {*subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()}
    assert "chainette.cli.commands.run" in names
    assert not names & HEAVY
