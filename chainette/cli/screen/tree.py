"""A chain drawn as a tree, in the characters that stdout can show."""

from __future__ import annotations

import sys

from chainette.core.chain_drawing import render_ascii, render_unicode
from chainette.core.plan import Plan

__all__ = ["draw"]


def draw(plan: Plan, max_branches: int | None = None, *, icons: bool = True) -> str:
    """The plan as a tree; ASCII where stdout cannot say more."""
    unicode = icons and "utf" in (sys.stdout.encoding or "").lower()
    return (render_unicode if unicode else render_ascii)(plan, max_branches)
