"""The command starts fast because it imports nothing that it may not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("aiohttp", "anyio", "datasets", "jinja2", "msgspec", "pyarrow", "pydantic", "rich", "xllamacpp", "yaml")

#: The command line alone: what `import chainette` costs is that package's affair.
ALONE = """
import importlib.util, sys, types
package = types.ModuleType("chainette")
package.__path__ = importlib.util.find_spec("chainette").submodule_search_locations
sys.modules = {name: module for name, module in sys.modules.items()}
sys.modules["chainette"] = package
"""


def imported(code: str) -> set[str]:
    words = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return {*subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()}


def test_the_command_line_imports_nothing_heavy() -> None:
    names = imported(f"{ALONE}import chainette.cli.main")
    assert "chainette.cli.run" in names
    assert not names & {*HEAVY}


@pytest.mark.parametrize("name", ["aiohttp", "datasets", "pyarrow", "rich", "xllamacpp", "yaml"])
def test_starting_the_command_does_not_import(name: str) -> None:
    assert name not in imported("import chainette.cli.main")
