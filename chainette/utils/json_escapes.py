"""Escapes in the strings of JSON."""

from __future__ import annotations

import re

__all__ = ["ESCAPE"]

#: A whole surrogate pair, half of one, or any other escape.
ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
