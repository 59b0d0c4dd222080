"""AiohttpSession: carries requests with aiohttp, for proxies or if httptools is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from chainette.engine.http.endpoints import Address
from chainette.engine.http.exchange import Answer, Body, Broken, Carrier, OnLine, Unreachable, system_tls

if TYPE_CHECKING:
    import aiohttp

__all__ = ["AiohttpSession"]


class AiohttpSession(Carrier):
    """One server through aiohttp."""

    def __init__(self, where: Address, headers: Mapping[str, str], connect_timeout: float, proxy: str | None) -> None:
        import aiohttp

        self._where = where
        self._connect_timeout = connect_timeout
        self._proxy = proxy
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=system_tls() if where.url.scheme == "https" else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )

    async def exchange(self, path: str, body: bytes | None, seconds: float, on_line: OnLine | None) -> Answer:
        import aiohttp

        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                self._where.join(path),
                data=body,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, self._connect_timeout)),
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                data = await _read(response, on_line if response.status == 200 else None)
                headers = response.headers
                return Answer(response.status, data, headers.get("Retry-After"), headers.get("Location"))
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(str(error)) from error
        except TimeoutError:
            raise
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Broken(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._session.close()


async def _read(response: aiohttp.ClientResponse, on_line: OnLine | None) -> bytes:
    body = Body(on_line)
    async for part in response.content.iter_any():
        body.feed(part)
    return body.whole()
