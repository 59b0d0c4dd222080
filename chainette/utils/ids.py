"""Names and run ids."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime

__all__ = ["new_run_id", "snake_case"]

_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OTHER = re.compile(r"[^A-Za-z0-9]+")


def snake_case(name: str) -> str:
    """`ExtractName`, `extract-name` and `extract name` all give `extract_name`."""
    return _OTHER.sub("_", _BOUNDARY.sub("_", name)).strip("_").lower()


def new_run_id() -> str:
    """`YYYYMMDD-HHMMSS-xxxxxxxx` in UTC; sorts by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
