"""Chains from Redis: a chain's record is checked against the disk before any of its code is executed.

A reference must lead to a regular file below the chain root, after symbolic links are resolved, or to a module that this
process was told to allow. The digest of its files must be the one that was enqueued. Only those files are executed.
"""

from __future__ import annotations

import hashlib
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chainette.errors import LoadError
from chainette.utils.plurals import counted

__all__ = [
    "YAML",
    "ChainClaim",
    "ClaimRefused",
    "confined_file",
    "digest_of",
    "engine_file",
    "module_of",
    "name_fault",
    "require_recorded",
]

#: The suffixes of chain files and engine files in YAML.
YAML = (".yml", ".yaml")

#: The most characters of a name, and bytes of one of its parts, that are passed to the file system.
_LONGEST_NAME, _LONGEST_PART = 1000, 255

#: The most files of a chain, and their total bytes.
_MOST_FILES, _MOST_BYTES = 10_000, 1 << 30

#: The most bytes of an engine file that an order names.
_MOST_ENGINES = 1 << 20


class ClaimRefused(LoadError):
    """The files on this machine are not those that were enqueued."""


@dataclass(frozen=True)
class ChainClaim:
    """The chain as a run's record describes it, and the modules that this process allows."""

    digest: str
    #: The files that the digest covers, by their names below the chain root; () if the chain is one file.
    files: tuple[str, ...] = ()
    #: A module may be named if it is one of these, or below one.
    modules: tuple[str, ...] = ()

    def require_module(self, module: str) -> None:
        """Raises LoadError unless the module may be named."""
        if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in self.modules):
            raise LoadError(f"{module[:80]!r} is a module; only a process started with --chain-module NAME loads it")

    def sources(self, root: Path, least: Iterable[Path]) -> dict[str, str]:
        """Path -> digest of each file that may be executed. `least` are the files of a chain that lists none.

        Raises:
            ClaimRefused: the files have another digest.
            LoadError: a name is not that of a file below the root.
        """
        names = self.files or [file.relative_to(root).as_posix() for file in least if file.is_file()]
        contents = _contents(root, names)
        if (found := digest_of(contents)) != self.digest:
            raise ClaimRefused(
                f"has digest {found[:12]} here, but {self.digest[:12]} where it was enqueued; the files here are below {root}"
            )
        return {str(root / name): digest for name, digest in contents.items()}


def digest_of(contents: Mapping[str, str]) -> str:
    """The digest of files: the sha256 of their names and of the sha256 of each."""
    lines = "".join(f"{path}\0{digest}\n" for path, digest in sorted(contents.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _contents(root: Path, names: Iterable[str]) -> dict[str, str]:
    names = [*names]
    if len(names) > _MOST_FILES:
        raise LoadError(f"the chain lists {counted(len(names), 'file')}; at most {_MOST_FILES:,} are read")
    found, left = {}, _MOST_BYTES
    for name in names:
        fault = name_fault(name)
        if not fault and not name.endswith(".py") and any(part.startswith(".") for part in PurePosixPath(name).parts):
            fault = "is hidden"
        if fault:
            raise LoadError(f"{name[:80]!r} {fault}, so it cannot belong to a chain")
        file = root / name
        if not file.is_file():
            raise ClaimRefused(f"needs {name!r}, which is not a file below {root}")
        left -= file.stat().st_size
        if left < 0:
            raise LoadError(f"the chain's files have more than {_MOST_BYTES >> 20} MiB")
        with file.open("rb") as stream:
            found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def name_fault(name: str) -> str:
    """The reason why a name cannot be that of a file below a root; "" if it can."""
    parts = PurePosixPath(name).parts
    if len(name) > _LONGEST_NAME or any(len(part.encode("utf-8", "replace")) > _LONGEST_PART for part in parts):
        return "is too long for a name"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "contains control characters"
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        return "is not a relative path below a root"
    return ""


def confined_file(root: Path, name: str, what: str, most: int = _MOST_BYTES) -> Path:
    """The regular file to which a name leads, after symbolic links are resolved.

    Raises:
        LoadError: it is outside the root, is not a regular file, or has more than `most` bytes.
    """
    below = name.removeprefix(f"{root}/") if name.startswith("/") else name
    if fault := name_fault(below):
        raise LoadError(f"{what} {name[:80]!r} {fault}")
    try:
        file = (root / below).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise LoadError(f"{what} {name!r} does not exist below {root}") from error
    if not file.is_relative_to(root.resolve()):
        raise LoadError(f"{what} {name!r} leads out of {root}")
    _require_regular(file, f"{what} {name!r}", most)
    return file


def module_of(reference: str) -> tuple[str, ...]:
    """The module that a reference names; () if it names a file."""
    target = reference.partition(":")[0]
    return () if target.endswith((".py", *YAML)) or "/" in target else (target,)


def require_recorded(reference: str, engines: str | None, root: Path) -> None:
    """Checks that the chain and the engine file in a log, if their names are relative, are files below the root.

    Raises:
        LoadError: one of them is not.
    """
    target = reference.partition(":")[0]
    if not module_of(reference) and not Path(target).is_absolute():
        confined_file(root, target, "the chain")
    if engines and not Path(engines).is_absolute():
        confined_file(root, engines, "the engine file", _MOST_ENGINES)


def engine_file(root: Path, name: str) -> Path:
    """The engine file that an order names.

    Raises:
        LoadError: it is not a small YAML file below the root.
    """
    file = confined_file(root, name, "the engine file", _MOST_ENGINES)
    if file.suffix not in YAML:
        raise LoadError(f"the engine file {name!r} is not a YAML file")
    return file


def _require_regular(file: Path, what: str, most: int) -> None:
    """Raises LoadError unless the path is a regular file of at most `most` bytes; does not open it."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise LoadError(f"{what} is not a regular file")
    if found.st_size > most:
        raise LoadError(f"{what} has {found.st_size:,} bytes; at most {most:,} are read")
