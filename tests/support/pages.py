"""Pages of docs/ as tests: files are written, commands are run, and their output is compared."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.cli import REPOSITORY
from tests.support.patience import LONG

__all__ = ["follow"]

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def follow(page: Path, folder: Path) -> int:
    """Does a page as its reader would, in a folder; returns the number of commands.

    A block with a title becomes a file. In a `console` block each line after `$ ` is run, and the lines below are its output
    (standard error first), in which `...` stands for any text.
    """
    commands = 0
    for language, title, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            (folder / title).write_text(text, encoding="utf-8")
        elif language == "console":
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                found = _run(command, folder)
                assert doctest.OutputChecker().check_output(expected, found, _OPTIONS), (
                    f"{page.name}: $ {command}\nexpected:\n{expected}\nfound:\n{found}"
                )
                commands += 1
    return commands


def _run(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": "120", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode in (0, 3), f"$ {command}\n{done.stderr}"
    return done.stderr + done.stdout
