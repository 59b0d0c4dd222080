"""Exports to a URL. Its files get their names only once all of them have been sent.

An object store cannot rename a folder. So each file is sent to `_unfinished/`, under the digest of its content. After the
last one, `all_sent.json` lists them, the store copies them to their names, and `_unfinished/` is deleted. Readers of folders
skip names that begin with `_`. If the process is killed, `_unfinished/` stays, and the same call continues with its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chainette.errors import RunError
from chainette.utils.remote_files import BUCKETS, remote, shown_url

__all__ = ["send"]

_ASIDE, _ALL_SENT = "_unfinished", "all_sent.json"


def send(folder: Path, url: str) -> list[str]:
    """Copies the files of a folder to a new or empty folder at a URL; returns their URLs.

    Raises:
        RunError: the folder at the URL holds other files, or its store refused.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    digests = {name: _digest(file) for name, file in files.items()}
    with remote(url, RunError, "cannot be written") as (system, path):
        target = _Target(url, system, path.rstrip("/"), {name: file.stat().st_size for name, file in files.items()}, digests)
        target.require_free()
        for name, file in files.items():
            target.send(name, file)
        target.publish()
    return [f"{shown_url(url).rstrip('/')}/{name}" for name in files]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class _Target:
    """A folder at a URL, and the files to be sent to it."""

    url: str
    system: Any
    path: str
    sizes: Mapping[str, int]
    digests: Mapping[str, str]

    def require_free(self) -> None:
        """Raises RunError if the folder holds anything but files of the same export."""
        found = self._names(self.path)
        sent = self._all_sent() if _ASIDE in found else None
        if sent not in (None, self.digests):
            raise RunError(
                f"{shown_url(self.url)} holds another export that was interrupted: repeat that export, or delete its {_ASIDE}/ "
                "and every file beside it"
            )
        own = {name.partition("/")[0] for name in self.digests} if sent is not None else set()
        if found - own - {_ASIDE}:
            raise RunError(f"{shown_url(self.url)} exists and is not empty; name a new folder")

    def send(self, name: str, file: Path) -> None:
        """Sends a file, unless the store already has it."""
        aside = self._aside(self.digests[name])
        if self.sizes[name] not in (self._size(aside), self._size(f"{self.path}/{name}")):
            self._make_folder(aside)
            self.system.put_file(str(file), aside)

    def publish(self) -> None:
        """Gives every file its name."""
        self.system.pipe_file(self._aside(_ALL_SENT), json.dumps(self.digests, sort_keys=True).encode())
        for name, digest in self.digests.items():
            place = f"{self.path}/{name}"
            if self._size(place) != self.sizes[name]:
                self._make_folder(place)
                self.system.cp_file(self._aside(digest), place)
        for left in sorted(self._names(f"{self.path}/{_ASIDE}"), key=_ALL_SENT.__eq__):  # the list is deleted last
            self.system.rm_file(self._aside(left))
        if not self._has_buckets:
            self.system.rmdir(f"{self.path}/{_ASIDE}")

    @property
    def _has_buckets(self) -> bool:
        return urlsplit(self.url).scheme in BUCKETS

    def _aside(self, name: str) -> str:
        return f"{self.path}/{_ASIDE}/{name}"

    def _all_sent(self) -> dict[str, str] | None:
        """Name -> digest of an export that has sent all its files; None if there is no such list."""
        try:
            found: dict[str, str] = json.loads(self.system.cat_file(self._aside(_ALL_SENT)))
        except FileNotFoundError:
            return None
        return found

    def _names(self, folder: str) -> set[str]:
        self.system.invalidate_cache()
        try:
            found = self.system.ls(folder, detail=False)
        except FileNotFoundError:
            return set()
        return {str(name).rstrip("/").rpartition("/")[2] for name in found if str(name).strip("/") != folder.strip("/")}

    def _size(self, path: str) -> int | None:
        self.system.invalidate_cache()
        try:
            return int(self.system.size(path))
        except FileNotFoundError:
            return None

    def _make_folder(self, path: str) -> None:
        """Creates the folder of a file, except in object stores: they need none, and must not create a bucket by mistake."""
        if not self._has_buckets:
            self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
