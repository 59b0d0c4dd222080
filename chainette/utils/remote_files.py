"""Files at a URL (`https://`, `s3://`, `gs://`, `hf://`, ...), through fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from chainette.errors import ChainetteError

__all__ = ["is_url", "remote", "shown_url"]


def is_url(source: object) -> bool:
    """Whether an input or output is named by a URL."""
    return isinstance(source, str) and "://" in source


def shown_url(url: str) -> str:
    """A URL without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def remote(url: str, kind: type[ChainetteError], fault: str) -> Iterator[tuple[Any, str]]:
    """(the file system of a URL, the path in it); every error inside becomes a `kind`: `URL: FAULT: reason`.

    Raises:
        kind: the package of the protocol is not installed, or the file system refused.
    """
    try:
        from fsspec.core import url_to_fs

        yield url_to_fs(url)
    except (ChainetteError, MemoryError):
        raise
    except Exception as error:  # each protocol has exceptions of its own
        reason = str(error).replace(url, shown_url(url)) or type(error).__name__
        raise kind(f"{shown_url(url)}: {fault}: {reason}") from error
