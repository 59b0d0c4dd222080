"""Exchange: one HTTP request and its answer, independent of the library that carries the bytes.

`connections` and `aiohttp_session` implement this contract for one server each; `client` chooses between them.
"""

from __future__ import annotations

import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

__all__ = ["MOST_BYTES", "Answer", "Body", "Carrier", "ConnectionBroken", "OnLine", "Unreachable", "system_tls"]

#: The largest body that is read, also after decompression.
MOST_BYTES = 64 << 20

#: Bytes that are decompressed at once.
_PIECE = 1 << 20

#: Called with each line of a streamed answer as it arrives, without its line end.
OnLine = Callable[[bytes], None]


class Unreachable(Exception):
    """No connection: the request was not sent."""


class ConnectionBroken(Exception):
    """The exchange began but gave no complete answer."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, decompressed."""

    status: int
    data: bytes
    #: By their names in lower case; none of a 200, whose headers nobody needs.
    headers: Mapping[str, str]


class Carrier(Protocol):
    """Carries requests to one server. Belongs to the event loop on which it is first used."""

    async def exchange(self, path: str, body: bytes | None, seconds: float, on_line: OnLine | None) -> Answer:
        """POSTs a body, or GETs if there is none. The lines of a 200 go to `on_line` as they arrive.

        A cancelled exchange closes its connection, so that the server notices. Redirects are not followed.

        Raises:
            Unreachable: no connection.
            ConnectionBroken: the server closed the connection, or sent something that is not HTTP or too large.
            TimeoutError: no complete answer within `seconds`.
        """
        ...

    async def close(self) -> None:
        """Closes the connections; safe to repeat."""
        ...


class Body:
    """A body that arrives in parts, compressed or not: bounded, and passed on line by line.

    Raises:
        ConnectionBroken: the body is larger than MOST_BYTES, or not compressed as `encoding` says.
    """

    def __init__(self, encoding: str, on_line: OnLine | None) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._inflater = _inflater(encoding)
        self._lines = _LineSplitter(on_line) if on_line is not None else None

    def feed(self, part: bytes) -> None:
        """Takes in the next part."""
        for piece in (part,) if self._inflater is None else self._inflated(part):
            self._size += len(piece)
            if self._size > MOST_BYTES:
                self._parts.clear()  # the error's traceback would keep them
                raise ConnectionBroken(f"the answer is larger than {MOST_BYTES >> 20} MiB")
            self._parts.append(piece)
            if self._lines is not None:
                self._lines.feed(piece)

    def whole(self) -> bytes:
        """All parts joined, at the end of the body."""
        if self._inflater is not None and self._parts and not self._inflater.eof:
            raise ConnectionBroken("the compressed answer ended too early")
        if self._lines is not None:
            self._lines.end()
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _inflated(self, part: bytes) -> Iterator[bytes]:
        """The part decompressed, piece by piece. Compressed streams may follow each other (RFC 1952, 2.2)."""
        assert self._inflater is not None
        piece = b""
        try:
            while part or len(piece) == _PIECE:  # a full piece may leave some output behind
                if self._inflater.eof:
                    if not part:
                        return
                    self._inflater = _new_inflater()
                piece = self._inflater.decompress(part, _PIECE)
                part = self._inflater.unconsumed_tail or self._inflater.unused_data
                yield piece
        except zlib.error as error:
            raise ConnectionBroken(f"not compressed as it says: {error}") from None


def _inflater(encoding: str) -> zlib._Decompress | None:
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return _new_inflater()
        case other:
            raise ConnectionBroken(f"the answer is encoded as {other!r}, which was not asked for")


def _new_inflater() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # tells gzip and zlib apart by their headers


class _LineSplitter:
    """Cuts a body that arrives in parts into lines."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        #: The parts of a line that has not ended, joined once it has: a long line may come in very many.
        self._rest: list[bytes] = []

    def feed(self, part: bytes) -> None:
        first, *more = part.split(b"\n")
        self._rest.append(first)
        for start in more:
            self._on_line(b"".join(self._rest).rstrip(b"\r"))
            self._rest = [start]

    def end(self) -> None:
        """Passes on a last line without a line end."""
        if rest := b"".join(self._rest):
            self._on_line(rest)


def system_tls() -> ssl.SSLContext:
    """TLS with the certificates the system trusts, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
