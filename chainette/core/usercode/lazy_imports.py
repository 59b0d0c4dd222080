"""The user's files that a function imports when it is called."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chainette.core.usercode.source import is_library

__all__ = ["files_imported"]


def files_imported(node: ast.AST, module: Mapping[str, Any]) -> dict[str, str]:
    """Name -> file of every user module that the code below `node` imports, directly or indirectly."""
    found: dict[str, str] = {}
    pending = [(node, Path(str(module.get("__file__", ""))))]
    while pending:
        tree, file = pending.pop()
        for name, imported in _imported(tree, file, _roots(module)):
            if name not in found:
                found[name] = str(imported)
                pending += [(parsed, imported) for parsed in _parsed(imported)]
    return dict(sorted(found.items()))


def _roots(module: Mapping[str, Any]) -> list[Path]:
    """The folders in which the module's imports are looked up, by its importer or as for a script."""
    package = sys.modules.get(str(module.get("__name__", "")).partition(".")[0])
    importer = getattr(package, "__importer__", None)
    if importer is not None:
        return [Path(root) for root in importer.roots]
    return [Path(str(module.get("__file__", ""))).parent]


def _imported(tree: ast.AST, file: Path, roots: list[Path]) -> Iterator[tuple[str, Path]]:
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield from _found(alias.name, roots)
        elif isinstance(statement, ast.ImportFrom):
            places = [file.parents[statement.level - 1]] if 0 < statement.level <= len(file.parents) else roots
            base = statement.module or ""
            for name in (base, *(f"{base}.{alias.name}".strip(".") for alias in statement.names)):
                yield from _found(name, places)


def _found(name: str, places: list[Path]) -> Iterator[tuple[str, Path]]:
    """The file of a module and of the packages above it."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        for place in places:
            path = place.joinpath(*parts[:count])
            file = next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if _is_file(file)), None)
            if file is not None and not is_library(str(file)):
                yield ".".join(parts[:count]), file
                break


def _is_file(file: Path) -> bool:
    return file.name != ".py" and file.is_file()


def _parsed(file: Path) -> list[ast.Module]:
    try:
        return [ast.parse(file.read_bytes())]
    except (OSError, SyntaxError, ValueError):
        return []
