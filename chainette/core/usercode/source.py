"""Distinguishes the user's files from libraries, and finds the source of a module."""

from __future__ import annotations

import ast
import linecache
import sysconfig
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["is_library", "is_part", "source_tree"]

_PACKAGE = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def _library_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    folders = {Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return (_PACKAGE, *folders)


@lru_cache(maxsize=4096)
def is_library(file: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to Chainette, rather than to the user.

    Names without a file, such as `<string>`, count as libraries.
    """
    if file.startswith("<"):
        return True
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & {*path.parts}:
        return True
    return any(path.is_relative_to(folder) for folder in _library_folders())


def is_part(path: Path, root: Path) -> bool:
    """Whether a file that a chain reads is part of its digest: it is below the root, not hidden, and the user's own."""
    if not path.is_relative_to(root) or is_library(str(path)) or not path.is_file():
        return False
    parts = path.relative_to(root).parts
    return "__pycache__" not in parts and not any(part.startswith(".") for part in parts)


def source_tree(file: str, module: Mapping[str, Any]) -> ast.Module | None:
    """The syntax tree of a module's file; None if there is no source.

    `module` has the module's globals: if its loader kept the source that it executed, that source is used, so that
    later edits of the file do not matter.
    """
    source = _kept_source(file, module)
    if source is None:
        linecache.checkcache(file)
        source = "".join(linecache.getlines(file, dict(module)))
    return _parsed(source) if source else None


def _kept_source(file: str, module: Mapping[str, Any]) -> str | None:
    loader = module.get("__loader__")
    if loader is None or module.get("__file__") != file or not hasattr(loader, "get_source"):
        return None
    try:
        source: str | None = loader.get_source(module["__name__"])
    except (ImportError, OSError):
        return None
    return source


@lru_cache(maxsize=64)
def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:
        return None
