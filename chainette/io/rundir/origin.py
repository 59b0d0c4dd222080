"""Where a run directory comes from: begun by this user on this machine, or by somebody else.

The first line of a log names code (the chain) and files (the input). It is sealed with a key that lies in the user's own
folder, so that a log that was written or changed elsewhere can be told apart.
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
    """Why the directory may come from somebody else; "" if this user began it, or can have no key to tell.

    A user who has begun no run yet gets a key here, which fits no seal.
    """
    owner, me = directory.log.stat().st_uid, os.geteuid()
    if owner != me:
        return f"its log belongs to user {owner}, and you are user {me}"
    key = _key()
    if key is None or hmac.compare_digest(created.seal, _tag(created, key)):
        return ""
    return "it was not begun by you on this machine, or its log was changed"


def changed(created: RunCreated, directory: RunDir, settings: dict[str, Any]) -> RunCreated:
    """The first line of a directory with other settings; sealed again if this user began the run."""
    other = msgspec.structs.replace(created, settings=settings)
    return other if doubt(directory, created) else sealed(other)


def require_no_links(directory: RunDir) -> None:
    """Checks that no file or folder of a directory lies elsewhere: it is about to be written.

    Raises:
        RunDirectoryError: there is a symbolic link.
    """
    for folder, folders, files in os.walk(directory.path):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                raise RunDirectoryError(
                    f"{path} is a link to {str(path.readlink())!r}; Chainette makes no links and writes through none. "
                    f"Put the file in its place, or copy the directory with `cp -rL`"
                )


def _tag(created: RunCreated, key: bytes) -> str:
    bare = msgspec.structs.replace(created, seq=0, at="", epoch=0, seal="")
    return hashlib.blake2b(msgspec.json.encode(bare), key=key, digest_size=16, person=b"chainette-begun").hexdigest()


def _key() -> bytes | None:
    """This user's key, made now if there is none; None if its file is not private, or there is no folder for it."""
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
    """Writes a new key, whole or not at all; the key of a process that was faster stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123
        file.write(secrets.token_bytes(_KEY_BYTES))
    with suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink()
