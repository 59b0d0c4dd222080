"""The differences between a developer's machine and CI: programs that are there, and how much of a matrix is run."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

__all__ = ["CI", "memory_disk", "program", "some"]

T = TypeVar("T")

CI = "CI" in os.environ


def some(cases: Sequence[T], share: int = 4) -> Sequence[T]:
    """All cases in CI; elsewhere every fourth, or every `share`-th, of a matrix whose cases find the same faults."""
    return cases if CI else cases[::share]


def memory_disk(path: Path = Path("/dev/shm")) -> Path | None:
    """A folder in memory with room for the tests' files, whose fsync takes no time; None if the machine has none."""
    if not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
        return None
    found = os.statvfs(path)
    roomy = found.f_bavail * found.f_frsize >= 2 << 30
    return path if roomy and not found.f_flag & os.ST_NOEXEC else None  # tests write programs, too


def program(name: str, package: str) -> str:
    """Its path, out of the virtual environment or on PATH. Skips the test if the program is missing, and says how to get it."""
    own = Path(sysconfig.get_path("scripts"), name)
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing ({package})")
    return found
