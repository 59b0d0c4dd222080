"""Makes text from rows, models, servers and Redis safe to print: it cannot control the terminal."""

from __future__ import annotations

import logging
import re

__all__ = ["SafeFormatter", "guard_logs", "visible", "visible_json", "visible_line", "visible_paragraph"]

#: Characters that move the cursor, change the direction of text, or cannot be seen. The joiners U+200C and U+200D are
#: not among them, since Persian and emoji need them.
_HIDDEN = (
    "\\x00-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b\\u200e\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\u3164\\ud800-\\udfff\\ufeff\\uffa0\\ufff9-\\ufffb\\U0001d173-\\U0001d17a\\U000e0000-\\U000e007f"
)
_IN_LINE = re.compile(f"[{_HIDDEN}]")
_IN_TEXT = re.compile(f"(?![\\n\\t])[{_HIDDEN}]")


def visible(text: str) -> str:
    r"""The text with its control characters escaped, except line breaks and tabs: ESC becomes `\x1b`."""
    return _IN_TEXT.sub(_escape, text)


def visible_line(text: str) -> str:
    r"""The text on one line: line breaks and tabs are escaped too."""
    return _IN_LINE.sub(_escape, text)


def visible_paragraph(text: str) -> str:
    """The text with its later lines indented, so that none of them looks like a separate message."""
    return visible(text).replace("\n", "\n  ")


def visible_json(text: str) -> str:
    r"""JSON that decodes to the same value, with control characters escaped, as `\u009b`."""
    return _IN_TEXT.sub(_json_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class SafeFormatter(logging.Formatter):
    """Formats a log message so that its text cannot pass for another message."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_paragraph(super().format(record))


def guard_logs() -> None:
    """Escapes the warnings that reach stderr because no logging is configured."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(SafeFormatter())
