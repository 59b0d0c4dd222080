"""Files at a URL (`https://`, `s3://`, `gs://`, `az://`, `hf://`, ...), through fsspec."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from chainette.errors import ChainetteError

__all__ = ["BUCKETS", "address", "is_url", "remote", "remote_errors", "shown_url"]

#: Seconds without a byte after which a web server counts as dead; a slow download has no other limit.
_SILENCE = 60.0
#: Protocols of object stores, which have existing buckets and no folders; elsewhere, folders must be created.
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})
#: The sources of credentials for the libraries of object stores.
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_CONNECTION_STRING",
    "hf": "HF_TOKEN, or `hf auth login`",
}
_HOST = re.compile(r"(\[.*\]|[^:]*)(:\d*)?")
#: Packages with the same name as their module.
_PACKAGES = frozenset({"s3fs", "gcsfs", "adlfs", "huggingface_hub", "paramiko", "ossfs"})
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def is_url(source: object) -> bool:
    """Whether an input or output is given as a URL."""
    return isinstance(source, str) and "://" in source


def shown_url(url: str) -> str:
    """A URL without user, password and query, which may be secrets; hidden as a whole if it may show a part of a password."""
    if _is_cut(url):
        return "(a hidden URL)"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_cut(url: str) -> bool:
    """Whether an unescaped `/`, `?` or `#` in a password ends the host too early."""
    scheme, _, rest = url.partition("://")
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    return scheme not in BUCKETS and "@" in rest[len(place) :] and not _HOST.fullmatch(place.rpartition("@")[2])


def address(system: Any, path: str) -> str:
    """The URL of a path, without secrets."""
    return shown_url(str(system.unstrip_protocol(path)))


@contextmanager
def remote(url: str, kind: type[ChainetteError], fault: str) -> Iterator[tuple[Any, str]]:
    """(the file system of a URL, the path in it), with nothing cached from earlier uses; errors as in `remote_errors`."""
    if _is_cut(url):
        raise kind(f"{shown_url(url)}: {fault}: write / ? # in a password as %2F %3F %23")
    with remote_errors(url, kind, fault):
        from fsspec.core import url_to_fs

        yield url_to_fs(url, skip_instance_cache=True, **_options(url))


def _options(url: str) -> dict[str, Any]:
    scheme = urlsplit(url).scheme
    if scheme in ("s3", "s3a") and "AWS_MAX_ATTEMPTS" not in os.environ:
        # s3fs tries every request five times, and boto each of these as often: ten minutes if the server is silent
        return {"config_kwargs": {"retries": {"total_max_attempts": 2}}}
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)}}


@contextmanager
def remote_errors(url: str, kind: type[ChainetteError], fault: str) -> Iterator[None]:
    """Converts every error inside the block to a `kind`: `URL: FAULT: reason`, without the secrets of the URL.

    Raises:
        kind: the package of the protocol is not installed, or the file system reported an error.
    """
    try:
        yield
    except (ChainetteError, MemoryError):
        raise
    except ImportError as error:
        raise kind(f"{shown_url(url)}: {fault}: {_missing(error)}") from error
    except Exception as error:  # each protocol has its own exceptions
        raise kind(f"{shown_url(url)}: {fault}: {_reason(url, error)}") from error


def _missing(error: ImportError) -> str:
    cause = error.__context__
    package = cause.name if isinstance(cause, ImportError) else error.name
    return f"the package {package} is missing: pip install {package}" if package in _PACKAGES else str(error)


def _reason(url: str, error: Exception) -> str:
    """The text of an error, with a hint if access was denied."""
    if isinstance(error, FileNotFoundError) and str(error) in (url, url.partition("://")[2]):
        cause = error.__cause__  # the answer of a web server
        if not isinstance(cause, Exception) or getattr(cause, "status", None) in (404, 410):
            return "no such file"
        error = cause
    status, said = getattr(error, "status", None), getattr(error, "message", None)
    words = f"{status} {said}" if status and said else " ".join(str(error).split()).rstrip(".") or type(error).__name__
    parts = urlsplit(url)
    for secret in filter(None, (parts.query, parts.netloc.rpartition("@")[0], parts.password)):
        words = words.replace(secret, "...")
    return f"{words}{_hint(url)}" if _is_refusal(error) else words


def _is_refusal(error: Exception) -> bool:
    status = getattr(error, "status", None)  # of aiohttp
    return isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__


def _hint(url: str) -> str:
    scheme = urlsplit(url).scheme
    names = _CREDENTIALS.get(_ALIASES.get(scheme, scheme))
    return f"; check the credentials of this process ({names})" if names else ""
