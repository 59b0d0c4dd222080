"""The name in ASCII letters, for terminals at least 40 columns wide."""

from __future__ import annotations

__all__ = ["banner"]

_LETTERS = r"""
    _         _          _   _
 __| |_  __ _(_)_ _  ___| |_| |_ ___
/ _| ' \/ _` | | ' \/ -_)  _|  _/ -_)
\__|_||_\__,_|_|_||_\___|\__|\__\___|
"""


def banner(version: str) -> str:
    """Four lines without a final newline; the last one ends in the version."""
    return f"{_LETTERS.strip(chr(10))}  {version}"
