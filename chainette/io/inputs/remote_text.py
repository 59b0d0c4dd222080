"""The text of a file at a URL, for a run that reads only as far as it needs."""

from __future__ import annotations

import io
from functools import cached_property
from typing import IO, Any, cast

from chainette.errors import InputError
from chainette.io.inputs.compression import text_of
from chainette.utils.remote_files import remote, remote_errors, shown_url

__all__ = ["RemoteText"]

_FAULT = "cannot be read"
#: The bytes of one request.
_BLOCK = 1 << 20


class RemoteText:
    """The unpacked text of a file at a URL: a stream that sends no request before it is read."""

    def __init__(self, url: str, named: str = "") -> None:
        """`named` is the folder or pattern that the user gave, if it is not the file itself."""
        self._url = url
        #: The log entries with which the file can be found again.
        self.origin: dict[str, Any] = {"urls": [shown_url(named or url)], "file": shown_url(url)}

    @cached_property
    def _text(self) -> IO[bytes]:
        with remote(self._url, InputError, _FAULT) as (system, path):
            file = system.open(path, "rb", block_size=_BLOCK)
            # two buffers: the outer one is then full even if the connection gives only a few bytes at a time
            return text_of(io.BufferedReader(cast("Any", io.BufferedReader(file, _BLOCK)), _BLOCK))

    def read(self, size: int) -> bytes:
        """The next bytes; b"" at the end.

        Raises:
            InputError: the file cannot be read.
        """
        with remote_errors(self._url, InputError, _FAULT):
            return self._text.read(size)
