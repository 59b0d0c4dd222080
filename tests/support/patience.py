"""How long a test waits for something that must happen: so long that a busy machine never decides a verdict."""

from __future__ import annotations

__all__ = ["LONG"]

#: Seconds.
LONG = 300.0
