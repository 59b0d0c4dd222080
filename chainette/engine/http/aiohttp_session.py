"""AiohttpSession: carries requests with aiohttp, for proxies or if httptools is not installed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from chainette.engine.http.carrier import Answer, Body, Carrier, ConnectionBroken, OnLine, Unreachable, system_tls
from chainette.engine.http.endpoints import Address

if TYPE_CHECKING:
    import aiohttp

__all__ = ["AiohttpSession"]


class AiohttpSession(Carrier):
    """One server through aiohttp."""

    def __init__(self, where: Address, headers: dict[str, str], connect_timeout: float, proxy: str | None) -> None:
        self._where = where
        self._headers = {"Accept-Encoding": "gzip"} | headers
        self._connect_timeout = connect_timeout
        self._proxy = proxy
        self._open: tuple[aiohttp.ClientSession, asyncio.AbstractEventLoop] | None = None

    async def exchange(self, path: str, body: bytes | None, seconds: float, on_line: OnLine | None) -> Answer:
        import aiohttp

        session = await self._session()
        try:
            async with session.request(
                "GET" if body is None else "POST",
                self._where.join(path),
                data=body,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, self._connect_timeout)),
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                data = await _read(response, on_line if response.status == 200 else None)
                return Answer(response.status, data, {name.lower(): value for name, value in response.headers.items()})
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(str(error)) from error
        except TimeoutError:
            raise
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ConnectionBroken(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        if self._open is not None:
            session, self._open = self._open[0], None
            with suppress(RuntimeError):  # its loop is closed, and took the connections along
                await session.close()

    async def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        loop = asyncio.get_running_loop()
        if self._open is not None and self._open[1] is loop:
            return self._open[0]
        await self.close()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=system_tls() if self._where.url.scheme == "https" else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            auto_decompress=False,  # it would not stop at the limit
        )
        self._open = session, loop
        return session


async def _read(response: aiohttp.ClientResponse, on_line: OnLine | None) -> bytes:
    body = Body(response.headers.get("Content-Encoding", ""), on_line)
    async for part in response.content.iter_any():
        body.feed(part)
    return body.whole()
