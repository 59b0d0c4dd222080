"""Client: one HTTP exchange at a time, and everything that must stay secret.

The only file that uses aiohttp, which is imported where an engine opens. Guarantees: an exchange ends as
a Reply or a Failure, never as an aiohttp error; no text that leaves here holds a key, a password or a header value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainette.engine.config import EngineConfig, expand_secrets
from chainette.engine.http.endpoints import Address, BasePath, Endpoint, address
from chainette.engine.http.http_options import HttpOptions
from chainette.engine.http.replies import Failure, Fault
from chainette.errors import EngineConfigError, EngineUnavailable

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Client", "OnLine", "Reply"]

#: Gets each line of a streamed answer as it comes, without its end.
OnLine = Callable[[bytes], None]

#: Shorter values stay visible; hiding them would hide every "1" of a message.
_SHORTEST_SECRET = 4


@dataclass(frozen=True)
class Reply:
    """A server's answer to one HTTP request."""

    endpoint: Endpoint
    #: The URL as people may see it.
    shown: str
    status: int
    data: bytes
    retry_after: str | None
    location: str | None


class Client:
    """The connections of one engine."""

    def __init__(self, config: EngineConfig, connect_timeout: float) -> None:
        assert isinstance(config.options, HttpOptions)
        self._config = config
        self._headers = config.options.headers
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession | None = None
        self._secrets: tuple[str, ...] = ()

    def connect(self, declared: Iterable[str], base_path: BasePath, default_keys: Mapping[str, str]) -> list[Address]:
        """Reads the environment and makes the connection pool; nothing is sent yet.

        `default_keys` names the variable of the API key per host, where the configuration names none.

        Raises:
            EngineConfigError: an environment variable is missing, or an endpoint is not a URL.
        """
        import aiohttp
        from multidict import CIMultiDict

        addresses = [address(self._config.name, text, base_path) for text in declared]
        own = {name: expand_secrets(value) for name, value in self._headers.items()}
        key = self._key(addresses, default_keys)
        urls = [secret for where in addresses for secret in where.secrets]
        self._secrets = _longest_first([key, *own.values(), *urls])
        headers = CIMultiDict({"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}))
        headers.update(own)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )
        return addresses

    def obstacles(self, declared: Iterable[str], base_path: BasePath, default_keys: Mapping[str, str]) -> Iterator[str]:
        """What `connect` would raise, all of it."""
        addresses = []
        for text in declared:
            try:
                addresses.append(address(self._config.name, text, base_path))
            except EngineConfigError as error:
                yield str(error)
        for value in self._headers.values():
            try:
                expand_secrets(value)
            except EngineConfigError as error:
                yield str(error)
        try:
            self._key(addresses, default_keys)
        except EngineConfigError as error:
            yield str(error)

    async def close(self) -> None:
        """Closes the connections; safe to repeat."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def hide(self, text: str) -> str:
        """The text without any secret of this engine."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def send(
        self, endpoint: Endpoint, path: str, body: bytes | None, seconds: float, on_line: OnLine | None = None
    ) -> Reply | Failure:
        """POSTs a body, or GETs where there is none. The lines of a good answer go to `on_line` before it is whole.

        Raises:
            EngineUnavailable: the engine is not open.
        """
        import aiohttp

        if self._session is None:
            raise EngineUnavailable(f"engine {self._config.name!r} is not open")
        where = endpoint.address
        shown = where.shown + path
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                where.join(path),
                data=body,
                headers=where.headers,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, self._connect_timeout)),
                allow_redirects=False,
            ) as response:
                if on_line is not None and response.status == 200:
                    data = await _read_lines(response.content, on_line)
                else:
                    data = await response.read()
                headers = response.headers
                return Reply(endpoint, shown, response.status, data, headers.get("Retry-After"), headers.get("Location"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Failure(Fault.UNREACHABLE, f"{shown} cannot be reached ({self.hide(str(error))})")
        except TimeoutError:
            return Failure(Fault.TIMEOUT, f"{shown} gave no answer in {seconds:g} s")
        except (aiohttp.ClientError, ConnectionError) as error:
            return Failure(Fault.BROKEN, f"{shown} broke the exchange ({type(error).__name__}: {self.hide(str(error))})")

    def _key(self, addresses: Sequence[Address], default_keys: Mapping[str, str]) -> str:
        """The API key, "" where none is asked for.

        Raises:
            EngineConfigError: its variable is not set.
        """
        defaults = {default_keys.get(where.url.host or "") for where in addresses}
        name = self._config.api_key_env or (defaults.pop() if len(defaults) == 1 else None)
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise EngineConfigError(
                f"engine {self._config.name!r}: the environment variable {name} is not set here; it must hold the API key"
            )
        return key


async def _read_lines(content: aiohttp.StreamReader, on_line: OnLine) -> bytes:
    """The whole body; its lines are passed on as they come, however long they are."""
    parts: list[bytes] = []
    rest = b""
    async for part in content.iter_any():
        parts.append(part)
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            on_line(line.rstrip(b"\r"))
    if rest:
        on_line(rest)
    return b"".join(parts)


def _longest_first(secrets: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True))
