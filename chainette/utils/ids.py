"""Names, the folders they are written to, and run ids."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import unicodedata
from datetime import UTC, datetime

__all__ = ["folder_key", "has_path", "name_problem", "new_run_id", "snake_case"]

#: Windows opens a device under these names, whatever the folder.
_DEVICE = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")
#: File systems allow 255 bytes; a longer name would also push paths over Windows' limit of 260 characters.
_LONGEST = 100


def snake_case(name: str) -> str:
    """`ExtractName`, `extract-name` and `extract name` all give `extract_name`; letters of every script are kept.

    The result can name a folder on every file system: it is never empty, has no dot, is no Windows device (`con` gives
    `con_`), and takes at most 100 bytes (a longer name is cut and ends in a digest of the whole).
    """
    text = unicodedata.normalize("NFC", name)
    spaced = "".join(("_" if _starts_word(text, index) else "") + _kept(letter) for index, letter in enumerate(text))
    words = unicodedata.normalize("NFC", "_".join(filter(None, spaced.split("_"))).lower())
    bounded = words if len(words.encode()) <= _LONGEST else _cut(words)
    return f"{bounded}_" if _DEVICE.fullmatch(bounded) else bounded or "unnamed"


def folder_key(folder: str) -> str:
    """Equal for folders that some file system (macOS, Windows) takes for the same one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folder).casefold())


def has_path(folder: str) -> bool:
    """Whether this process can use the name in paths: not with an ASCII locale and UTF-8 mode switched off."""
    try:
        os.fsencode(folder)
    except UnicodeEncodeError:
        return False
    return True


def name_problem(name: object) -> str:
    """Why a name that only people read (of a chain, an engine) cannot be used; "" when it can.

    Almost any text will do, since queues, labels and commands escape it.
    """
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text; put it in quotes"
    if not name.strip():
        return "is empty"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        return "contains control characters"
    return ""


def _starts_word(text: str, index: int) -> bool:
    if index == 0 or not text[index].isupper():
        return False
    before, after = text[index - 1], text[index + 1 : index + 2]
    return before.islower() or before.isdigit() or (before.isupper() and after.islower())


def _kept(letter: str) -> str:
    """The character if an identifier can go on with it (letters, digits, accents, vowel signs), else `_`."""
    return letter if f"a{letter}".isidentifier() else "_"


def _cut(words: str) -> str:
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    return f"{words.encode()[: _LONGEST - 9].decode(errors='ignore').rstrip('_')}_{digest}"


def new_run_id() -> str:
    """`YYYYMMDD-HHMMSS-xxxxxxxx` in UTC; sorts by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
