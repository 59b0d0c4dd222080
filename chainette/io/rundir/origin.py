"""The origin of a run directory: whether this user began it on this machine, or somebody else.

The first line of a log names code (the chain) and files (the input). It is sealed with a key in the user's own folder, so
that a log that was written or changed elsewhere is recognized.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from chainette.errors import RunDirectoryError
from chainette.io.rundir.event_types import RunCreated
from chainette.io.rundir.paths import RunDir

__all__ = ["changed", "doubt", "require_no_links", "sealed"]

_KEY_BYTES = 32


def sealed(created: RunCreated) -> RunCreated:
    """The first line with its seal; without one if this user has no folder for the key."""
    key = _key()
    return msgspec.structs.replace(created, seal=_tag(created, key) if key else "")


def doubt(directory: RunDir, created: RunCreated) -> str:
    """The reason to doubt that this user began the run; "" if there is none, or if this user cannot have a key.

    A user who has not begun a run yet gets a new key here, which matches no seal.
    """
    owner, me = directory.log.stat().st_uid, os.geteuid()
    if owner != me:
        return f"its log belongs to user {owner}, but you are user {me}"
    key = _key()
    if key is None or hmac.compare_digest(created.seal, _tag(created, key)):
        return ""
    return "you did not begin it on this machine, or its log was changed"


def changed(created: RunCreated, directory: RunDir, settings: dict[str, Any]) -> RunCreated:
    """The first line of a directory, with other settings; it is sealed again if this user began the run."""
    other = msgspec.structs.replace(created, settings=settings)
    return other if doubt(directory, created) else sealed(other)


def require_no_links(directory: RunDir) -> None:
    """Checks that a directory has no symbolic links, before it is written to.

    Raises:
        RunDirectoryError: there is one.
    """
    for folder, folders, files in os.walk(directory.path):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                raise RunDirectoryError(
                    f"{path} is a link to {str(path.readlink())!r}; Chainette neither creates links nor writes through them. "
                    f"Put the file in its place, or copy the directory with `cp -rL`"
                )


def _tag(created: RunCreated, key: bytes) -> str:
    bare = msgspec.structs.replace(created, seq=0, at="", epoch=0, seal="")
    return hashlib.blake2b(msgspec.json.encode(bare), key=key, digest_size=16, person=b"chainette-begun").hexdigest()


def _key() -> bytes | None:
    """The key of this user, created if there is none; None if its file is not private, or there is no folder for it."""
    try:
        path = _folder() / "key"
        if not path.exists():
            _make_key(path)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            found = os.fstat(file.fileno())
            mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
            key = file.read(_KEY_BYTES)
    except (OSError, RuntimeError):  # no home
        return None
    return key if mine and len(key) == _KEY_BYTES else None


def _folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "chainette"


def _make_key(path: Path) -> None:
    """Writes a new key, whole or not at all. If another process was first, its key stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123
        file.write(secrets.token_bytes(_KEY_BYTES))
    with suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink()
