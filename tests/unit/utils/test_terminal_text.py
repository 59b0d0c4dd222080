"""Text that would control a terminal is shown escaped, and JSON keeps its value."""

from __future__ import annotations

import json
import logging
import unicodedata

import pytest

from chainette.utils.terminal_text import SafeFormatter, visible, visible_json, visible_line, visible_paragraph

HIDDEN = (
    *map(chr, (*range(9), *range(11, 32), *range(127, 160))),
    *"\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2060\u2066\u2069\u206f\u3164\ufeff",
    *"\ufff9\U000e0041\ud800\udfff",
)


@pytest.mark.parametrize("letter", HIDDEN, ids=lambda letter: f"U+{ord(letter):04X}")
def test_a_hidden_character_is_escaped_everywhere_and_json_keeps_its_value(letter: str) -> None:
    text = f"a{letter}b\n\tc"
    shown = visible(text)
    assert letter not in shown and shown.startswith("a\\") and shown.endswith("b\n\tc") and shown.isascii()
    assert visible(shown) == shown
    written = json.dumps([text], ensure_ascii=False)
    assert letter not in visible_json(written) and json.loads(visible_json(written)) == [text]


def test_every_control_and_direction_mark_of_unicode_is_hidden() -> None:
    visible_marks = {*map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2))}  # signs of Arabic and Syriac
    visible_marks |= {"\u200c", "\u200d"}  # joiners
    for code in range(0x10000):
        letter = chr(code)
        if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp", "Cs") and letter not in visible_marks | {"\n", "\t"}:
            assert letter not in visible(letter), hex(code)


def test_plain_text_of_every_script_stays() -> None:
    text = "naïve Ελληνικά 漢字 עברית العربية می\u200cخواهم 👩\u200d🔬 ❤️ \\x1b [red]bold[/red] | <b>"
    assert visible(text) == visible_line(text) == visible_json(text) == text


def test_later_lines_cannot_pass_for_messages() -> None:
    assert visible_line("a\nb\tc") == "a\\nb\\tc"
    assert visible_paragraph("a\nrun 7: done") == "a\n  run 7: done"
    record = logging.LogRecord("chainette", logging.WARNING, "", 0, "server said %s", ("\x1b[2J\nrun 7: done",), None)
    assert SafeFormatter("%(message)s").format(record) == "server said \\x1b[2J\n  run 7: done"
