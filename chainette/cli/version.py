"""The installed version of Chainette."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

__all__ = ["version"]


def version() -> str:
    """The installed version, for people."""
    try:
        return installed("chainette")
    except PackageNotFoundError:
        return "(not installed)"
