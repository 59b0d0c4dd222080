"""Connections: carries requests over persistent asyncio connections, parsed by httptools (llhttp).

HTTP/1.1 only, one exchange at a time per connection, over TLS with the system's certificates. Requests through a
proxy go through aiohttp instead.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from chainette.engine.http.carrier import Answer, Body, Carrier, ConnectionBroken, OnLine, Unreachable, system_tls
from chainette.engine.http.endpoints import Address

if TYPE_CHECKING:
    from httptools import HttpResponseParser

__all__ = ["Connections"]

Callback = Callable[..., None]

#: Seconds after which an idle connection is not used again; servers and middleboxes drop them silently.
_IDLE = 15.0
#: Seconds until the next address of a host is tried beside the first (RFC 8305).
_NEXT_ADDRESS = 0.25
#: The largest head of an answer, with those of its interim answers.
_MOST_HEAD_BYTES = 1 << 20


class Connections(Carrier):
    """The connections to one server."""

    def __init__(self, where: Address, headers: Mapping[str, str], connect_timeout: float) -> None:
        self._where = where
        self._connect_timeout = connect_timeout
        named = {name.lower() for name in headers}
        standard = {"Host": where.url.host_port_subcomponent or "", "Accept-Encoding": "gzip"}
        self._headers = {name: value for name, value in standard.items() if name.lower() not in named} | dict(headers)
        #: The head up to the length of the body, per method and path.
        self._heads: dict[tuple[str, str], bytes] = {}
        self._idle: list[_Connection] = []
        self._closed = False

    async def exchange(self, path: str, body: bytes | None, seconds: float, on_line: OnLine | None) -> Answer:
        head = self._head("GET", path) if body is None else self._head("POST", path)
        request = head + (b"\r\n" if body is None else b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        connection = self._reused(loop) or await self._connect(min(seconds, self._connect_timeout))
        timer = loop.call_later(end - loop.time(), connection.fail, TimeoutError())
        try:
            answer = await connection.exchange(request, on_line)
        except BaseException:
            connection.abort()
            raise
        finally:
            timer.cancel()
        self._put_back(connection, loop.time())
        return answer

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()  # over TLS, closing would wait for the other side
        await asyncio.sleep(0)  # the transports close on the loop's next turn

    def _head(self, method: str, path: str) -> bytes:
        head = self._heads.get((method, path))
        if head is None:
            lines = [f"{method} {self._where.join(path).raw_path_qs} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in self._headers.items()]
            head = self._heads[method, path] = "".join(f"{line}\r\n" for line in lines).encode()
        return head

    def _reused(self, loop: asyncio.AbstractEventLoop) -> _Connection | None:
        """The most recently used connection, if it is still good."""
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            if connection.loop is loop and loop.time() - connection.idle_since < _IDLE and connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _put_back(self, connection: _Connection, now: float) -> None:
        if self._closed or not connection.is_reusable():
            connection.abort()  # closing it would wait until the server has read the whole request
            return
        connection.idle_since = now
        self._idle.append(connection)

    async def _connect(self, seconds: float) -> _Connection:
        from aiohappyeyeballs import start_connection

        loop, url = asyncio.get_running_loop(), self._where.url
        try:
            async with asyncio.timeout(seconds):
                found = await loop.getaddrinfo(url.host or "", url.port or 0, type=socket.SOCK_STREAM)
                sock = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS, interleave=1, loop=loop)
                name = url.raw_host if self._tls is not None else None
                _, connection = await loop.create_connection(_Connection, sock=sock, ssl=self._tls, server_hostname=name)
                return connection
        except TimeoutError:
            raise Unreachable(f"no connection within {seconds:g} s") from None
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        return system_tls() if self._where.url.scheme == "https" else None


def _kept(callback: Callback) -> Callback:
    """Keeps an exception of a callback.

    The parser's own error does not name it if another exception is being handled, as in a run that begins inside an `except`.
    """

    def kept(self: _Connection, *arguments: bytes) -> None:
        try:
            callback(self, *arguments)
        except BaseException as error:
            self._raised = error
            raise

    return kept


class _Connection(asyncio.Protocol):
    """One connection. The `on_...` methods are called by the parser."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        from httptools import HttpResponseParser

        self._parser: HttpResponseParser = HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        #: By a callback of the parser.
        self._raised: BaseException | None = None
        self.loop = asyncio.get_running_loop()
        self.idle_since = 0.0

    async def exchange(self, request: bytes, on_line: OnLine | None) -> Answer:
        self._on_line = on_line
        self._head_size = 0
        self._begin()
        self._answer = self.loop.create_future()
        self.transport.write(request)
        return await self._answer

    def is_reusable(self) -> bool:
        """Whether another request may follow: the server keeps it open, and the whole exchange is over."""
        return self._keep and not self.transport.is_closing() and not self.transport.get_write_buffer_size()

    def is_quiet(self) -> bool:
        """Whether the server has sent nothing, and not closed it, since the loop last looked."""
        return not self._arrivals.poll(0)

    @cached_property
    def _arrivals(self) -> select.poll:
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return poll

    def abort(self) -> None:
        self._answer = None
        with suppress(RuntimeError):  # its loop is closed, and took the connection along
            self.transport.abort()

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._body: Body | None = None
        self._keep = False

    def fail(self, error: BaseException) -> None:
        """Ends the exchange and its connection."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.transport.abort()

    # -- of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio gives a Transport to a Protocol

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # there was no request
            self.transport.abort()
            return
        if self._body is None:
            self._head_size += len(data)
            if self._head_size > _MOST_HEAD_BYTES:
                self.fail(ConnectionBroken(f"the head of the answer is larger than {_MOST_HEAD_BYTES >> 20} MiB"))
                return
        try:
            self._parser.feed_data(data)
        except Exception as error:  # the parser's own, which are imported when there is one
            self._fail_to_parse(error)

    def _fail_to_parse(self, error: Exception) -> None:
        from httptools import HttpParserCallbackError, HttpParserUpgrade

        raised, self._raised = self._raised, None
        if isinstance(error, HttpParserUpgrade):
            self.fail(ConnectionBroken("the server switched to another protocol"))
        elif not isinstance(error, HttpParserCallbackError):
            self.fail(ConnectionBroken(f"not HTTP: {error}"))
        else:
            if isinstance(raised, ConnectionBroken):
                raised.__traceback__ = None  # it leads back here and would keep the body in memory
            self.fail(raised or error)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is None and self._body is not None and not self._has_length():
            try:
                self.on_message_complete()  # the end of the connection is the end of the body
            except Exception as failed:  # an error of the body or its listener
                self.fail(failed)
        else:
            self.fail(ConnectionBroken(f"the server closed the connection{f' ({error})' if error else ''}"))

    def _has_length(self) -> bool:
        return b"content-length" in self._headers or b"transfer-encoding" in self._headers

    # -- of httptools

    @_kept
    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():
            raise ConnectionBroken("a second answer to one request")  # the next request must not get the rest of it

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._body is None:  # not a trailer
            self._headers[name.lower()] = value

    @_kept
    def on_headers_complete(self) -> None:
        self._keep = self._parser.should_keep_alive()
        on_line = self._on_line if self._parser.get_status_code() == 200 else None
        self._body = Body(_text(self._headers.get(b"content-encoding", b"")), on_line)

    @_kept
    def on_body(self, part: bytes) -> None:
        assert self._body is not None
        self._body.feed(part)

    @_kept
    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer, say 103 Early Hints
            self._begin()
            return
        assert self._body is not None and self._answer is not None
        told = {} if status == 200 else {_text(name): _text(value) for name, value in self._headers.items()}
        self._answer.set_result(Answer(status, self._body.whole(), told))


def _text(value: bytes) -> str:
    return value.decode("latin-1")
