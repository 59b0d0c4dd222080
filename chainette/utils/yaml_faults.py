"""Describes the fault of a YAML file without quoting it: its lines may hold secrets."""

from __future__ import annotations

import re

import yaml

__all__ = ["yaml_fault"]


def yaml_fault(error: yaml.YAMLError) -> tuple[int, str]:
    """(line, words) of an error of pyyaml; quoted text of more than three letters is left out."""
    mark = getattr(error, "problem_mark", None)
    words = re.sub(r"'(?!<)[^']{4,}'?", "(...)", getattr(error, "problem", None) or "it is none")
    return (mark.line + 1, f"{words}, column {mark.column + 1}") if mark is not None else (1, words)
