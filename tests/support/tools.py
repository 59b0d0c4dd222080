"""Programs that tests drive and that pip does not bring; `.ci/run` installs them."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

__all__ = ["program"]


def program(name: str, package: str) -> str:
    """Its path, out of the virtual environment or on PATH. Skips the test if the program is missing, and says how to get it."""
    own = Path(sysconfig.get_path("scripts"), name)
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing ({package})")
    return found
