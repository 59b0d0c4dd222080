"""The processes that one started, as /proc tells."""

from __future__ import annotations

from pathlib import Path


def children(parent: int, words: str = "") -> list[int]:
    """Process ids of a process's children; with words, of those whose command line has them."""
    listed = " ".join(_read(task / "children") for task in Path(f"/proc/{parent}/task").glob("*"))
    return [pid for pid in map(int, listed.split()) if words in _read(Path(f"/proc/{pid}/cmdline"))]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended since it was listed
        return ""
