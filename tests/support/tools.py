"""The differences between a developer's machine and CI: programs that are there, and how much of a matrix is run.

`make test` runs a few cases of each large matrix, CI a sample of it, and `make test LONG=all` the whole.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

__all__ = ["ALL", "CI", "crossed", "many", "memory_disk", "program", "some"]

T = TypeVar("T")

U = TypeVar("U")

CI = "CI" in os.environ

ALL = os.environ.get("LONG") == "all"


def many(quick: int, ci: int, whole: int) -> int:
    """How many seeds, programs, ... a test tries: in `make test`, in CI, and with `LONG=all`."""
    return whole if ALL else ci if CI else quick


def some(cases: Sequence[T], share: int = 4, ci: int = 2) -> Sequence[T]:
    """Every `share`-th of a matrix whose cases find the same faults; in CI every `ci`-th; all of them with `LONG=all`."""
    return cases[:: many(share, ci, 1)]


def crossed(first: Sequence[T], second: Sequence[U], share: int = 4, ci: int = 1) -> list[tuple[T, U]]:
    """Some of `first`, each with one of `second` in turn; with `LONG=all` each with all."""
    if ALL:
        return [(one, other) for one in first for other in second]
    return [(one, second[number % len(second)]) for number, one in enumerate(some(first, share, ci))]


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
