"""A link to a server that fails on demand: slow, silent, cut, or losing replies only.

TCP's promises still hold: no connection ever goes on behind lost bytes. One that lost some is reset by `heal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from anyio.from_thread import start_blocking_portal

__all__ = ["FaultProxy"]

CHUNK = 65536


@dataclass(eq=False)
class _Link:
    """One client's connection and its twin to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    #: The client's last bytes; a watched word may begin in them.
    tail: bytes = b""
    #: The next reply is replaced by a reset.
    doomed: bool = False
    #: Replies were dropped.
    lossy: bool = False
    pumps: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        for pump in self.pumps:
            pump.cancel()
        _reset(self.client)
        _reset(self.server)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection so that its peer sees a reset, where the kind of socket has one."""
    with contextlib.suppress(OSError):
        if not writer.is_closing():
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class FaultProxy:
    """Listens on a free port of 127.0.0.1 in front of the server of `target` (a redis URL).

    Runs in a thread of its own. Its methods may be called from any thread; on return the fault is in force.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._links: set[_Link] = set()
        self._latency = 0.0
        self._refusing = False
        self._dropping = False
        self._watched = b""
        self._stack = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The target's URL by way of the proxy."""
        return f"redis://:{self._target.password or ''}@127.0.0.1:{self._port}/0"

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._portal.call(self._listen)
        self._stack.callback(self._portal.call, self._close)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def delay(self, seconds: float) -> None:
        """Each piece of data takes that much longer, each way."""
        self._portal.call(setattr, self, "_latency", seconds)

    def blackhole(self) -> None:
        """Nothing arrives and nothing breaks; `heal` delivers the held bytes, even of a client that gave up since."""
        self._portal.call(lambda: self._flowing.clear())

    def reset(self) -> None:
        """Cuts the live connections; new ones work."""
        self._portal.call(self._reset_all)

    def refuse(self) -> None:
        """Cuts the live connections, and every new one at once."""
        self._portal.call(self._refuse)

    def drop_replies(self) -> None:
        """Requests arrive and take effect; no reply comes back."""
        self._portal.call(self._drop)

    @property
    def lossy(self) -> bool:
        """Whether a live connection has lost a reply."""
        return self._portal.call(lambda: any(link.lossy for link in self._links))

    def lose_reply_to(self, word: bytes) -> None:
        """The next request that contains `word` takes effect; in place of its reply its connection is reset. Once."""
        self._portal.call(setattr, self, "_watched", word)

    def heal(self) -> None:
        """Ends every fault."""
        self._portal.call(self._heal)

    # -- in the proxy's thread

    async def _listen(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port: int = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        self._reset_all()
        await asyncio.gather(*(pump for link in self._links for pump in link.pumps), return_exceptions=True)

    def _reset_all(self) -> None:
        for link in self._links:
            link.reset()

    def _refuse(self) -> None:
        self._refusing = True
        self._reset_all()

    def _drop(self) -> None:
        self._dropping = True

    def _heal(self) -> None:
        self._latency, self._refusing, self._dropping, self._watched = 0.0, False, False, b""
        self._flowing.set()
        for link in self._links:
            if link.lossy:
                link.reset()

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            replies, server = await self._connect()
        except OSError:
            _reset(client)
            return
        link = _Link(client, server)
        link.pumps = [asyncio.create_task(self._requests(reader, link)), asyncio.create_task(self._replies(replies, link))]
        self._links.add(link)
        if self._refusing:
            link.reset()
        await asyncio.gather(*link.pumps, return_exceptions=True)
        client.close()
        server.close()
        self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.scheme == "unix":
            return await asyncio.open_unix_connection(unquote(self._target.path))
        return await asyncio.open_connection(self._target.hostname, self._target.port)

    async def _requests(self, reader: asyncio.StreamReader, link: _Link) -> None:
        try:
            while data := await self._read(reader):
                self._watch(link, data)
                link.server.write(data)
                await link.server.drain()
        finally:
            link.server.close()

    async def _replies(self, reader: asyncio.StreamReader, link: _Link) -> None:
        try:
            while data := await self._read(reader):
                if link.doomed:
                    link.reset()
                    break
                if self._dropping or link.lossy:
                    link.lossy = True
                    continue
                link.client.write(data)
                await link.client.drain()
        finally:
            link.client.close()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(CHUNK)
        await asyncio.sleep(self._latency)
        await self._flowing.wait()
        return data

    def _watch(self, link: _Link, data: bytes) -> None:
        word = self._watched
        if word and word in link.tail[max(0, len(link.tail) - len(word) + 1) :] + data:
            self._watched, link.doomed = b"", True
        link.tail = data
