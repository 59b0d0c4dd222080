"""Finds the file or module that a chain reference names."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from chainette.core.usercode.confined import YAML, ChainClaim, confined_file, module_of
from chainette.core.usercode.importer import PrivateImporter
from chainette.errors import LoadError

__all__ = ["ENGINES", "ChainSource", "claimed_source", "source_of"]

#: The file of engines that may be next to a chain file.
ENGINES = "engines.yml"


@dataclass(frozen=True)
class ChainSource:
    """The target of a reference."""

    #: The reference without the chain's name.
    base: str
    #: The folder to which the paths in the digest are relative.
    root: Path
    file: Path
    importer: PrivateImporter
    run: Callable[[], ModuleType]


def source_of(target: str, root: Path) -> ChainSource:
    """The file or module of a reference; `target` is the reference without the chain's name.

    Raises:
        LoadError: it does not exist, or cannot be a chain's file.
    """
    return _file_source(target, _located(target, root), root) if _is_path(target, root) else _module_source(target, root)


def claimed_source(target: str, root: Path, claim: ChainClaim) -> ChainSource:
    """The target of a reference that came from Redis; only the files of the claim are executed."""
    if not module_of(target):
        source = _file_source(target, confined_file(root, target, "the chain"), root)
        least = [source.file]
    else:
        claim.require_module(target)
        source = _module_source(target, root)
        packages = [source.file, *source.file.parents][: target.count(".") + 1]
        least = [source.file.with_suffix(".py"), *(package / "__init__.py" for package in packages)]
    source.importer.allowed = claim.sources(source.root, [*least, source.file.parent / ENGINES])
    return source


def _is_path(target: str, root: Path) -> bool:
    if target.endswith((".py", *YAML)) or "/" in target or os.sep in target or target in ("", "."):
        return True
    return not all(part.isidentifier() for part in target.split(".")) or (root / target).is_file()


def _file_source(target: str, path: Path, root: Path) -> ChainSource:
    if path.is_dir():
        inside = " or ".join(f"{target.rstrip('/')}/{file.name}" for file in sorted(path.glob("*.py"))[:3])
        raise LoadError(f"{target or '.'} is a directory; name the chain's file{f', such as {inside}' if inside else ''}")
    if path.suffix not in (".py", *YAML):
        raise LoadError(f"{target} is not a chain; expected chain.py, chain.py:name, chain.yml or package.module:name")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{target} cannot be read: {error.strerror}") from error
    inside_root = path.is_relative_to(root)
    base = path.relative_to(root).as_posix() if inside_root else path.as_posix()
    top = root if inside_root else path.parent
    roots = dict.fromkeys([path.parent, top])
    importer = PrivateImporter(f"{base}\n{hashlib.sha256(content).hexdigest()}", [*roots])
    run = (
        functools.partial(_run_yaml, path, top, importer) if path.suffix in YAML else functools.partial(importer.run_file, path)
    )
    return ChainSource(base, top, path, importer, run)


def _run_yaml(path: Path, root: Path, importer: PrivateImporter) -> ModuleType:
    from chainette.core.document.chain_file import run_chain_file  # chains in Python do without pyyaml

    return run_chain_file(path, root, importer)


def _located(target: str, root: Path) -> Path:
    given = Path(target).expanduser()
    try:
        for path in (root / given, Path.cwd() / given):
            if path.exists():
                return path.resolve()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise LoadError(f"{target[:80]!r} cannot be the name of a file: {error.args[-1]}") from error
    folder = (root / given).parent
    names = [file.name for file in folder.iterdir() if file.suffix in (".py", *YAML)] if folder.is_dir() else []
    close = difflib.get_close_matches(given.name, names, n=1)
    hint = f"; did you mean {(given.parent / close[0]).as_posix()!r}?" if close else ""
    raise LoadError(f"{target} does not exist (looked below {root}){hint}")


def _module_source(target: str, root: Path) -> ChainSource:
    """A module below the chain root or, failing that, of an installed package."""
    top = target.partition(".")[0]
    own, installed = PathFinder.find_spec(top, [str(root)]), PathFinder.find_spec(top)
    spec = installed if installed is not None and (own is None or own.origin is None) else own
    if spec is None:
        raise LoadError(f"no module {top!r} below {root} or among the installed packages; a file is named chain.py[:name]")
    only = None
    if spec is installed and spec.origin is not None:
        root, only = Path(spec.origin).resolve().parents[1 if spec.submodule_search_locations else 0], top
    importer = PrivateImporter(target, [root], only)
    file = root.joinpath(*target.split("."))
    return ChainSource(target, root, file, importer, lambda: importer.run_module(target))
