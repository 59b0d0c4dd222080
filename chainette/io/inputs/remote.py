"""Inputs at a URL: they are copied into the run directory, so that a resume reads the same bytes.

A run that stops early copies only the part that it needs: a single text file as it is read (`remote_text.py`), or, of
several files, only as many as have enough records.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from chainette.errors import InputError
from chainette.io.inputs.compression import PACKED
from chainette.io.inputs.locate import open_input
from chainette.io.inputs.many_files import by_number, has_kind
from chainette.io.inputs.spool import blocks_of
from chainette.io.rundir.paths import publish_blocks
from chainette.utils.remote_files import is_url, remote, remote_errors, shown_url

__all__ = ["Copies", "RemoteFile", "RemoteInputs", "copy_files", "files_at", "named_urls"]

Source = str | os.PathLike[str]

#: Protocols without folders and patterns: in their URLs, `?` begins a query.
_FLAT = ("http", "https")
_FAULT = "cannot be read"


@dataclass(frozen=True)
class RemoteFile:
    """One file at a URL."""

    url: str
    system: Any
    path: str

    @property
    def name(self) -> str:
        return Path(urlsplit(self.url).path).name or "input"

    @property
    def text_name(self) -> str:
        """The name of the unpacked text."""
        return Path(self.name).stem if Path(self.name).suffix.lower() in PACKED else self.name

    def copy(self, target: Path) -> Path:
        """Copies the file as it was at one moment: whole, or not at all.

        Raises:
            InputError: the file cannot be read, or it changed meanwhile.
            DiskError: the disk is full, or a write failed.
        """
        with remote_errors(self.url, InputError, _FAULT):
            before = self._version()
            with self.system.open(self.path, "rb") as stream:
                publish_blocks(target, self._blocks(stream))
            after = self._version()
        if before != after or after[0] not in (None, target.stat().st_size):
            target.unlink()
            raise InputError(f"{shown_url(self.url)}: changed while it was copied; run the command again")
        return target

    def _blocks(self, stream: IO[bytes]) -> Iterator[bytes]:
        with remote_errors(self.url, InputError, _FAULT):  # here, so that it does not cover errors of the disk
            yield from blocks_of(stream)

    def _version(self) -> tuple[Any, ...]:
        """The current size and version, as far as the file system tells them."""
        self.system.invalidate_cache()  # a cached listing may have them in another form
        info = self.system.info(self.path)
        return info.get("size"), info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created")


@dataclass(frozen=True)
class Copies:
    """Files on the disk, in the order of the input."""

    paths: list[Source]
    #: The URLs of the following files, which are not needed yet.
    rest: list[str]


def copy_files(
    files: Sequence[RemoteFile | Source], folder: Path, limit: int | None, *, first: int = 0, records: int = 0
) -> Copies:
    """Copies files at URLs into `folder`, numbered from `first`. With a limit, it stops as soon as the copies and the
    `records` that exist already reach the limit. Local files count too, but are not copied.

    Raises:
        InputError: a file cannot be read.
        DiskError: the disk is full, or a write failed.
    """
    found: list[Source] = []
    for number, file in enumerate(files):
        if limit is not None and records >= limit:
            return Copies(found, [_said(later) for later in files[number:]])
        found.append(_on_disk(file, folder, first + number))
        if limit is not None and number + 1 < len(files):
            records += open_input(found[-1]).total()
    return Copies(found, [])


@dataclass(frozen=True)
class RemoteInputs:
    """Inputs of which at least one is a URL."""

    #: The URLs, as the user gave them.
    urls: list[str]
    files: list[RemoteFile | Source]

    @classmethod
    def of(cls, sources: Sequence[Source]) -> RemoteInputs:
        """Raises InputError: a URL cannot be read, or the package for its protocol is not installed."""
        return cls(named_urls(sources), files_at(sources))


def _on_disk(file: RemoteFile | Source, folder: Path, number: int) -> Source:
    if not isinstance(file, RemoteFile):
        if not is_url(file):
            return file
        (file,) = _files(str(file))
    return file.copy(folder / f"{number}-{file.name}")


def _said(file: RemoteFile | Source) -> str:
    url = file.url if isinstance(file, RemoteFile) else str(file)
    return shown_url(url) if is_url(url) else str(Path(url).absolute())


def named_urls(sources: Sequence[Source]) -> list[str]:
    """The URLs among sources, without secrets."""
    return [shown_url(str(source)) for source in sources if is_url(source)]


def files_at(sources: Sequence[Source]) -> list[RemoteFile | Source]:
    """The sources, with every URL replaced by its files: the file itself, or those of a folder or pattern.

    Raises:
        InputError: a URL cannot be read, or the package for its protocol is not installed.
    """
    found: list[RemoteFile | Source] = []
    for source in sources:
        found += _files(str(source)) if is_url(source) else [source]
    return found


def _files(url: str) -> list[RemoteFile]:
    with remote(url, InputError, _FAULT) as (system, path):
        if urlsplit(url).scheme in _FLAT:
            return [RemoteFile(url, system, path)]
        files = sorted(_paths(system, path, url), key=lambda name: by_number(Path(name)))
        plain = url.rstrip("/")
        before = plain.removesuffix(path) if plain.endswith(path) else None
        return [
            RemoteFile(str(system.unstrip_protocol(file)) if before is None else before + file, system, file) for file in files
        ]


def _is_file(system: Any, path: str) -> bool:
    try:
        return bool(system.info(path)["type"] == "file")
    except (FileNotFoundError, PermissionError):  # a listing explains more
        return False


def _paths(system: Any, path: str, url: str) -> list[str]:
    if has_kind(Path(path)) and not glob.has_magic(path) and _is_file(system, path):
        return [path]  # without a listing, which credentials may not allow even if they allow reading the file
    if glob.has_magic(path):
        files, fault = [name for name in system.glob(path) if not system.isdir(name)], "no file matches this pattern"
    elif system.isdir(path):
        named = [name for name in system.ls(path, detail=False) if not Path(name).name.startswith((".", "_"))]
        files, fault = [name for name in named if has_kind(Path(name))], "a folder without JSONL, CSV, TSV or Parquet files"
    else:
        system.info(path)  # raises the reason why there are none
        return [path]
    if not files:
        raise InputError(f"{shown_url(url)}: {fault}")
    return files
