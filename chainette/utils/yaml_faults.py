"""Describes an error in a YAML file without quoting the file, whose lines may hold secrets."""

from __future__ import annotations

import re

import yaml

__all__ = ["yaml_fault"]


def yaml_fault(error: yaml.YAMLError) -> tuple[int, str]:
    """(line from 1, description) of an error of PyYAML, without quoted text of more than three letters."""
    mark = getattr(error, "problem_mark", None)
    words = re.sub(r"'(?!<)[^']{4,}'?", "(...)", getattr(error, "problem", None) or "syntax error")
    return (mark.line + 1, f"{words}, column {mark.column + 1}") if mark is not None else (1, words)
