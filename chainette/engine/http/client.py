"""Client: the exchanges of one engine, and its secrets.

Guarantees: an exchange ends as a Reply or a Failure, never as an error of the underlying library; no text that
leaves here contains a key, a password or a header value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from chainette.engine.config import EngineConfig, expand_secrets
from chainette.engine.http.carrier import Carrier, ConnectionBroken, OnLine, Unreachable
from chainette.engine.http.connections import Connections
from chainette.engine.http.endpoints import Address, BasePath, Endpoint, address
from chainette.engine.http.error_replies import Failure, Fault
from chainette.engine.http.http_options import HttpOptions
from chainette.errors import EngineConfigError, EngineUnavailable

__all__ = ["Client", "Reply"]

#: Shorter values stay visible; hiding them would hide every "1" of a message.
_SHORTEST_SECRET = 4

#: Headers that belong to the connection or to the body, and are ours to set.
_OURS = frozenset(
    "connection content-length expect keep-alive proxy-connection te trailer transfer-encoding upgrade".split()  # noqa: SIM905
)
#: A name of a header (RFC 9110, 5.1).
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_UNFIT = "a line break, a control character or bytes that are not UTF-8"


class Reply(msgspec.Struct, frozen=True):
    """A server's answer to one HTTP request."""

    endpoint: Endpoint
    #: The URL without secrets.
    shown: str
    status: int
    data: bytes
    #: By their names in lower case; none of a 200.
    headers: Mapping[str, str]


class Client:
    """The connections of one engine."""

    def __init__(self, config: EngineConfig, connect_timeout: float) -> None:
        assert isinstance(config.options, HttpOptions)
        self._config = config
        self._headers = config.options.headers
        self._connect_timeout = connect_timeout
        #: Per address; empty unless the engine is open.
        self._carriers: dict[Address, Carrier] = {}
        self._secrets: tuple[str, ...] = ()

    def connect(self, declared: Iterable[str], base_path: BasePath, default_keys: Mapping[str, str]) -> list[Address]:
        """Reads the environment and prepares the connections; nothing is sent yet.

        `default_keys` names the variable of the API key per host, for engines whose configuration names none.

        Raises:
            EngineConfigError: an environment variable is missing or unusable, or an endpoint is not a URL.
        """
        addresses = [address(self._config.name, text, base_path) for text in declared]
        own = {name: self._own_header(name, value) for name, value in self._headers.items()}
        key = self._key(addresses, default_keys)
        proxies = {where: self._proxy(where) for where in addresses}
        urls = [secret for where in addresses for secret in where.secrets]
        passwords = [unquote(urlsplit(proxy).password or "") for proxy in proxies.values() if proxy]
        self._secrets = _longest_first([key, *own.values(), *urls, *passwords])
        common = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        for where, proxy in proxies.items():
            self._carriers[where] = self._carrier(where, _merged(common, own, where.headers), proxy)
        return addresses

    def obstacles(self, declared: Iterable[str], base_path: BasePath, default_keys: Mapping[str, str]) -> Iterator[str]:
        """All errors that `connect` would raise."""
        addresses = []
        for text in declared:
            try:
                addresses.append(address(self._config.name, text, base_path))
                self._proxy(addresses[-1])
            except EngineConfigError as error:
                yield str(error)
        for name, value in self._headers.items():
            try:
                self._own_header(name, value)
            except EngineConfigError as error:
                yield str(error)
        try:
            self._key(addresses, default_keys)
        except EngineConfigError as error:
            yield str(error)

    async def close(self) -> None:
        """Closes the connections; safe to repeat."""
        carriers, self._carriers = self._carriers, {}
        for carrier in carriers.values():
            await carrier.close()

    def hide(self, text: str) -> str:
        """The text without any secret of this engine."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def send(
        self, endpoint: Endpoint, path: str, body: bytes | None, seconds: float, on_line: OnLine | None = None
    ) -> Reply | Failure:
        """POSTs a body, or GETs if there is none. The lines of a 200 go to `on_line` as they arrive.

        Raises:
            EngineUnavailable: the engine is not open.
        """
        where = endpoint.address
        carrier = self._carriers.get(where)
        if carrier is None:
            raise EngineUnavailable(f"engine {self._config.name!r} is not open")
        shown = where.shown + path
        try:
            answer = await carrier.exchange(path, body, seconds, on_line)
        except Unreachable as error:
            return Failure(Fault.UNREACHABLE, f"{shown} cannot be reached ({self.hide(str(error))})")
        except TimeoutError:
            return Failure(Fault.TIMEOUT, f"{shown} gave no answer in {seconds:g} s")
        except ConnectionBroken as error:
            return Failure(Fault.BROKEN, f"{shown} broke the exchange ({self.hide(str(error))})")
        return Reply(endpoint, shown, answer.status, answer.data, answer.headers)

    def _carrier(self, where: Address, headers: dict[str, str], proxy: str | None) -> Carrier:
        if proxy is None and find_spec("httptools") is not None:
            return Connections(where, headers, self._connect_timeout)
        from chainette.engine.http.aiohttp_session import AiohttpSession

        return AiohttpSession(where, headers, self._connect_timeout, proxy)

    def _proxy(self, where: Address) -> str | None:
        """The proxy the environment names for a server; none for this machine.

        Raises:
            EngineConfigError: it is not an HTTP proxy.
        """
        host = where.url.host or ""
        proxies = getproxies()
        proxy = proxies.get(where.url.scheme) or proxies.get("all")
        if proxy is None or _is_loopback(host) or _goes_directly(host, where.url.port, proxies.get("no", "")):
            return None
        proxy = (proxy if "://" in proxy else f"http://{proxy}").strip()
        scheme = proxy.partition("://")[0]
        if scheme not in ("http", "https"):
            variable = f"{where.url.scheme.upper()}_PROXY"
            raise EngineConfigError(
                f"engine {self._config.name!r}: the environment variable {variable} names a {scheme} proxy, and only HTTP "
                f"proxies are supported; write {variable}=http://HOST:PORT, or add {host} to NO_PROXY"
            )
        return proxy

    def _own_header(self, name: str, declared: str) -> str:
        """A header of the configuration, with `${NAME}` read from the environment.

        Raises:
            EngineConfigError: a variable is missing, or the header is not ours to send or cannot be sent.
        """
        if not _NAME.fullmatch(name):
            raise EngineConfigError(
                f"engine {self._config.name!r}: {name!r} is not a name of a header; use letters, digits and hyphens only"
            )
        if name.lower() in _OURS:
            raise EngineConfigError(
                f"engine {self._config.name!r}: the header {name!r} belongs to the connection; remove it from headers"
            )
        value = expand_secrets(declared)
        if not _fits_header(value):
            raise EngineConfigError(f"engine {self._config.name!r}: header {name!r} holds {_UNFIT}")
        return value

    def _key(self, addresses: Sequence[Address], default_keys: Mapping[str, str]) -> str:
        """The API key, "" if none is needed.

        Raises:
            EngineConfigError: its variable is not set, or does not hold a key.
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
        if not _fits_header(key):
            raise EngineConfigError(
                f"engine {self._config.name!r}: the environment variable {name} holds {_UNFIT}; "
                "it must hold the API key and nothing else"
            )
        return key


def _merged(*layers: Mapping[str, str]) -> dict[str, str]:
    """The headers of all layers; a later one replaces an earlier one of the same name, in any case."""
    merged = {name.lower(): (name, value) for layer in layers for name, value in layer.items()}
    return dict(merged.values())


def _fits_header(value: str) -> bool:
    return not any(
        (character < " " and character != "\t") or character == "\x7f" or "\ud800" <= character <= "\udfff"
        for character in value
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _goes_directly(host: str, port: int | None, listed: str) -> bool:
    """Whether NO_PROXY lists a server: by host, domain, HOST:PORT, or a network such as 10.0.0.0/8."""
    if proxy_bypass(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") or proxy_bypass(host):
        return True
    try:
        asked = ip_address(host)
    except ValueError:
        return False
    return any(asked in network for entry in listed.split(",") if (network := _network(entry.strip())) is not None)


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _longest_first(secrets: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True))
