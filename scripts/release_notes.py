"""Prints the section of CHANGELOG.md for a tag: `python scripts/release_notes.py v0.1.0`.

Fails unless the tag is the version of pyproject.toml and its section has a date and says something.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str, changelog: str, version: str) -> str:
    """The notes of a release.

    Raises:
        ValueError: there is nothing to release under this tag.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, and pyproject.toml has version {version}, whose tag is v{version}")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for section in sections:
        head, _, body = section.partition("\n")
        if re.fullmatch(rf"\[?{re.escape(version)}\]? - \d{{4}}-\d\d-\d\d", head.strip()) and body.strip():
            return body.strip() + "\n"
    found = ", ".join(section.partition("\n")[0].strip() for section in sections)
    raise ValueError(f"CHANGELOG.md has no section `## {version} - YYYY-MM-DD` with a text; it has {found}")


if __name__ == "__main__":
    try:
        sys.stdout.write(
            notes(
                sys.argv[1],
                (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
                tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
            )
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
