"""Files and folders that only their owner can read; CHAINETTE_UMASK=027 lets the group read them, 022 everybody.

The process's own umask applies too. New files are never created through a link, and temporary names cannot be guessed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from chainette.errors import DiskError

__all__ = ["VARIABLE", "beside", "is_taken", "make_folder", "new_file", "open_file", "permitted"]

VARIABLE = "CHAINETTE_UMASK"


def permitted(mode: int) -> int:
    """The mode without the permissions that CHAINETTE_UMASK takes away.

    Raises:
        DiskError: the variable is not an octal number.
    """
    text = os.environ.get(VARIABLE) or "077"
    try:
        return mode & ~int(text, 8)
    except ValueError:
        raise DiskError(f"{VARIABLE} is {text!r}; it must be an octal number such as 077 or 027") from None


def make_folder(path: Path) -> None:
    """Creates a folder and its missing parents; existing folders keep their modes."""
    if not path.is_dir():
        make_folder(path.parent)
        with suppress(FileExistsError):
            path.mkdir(permitted(0o777))


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """Opens a file, creating it if `flags` say so. The last part of the path must not be a link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, permitted(0o666))


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that does not exist yet; a failure inside the block deletes it."""
    with os.fdopen(open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), "w+b") as file:
        try:
            yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def is_taken(folder: Path) -> bool:
    """Whether no new folder can be created at a path: it is a file, or a folder that is not empty."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def beside(path: Path) -> Path:
    """A new name in the same folder, for a temporary file that is renamed to `path` once it is complete."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
