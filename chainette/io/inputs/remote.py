"""Inputs at a URL: copied once, so that a resume reads the same bytes."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chainette.errors import InputError
from chainette.io.inputs.many_files import by_number, has_kind
from chainette.io.inputs.spool import spool
from chainette.utils.remote_files import is_url, remote, shown_url

__all__ = ["fetch"]

#: Protocols without folders and patterns: a `?` begins a query.
_FLAT = ("http", "https")


def fetch(sources: Sequence[str | os.PathLike[str]], folder: Path) -> list[str | os.PathLike[str]]:
    """The sources with every URL replaced by copies of its files in `folder`: a file, a folder's files, or a pattern's.

    Raises:
        InputError: a URL cannot be read, or the package for its protocol is not installed.
        DiskError: the disk refused.
    """
    found: list[str | os.PathLike[str]] = []
    for source in sources:
        if is_url(source):
            found += _copies(str(source), folder, len(found))
        else:
            found.append(source)
    return found


def _copies(url: str, folder: Path, first: int) -> list[Path]:
    copies = []
    with remote(url, InputError, "cannot be read") as (system, path):
        for number, file in enumerate(_files(system, path, url), first):
            copies.append(folder / f"{number}-{Path(urlsplit(file).path).name or 'input'}")
            with system.open(file, "rb") as stream:
                spool(stream, copies[-1])
    return copies


def _files(system: Any, path: str, url: str) -> list[str]:
    if urlsplit(url).scheme in _FLAT:
        return [path]
    if glob.has_magic(path):
        files, fault = [name for name in system.glob(path) if not system.isdir(name)], "no file matches this pattern"
    elif system.isdir(path):
        named = [name for name in system.ls(path, detail=False) if not Path(name).name.startswith((".", "_"))]
        files, fault = [name for name in named if has_kind(Path(name))], "a folder without JSONL, CSV, TSV or Parquet files"
    else:
        return [path]
    if not files:
        raise InputError(f"{shown_url(url)}: {fault}")
    return sorted(files, key=lambda name: by_number(Path(name)))
