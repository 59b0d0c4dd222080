"""The HTTP endpoint of a long-lived process: /metrics, and /sd where it knows the fleet. Loopback unless told otherwise."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import msgspec

from chainette.errors import RunError
from chainette.fleet.protocol.member_fields import Member

__all__ = ["Endpoint", "Route", "Unavailable", "serving", "targets"]

#: What a path answers with, given the request's Accept: content type and body.
Route = Callable[[str], tuple[str, bytes]]

#: Seconds that a client may take to say what it wants.
_PATIENCE = 10.0


class Unavailable(Exception):
    """A route has no answer now."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where a process's metrics are to be had."""

    host: str = "127.0.0.1"
    #: 0 takes a free one.
    port: int = 0


@contextmanager
def serving(endpoint: Endpoint, routes: Mapping[str, Route], towards: tuple[str, int] = ("127.0.0.1", 9)) -> Iterator[str]:
    """Answers on the endpoint until the end; yields its address, `host:port`, as others reach it.

    One that listens everywhere is known by the address from which it reaches what lies `towards`.

    Raises:
        RunError: the address cannot be had.
    """
    try:
        server = _Server((endpoint.host, endpoint.port), _handler(routes))
    except (OSError, OverflowError) as error:
        raise RunError(
            f"metrics: {endpoint.host}:{endpoint.port} cannot be had: {error}; give --metrics-port 0 for a free port, "
            "or another --metrics-host"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{_reachable(endpoint.host, towards)}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: Scrapes that hang do not hold the process's end up.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is its own affair."""


def _handler(routes: Mapping[str, Route]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            route = routes.get(urlsplit(self.path).path)
            if route is None:
                return self._answer(404, "text/plain; charset=utf-8", f"here: {', '.join(routes)}\n".encode())
            try:
                return self._answer(200, *route(self.headers.get("Accept", "")))
            except Unavailable as error:
                return self._answer(503, "text/plain; charset=utf-8", f"{error}\n".encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are no news."""

    return Handler


def _reachable(host: str, towards: tuple[str, int]) -> str:
    """The host as others know it."""
    if host not in ("", "0.0.0.0", "::"):  # noqa: S104 - what the user asked for
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(towards)  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def targets(members: Mapping[str, Member]) -> bytes:
    """Prometheus's HTTP service discovery of the processes that have an endpoint. No label is one of our metrics' own."""
    return msgspec.json.encode(
        [
            {"targets": [member.metrics], "labels": {"worker": name, "role": member.kind, **_about(member)}}
            for name, member in sorted(members.items())
            if member.metrics
        ]
    )


def _about(member: Member) -> dict[str, str]:
    return {label: text for label, text in (("serves", member.names), ("host", member.host)) if text}
