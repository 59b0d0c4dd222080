"""Names, the folders they are written to, and run ids."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import unicodedata
from datetime import UTC, datetime

__all__ = ["folder_key", "has_path", "name_problem", "new_run_id", "snake_case"]

#: Windows opens a device under these names, in any folder.
_DEVICE = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")
#: File systems allow 255 bytes; a longer name would also push paths over Windows' limit of 260 characters.
_LONGEST = 100


def snake_case(name: str) -> str:
    """`ExtractName`, `extract-name` and `extract name` all give `extract_name`; letters of every script are kept.

    The result can name a folder on every file system: it is never empty, has no dot, is not a Windows device (`con` gives
    `con_`), and takes at most 100 bytes (a longer name is cut and ends in a digest of the whole).
    """
    text = unicodedata.normalize("NFC", name)
    spaced = "".join(("_" if _starts_word(text, index) else "") + _kept(letter) for index, letter in enumerate(text))
    words = unicodedata.normalize("NFC", "_".join(filter(None, spaced.split("_"))).lower())
    bounded = words if len(words.encode()) <= _LONGEST else _cut(words)
    return f"{bounded}_" if _DEVICE.fullmatch(bounded) else bounded or "unnamed"


def folder_key(folder: str) -> str:
    """A key that is equal for two names if some file system (macOS, Windows) takes them for the same folder."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folder).casefold())


def has_path(folder: str) -> bool:
    """Whether this process can use the name in a path. With an ASCII locale and without UTF-8 mode, some names fail."""
    try:
        os.fsencode(folder)
    except UnicodeEncodeError:
        return False
    return True


def name_problem(name: object) -> str:
    """The reason why a name of a chain or an engine cannot be used; "" if it can.

    Only people read these names, and queues, labels and commands escape them, so almost any text is allowed.
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
    """The character, if it may occur inside an identifier (letters, digits, accents, vowel signs), or else `_`."""
    return letter if f"a{letter}".isidentifier() else "_"


def _cut(words: str) -> str:
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    return f"{words.encode()[: _LONGEST - 9].decode(errors='ignore').rstrip('_')}_{digest}"


def new_run_id() -> str:
    """`YYYYMMDD-HHMMSS-xxxxxxxx` in UTC; sorts by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
