"""Records: texts that are longer than the terminal is wide."""

from __future__ import annotations

import io

from rich.cells import cell_len
from rich.console import Console

from chainette.cli.screen.record import field_lines

ROW = {"row_id": "7", "text": "the harbour and the fog " * 4 + "\nsecond\x1b[2J 日本語" + "x" * 50, "n": None}


def lines(*, terminal: bool) -> list[str]:
    return [*field_lines(ROW, Console(file=io.StringIO(), width=40, force_terminal=terminal))]


def test_a_long_text_is_broken_between_words_and_stays_behind_its_name() -> None:
    shown = lines(terminal=True)
    assert max(map(cell_len, shown)) <= 40
    assert shown[:2] == ["  row_id  7", "  text    the harbour and the fog the"]
    assert all(line.startswith(" " * 10) for line in shown[2:-1]) and shown[-1] == "  n"
    joined = "".join(line.strip() for line in shown[2:-1])
    assert "\\x1b[2J" in joined and "日本語" in joined and joined.count("x") == 50 + 1, "escaped, and nothing is cut off"


def test_a_file_gets_each_line_of_a_text_whole() -> None:
    assert lines(terminal=False)[1] == "  text    " + ("the harbour and the fog " * 4).rstrip()
