"""The regular expressions of pydantic (Rust's) as Python's: Unicode classes, POSIX classes, code points, named groups.

A class becomes some of its characters, so a match of the result matches the original too, if the class is not negated.
"""

from __future__ import annotations

import re

__all__ = ["as_python"]

#: Unicode property or POSIX class, in lower case -> some of its characters, as the inside of a class.
_LETTERS, _UPPER, _LOWER = "a-zA-Zà-öø-ÿ", "A-ZÀ-Ö", "a-zà-öø-ÿ"
_PUNCTUATION = r"!#%&*,./:;?@_()-"
_CLASSES = {
    **dict.fromkeys(("l", "letter", "alphabetic"), _LETTERS),
    **dict.fromkeys(("lu", "uppercase_letter", "uppercase"), _UPPER),
    **dict.fromkeys(("ll", "lowercase_letter", "lowercase"), _LOWER),
    **dict.fromkeys(("n", "nd", "number", "decimal_number", "digit", "xdigit"), "0-9"),
    **dict.fromkeys(("p", "punctuation", "punct", "graph", "print"), _PUNCTUATION.replace("-", r"\-")),
    **dict.fromkeys(("pd", "dash_punctuation"), r"\-"),
    **dict.fromkeys(("s", "symbol"), "$+<=>"),
    **dict.fromkeys(("sc", "currency_symbol"), "$€£"),
    **dict.fromkeys(("sm", "math_symbol"), "+<=>"),
    **dict.fromkeys(("z", "zs", "separator", "space_separator", "white_space", "space", "blank"), " "),
    **dict.fromkeys(("m", "mn", "mark", "nonspacing_mark"), "\u0300-\u030f"),
    **dict.fromkeys(("alnum", "word"), "a-zA-Z0-9"),
    **dict.fromkeys(("any", "ascii", "assigned"), "a-zA-Z0-9"),
    **dict.fromkeys(("so", "emoji", "emoji_presentation", "extended_pictographic"), "\U0001f600-\U0001f640"),
    **dict.fromkeys(("lo", "han"), "一-乿"),
    "alpha": "a-zA-Z",
    "upper": "A-Z",
    "lower": "a-z",
    "latin": "a-zA-Z",
    "greek": "β-ω",
    "cyrillic": "ж-я",
    "hebrew": "א-ת",
    "arabic": "ب-غ",
    "devanagari": "क-ह",
    "hiragana": "か-と",
    "katakana": "カ-ト",
    "hangul": "가-갿",
    "thai": "ก-ฮ",
}

_TOKEN = re.compile(
    r"\\(?P<negated>[pP])(?:\{(?P<property>[^}]*)\}|(?P<letter>\w))"
    r"|\[:(?P<posix>\^?\w+):\]"
    r"|\\(?P<width>[xuU])\{(?P<code>[0-9A-Fa-f]+)\}"
    r"|(?P<end>\\z)"
    r"|(?P<group>\(\?<)(?=\w)"
    r"|(?P<set>&&|--|~~)"
    r"|(?P<other>\\.|.)",
    re.DOTALL,
)


def as_python(pattern: str) -> str:
    """The pattern in Python's dialect.

    Raises:
        NotImplementedError: it uses a class, or an operation on classes, that has no counterpart here.
    """
    parts: list[str] = []
    inside = False
    for token in _TOKEN.finditer(pattern):
        text = token["other"]
        if text is None:
            parts.append(_translated(token, inside))
            continue
        if inside and text == "[" and parts[-1] not in ("[", "[^"):
            raise NotImplementedError("a class inside a class")
        inside = (inside or text == "[") and not (inside and text == "]" and parts[-1] not in ("[", "[^"))
        parts.append(text)
    return "".join(parts)


def _translated(token: re.Match[str], inside: bool) -> str:
    if token["end"]:
        return r"\Z"
    if token["group"]:
        return "(?P<"
    if token["code"]:
        return re.escape(chr(int(token["code"], 16)))
    if token["set"]:
        if inside:
            raise NotImplementedError("an operation on classes")
        return token["set"]
    return _class(token, inside)


def _class(token: re.Match[str], inside: bool) -> str:
    name = token["property"] or token["letter"] or token["posix"]
    negated = (token["negated"] == "P") != name.startswith("^")
    found = _CLASSES.get(name.lstrip("^").rpartition("=")[2].lower().replace(" ", "_"))
    if found is None:
        raise NotImplementedError(f"the class {name}")
    if negated:
        found = _outside(found)
    return found if inside else f"[{found}]"


def _outside(found: str) -> str:
    """Plain characters outside a class."""
    plain = "abcxyzABCXYZ0123456789 !?+"
    left = [character for character in plain if not re.match(f"[{found}]", character)]
    return "".join(left)
