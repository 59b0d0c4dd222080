"""Exit codes beside those that errors carry: 0 done, 1 error, 2 usage (DESIGN 8)."""

from __future__ import annotations

__all__ = ["INTERRUPTED", "REJECTED"]

#: The run finished, and some of its rows were rejected.
REJECTED = 3

#: Ctrl-C, SIGTERM, or a pipe that was closed.
INTERRUPTED = 130
