"""Paths and commands as commands print them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainette.cli.printing import command_line, show_path


def test_commands_are_quoted_for_a_shell() -> None:
    assert command_line("resume", Path("runs/a b")) == "chainette resume 'runs/a b'"


def test_paths_below_the_current_folder_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert show_path(tmp_path / "a/b.py") == "a/b.py"
    assert show_path("/usr/x.py") == "/usr/x.py"
