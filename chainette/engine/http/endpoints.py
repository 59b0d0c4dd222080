"""Endpoints: base URLs of one engine, and the choice of one for the next request.

Guarantees: among the endpoints that answer, the one with the fewest requests in flight is taken; one that
does not answer only gets an occasional probe; a URL is only ever shown without user, password and query.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from chainette.engine.config import expand_secrets, public_url
from chainette.engine.http.breaker import Breaker, State
from chainette.engine.http.timing import Policy, Timing
from chainette.errors import EngineConfigError, EngineUnavailable

if TYPE_CHECKING:
    from yarl import URL

__all__ = ["Address", "BasePath", "Endpoint", "Pool", "address", "shown"]

#: Completes the path of a base URL as the protocol requires.
BasePath = Callable[[str], str]

_SLASHES = re.compile("//+")


@dataclass(frozen=True, repr=False, eq=False)
class Address:
    """The target of requests; holds secrets, so it has no repr. Two are never equal."""

    url: URL
    #: The URL without secrets.
    shown: str
    #: The user and password of the URL, as headers.
    headers: dict[str, str]
    #: Parts that no message may contain.
    secrets: tuple[str, ...]

    def join(self, path: str) -> URL:
        """The URL of an operation; a query of the base URL is kept."""
        return self.url.with_path(self.url.raw_path.rstrip("/") + path, encoded=True, keep_query=True)


def shown(text: str, base_path: BasePath = str) -> str:
    """A declared URL without user, password, query; environment variables unexpanded."""
    parts = urlsplit(public_url(text.strip()))
    path = parts.path if "${" in text else base_path(_SLASHES.sub("/", parts.path))
    return parts._replace(path=path.rstrip("/")).geturl()


def address(engine: str, declared: str, base_path: BasePath = str) -> Address:
    """The address of a declared URL, `${NAME}` read from the environment.

    Raises:
        EngineConfigError: it is not an http(s) URL.
    """
    from yarl import URL

    text = expand_secrets(declared).strip()
    visible = shown(declared, base_path)
    try:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", text):
            raise ValueError
        url = URL(text).with_user(None).with_fragment(None)
    except ValueError:
        raise EngineConfigError(
            f"engine {engine!r}: endpoint {visible!r} is not a URL that can be asked; write http://HOST:PORT or https://HOST"
        ) from None
    url = url.with_path(base_path(_SLASHES.sub("/", parts.path)).rstrip("/") or "/", encoded=True, keep_query=True)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    values = [password or user, *(value for _, value in parse_qsl(parts.query))]
    secrets = (token if user else "", *values, *map(quote, values), *map(quote_plus, values))
    return Address(url, visible, {"Authorization": f"Basic {token}"} if user else {}, secrets)


class Endpoint:
    """An address in use."""

    def __init__(self, where: Address, breaker: Breaker) -> None:
        self.address = where
        self.breaker = breaker
        self.in_flight = 0
        #: Number of requests it got, so that equal endpoints take turns.
        self.given = 0
        #: The end of its pause, and the end of the pause that the server asked for.
        self.held_until = self.asked_until = 0.0
        #: Why it last failed.
        self.words = ""

    def ready_at(self) -> float:
        """When it may take a request; infinity during a probe."""
        match self.breaker.state:
            case State.CLOSED:
                return self.held_until
            case State.OPEN:
                return max(self.held_until, self.breaker.probe_at)
            case State.PROBING:
                return float("inf")


class Pool:
    """The endpoints of one engine."""

    def __init__(self, engine: str, addresses: Sequence[Address], policy: Policy, timing: Timing) -> None:
        self._engine = engine
        self._policy = policy
        self._timing = timing
        self._changed: asyncio.Future[None] | None = None
        self.endpoints = [Endpoint(where, Breaker(policy, timing)) for where in addresses]
        #: When any endpoint last gave a sign of life.
        self.alive_at = timing.clock()

    def take(self, avoid: str = "") -> tuple[Endpoint, bool] | None:
        """The endpoint for one request, and whether the request is its probe; None while none may be used. The one that is
        shown as `avoid` is taken only if there is no other."""
        usable = [endpoint for endpoint in self.endpoints if self._usable(endpoint)]
        if not usable:
            return None
        if len(usable) == 1:
            endpoint = usable[0]
        else:
            endpoint = min(usable, key=lambda each: (each.address.shown == avoid, each.in_flight, each.given))
        endpoint.in_flight += 1
        endpoint.given += 1
        return endpoint, endpoint.breaker.enter()

    def is_usable(self) -> bool:
        """Whether any endpoint may take a request now."""
        return any([self._usable(endpoint) for endpoint in self.endpoints])  # noqa: C419 - a list of few is faster

    def is_silent(self) -> bool:
        """Whether every endpoint is out of use because it failed."""
        return all(endpoint.breaker.state is not State.CLOSED for endpoint in self.endpoints)

    def answered(self, endpoint: Endpoint, probe: bool, words: str = "") -> None:
        """The endpoint is alive: it answered the request, or gave a reason why it does not answer now."""
        endpoint.words = words
        self.alive_at = self._timing.clock()
        endpoint.breaker.succeeded(probe)
        self._give(endpoint, probe)

    def failed(self, endpoint: Endpoint, probe: bool, words: str, gone: bool) -> None:
        """The endpoint failed; `gone` ejects it at once."""
        endpoint.words = words
        if gone:
            self.eject(endpoint, words)
        else:
            endpoint.breaker.failed(probe)
        self._give(endpoint, probe)

    def abandoned(self, endpoint: Endpoint, probe: bool, *, alive: bool = False) -> None:
        """The request was cancelled, or its failure says nothing about the endpoint, except perhaps that it is `alive`."""
        if alive:
            self.alive_at = self._timing.clock()
        endpoint.breaker.abandoned(probe)
        self._give(endpoint, probe)

    def eject(self, endpoint: Endpoint, words: str) -> None:
        """Takes an endpoint out of use until a probe succeeds; simultaneous failures count once."""
        endpoint.words = words
        if endpoint.breaker.state is not State.OPEN:
            endpoint.breaker.trip()

    def hold(self, endpoint: Endpoint, seconds: float) -> None:
        """Sends an endpoint nothing for as long as it asked, or for a little more than the patience: present requests then give
        up at once, and later ones find out whether it still asks for so long."""
        now = self._timing.clock()
        endpoint.asked_until = max(endpoint.asked_until, now + seconds)
        endpoint.held_until = max(endpoint.held_until, now + min(seconds, self._policy.patience + 1))

    async def ready(self, asked_at: float) -> None:
        """Waits until some endpoint may take a request.

        Raises:
            EngineUnavailable: none answered any request for the patience of the policy, or it is known that
                none will in time.
        """
        while not self.is_usable():
            deadline = max(asked_at, self.alive_at) + self._policy.patience
            now = self._timing.clock()
            next_at = min(endpoint.ready_at() for endpoint in self.endpoints)
            held = all(endpoint.held_until > deadline for endpoint in self.endpoints)
            if now >= deadline or held:
                raise EngineUnavailable(self._why())
            await self._change_within(min(next_at, deadline) - now)

    def _usable(self, endpoint: Endpoint) -> bool:
        return endpoint.breaker.admits() and (not endpoint.held_until or endpoint.held_until <= self._timing.clock())

    def _give(self, endpoint: Endpoint, probe: bool) -> None:
        endpoint.in_flight -= 1
        if self._changed is not None and (probe or self.is_usable()):
            self._changed.set_result(None)
            self._changed = None

    async def _change_within(self, seconds: float) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        timer = asyncio.ensure_future(self._timing.sleep(max(seconds, 0.0)))
        try:
            await asyncio.wait((timer, self._changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    def _why(self) -> str:
        now = self._timing.clock()
        said = "; ".join(self._said(endpoint, now) for endpoint in self.endpoints)
        return f"engine {self._engine!r}: no endpoint answers: {said}"

    def _said(self, endpoint: Endpoint, now: float) -> str:
        if endpoint.held_until > now:
            return f"{endpoint.address.shown} asked to wait {endpoint.asked_until - now:.0f} s ({endpoint.words})"
        return f"{endpoint.address.shown}: {endpoint.words or 'a try is under way'}"
