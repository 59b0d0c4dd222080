"""Finds prompts that were probably meant to contain a value of the row but do not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from chainette.utils import sandbox

__all__ = ["prompt_warnings", "tag_hint"]

#: `{text}`, `{ text }` and `{text.field}`, but not `{{ text }}`, `{% ... %}`, `{# ... #}` or `{"text": 1}`.
_SINGLE = re.compile(r"(?<![{$])\{\s*([^\W\d]\w*)((?:\.\w+)*)\s*\}(?!\})")
_FILE = re.compile(r"[\w./\\-]+\.(?:txt|md|j2|jinja2?|prompt|tmpl)")


def prompt_warnings(prompts: Mapping[str, str], names: Collection[str], *, constant_is_fine: bool) -> list[str]:
    """Warnings of likely mistakes in the prompts of a step; `names` are the names that a template may use.

    `constant_is_fine` says that the row has no value that a prompt could mention.
    """
    found = [said for label, source in prompts.items() for said in _single_braces(label, source, names)]
    if found or constant_is_fine:
        return found
    if any(sandbox.names_of(sandbox.parse(source)) & {*names} for source in prompts.values()):
        return []
    example = "{{ " + min(names, default="input", key=len) + " }}"
    hint = f"write a value like {example}"
    for label, source in prompts.items():
        if _FILE.fullmatch(source):
            hint = f"write {label}=Path({source!r}) for the text of a file"
    return [f"the prompts mention no value of their row, so every row asks the same question; {hint}"]


def _single_braces(label: str, source: str, names: Collection[str]) -> list[str]:
    """One warning for all names of a prompt in single braces, as in an f-string or `str.format`."""
    if "{% raw" in source or "{%- raw" in source:
        return []
    found = {match[0]: match[1] + match[2] for match in _SINGLE.finditer(source) if match[1] in names}
    if not found:
        return []
    wrong, right = ", ".join(found), ", ".join("{{ " + path + " }}" for path in found.values())
    return [f"{label}: {wrong} is sent literally; write {right} for the value (in an f-string, with four braces)"]


def tag_hint(message: str, names: Collection[str]) -> str:
    """A suggestion if an unknown tag is the name of a value: `{% text %}`."""
    tag = re.match(r"Encountered unknown tag '(\w+)'", message)
    return f"; write {{{{ {tag[1]} }}}} for the value" if tag and tag[1] in names else ""
