"""Programs that tests drive and that pip does not bring; `.ci/run` installs them."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

__all__ = ["program"]


def program(name: str, package: str) -> str:
    """Its path: out of the virtual environment, else on PATH. Skips the test where there is none, but fails in CI."""
    own = Path(sysconfig.get_path("scripts"), name)
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        missing = f"{name} is not installed: {package}"
        if "CI" in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    return found
