"""Exit codes besides those that errors carry: 0 done, 1 error, 2 usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["INTERRUPTED", "REJECTED", "exit_code_of"]

#: The run finished, and some of its rows were rejected; or it accepted fewer rows than were wanted.
REJECTED = 3

#: Ctrl-C, SIGTERM, or a pipe that was closed.
INTERRUPTED = 130


def exit_code_of(metadata: Mapping[str, Any]) -> int:
    """The exit code of a finished run. A run that accepted all wanted rows is done, even if it rejected others."""
    if accept := metadata.get("accept"):
        return 0 if accept["last"] else REJECTED
    return REJECTED if metadata["rows_rejected"] else 0
