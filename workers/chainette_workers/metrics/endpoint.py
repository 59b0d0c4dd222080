"""The HTTP endpoint of a long-lived process: /metrics, and /sd if it watches the fleet. Binds to loopback by default."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from chainette.errors import RunError
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.seals import Seals
from chainette.utils.terminal_text import visible_line
from chainette_workers.metrics.address import MetricsEndpoint

__all__ = ["Route", "Unavailable", "serving", "targets"]

_log = logging.getLogger("chainette")

#: Returns (content type, body) for a path, given the Accept header of the request.
Route = Callable[[str], tuple[str, bytes]]

#: The most seconds from the connection of a client to the end of its answer, and the most bytes of its request.
_PATIENCE = 10.0
_MOST_BYTES = 16_384
#: The most clients at once; further ones are turned away.
_MOST_CLIENTS = 64
#: The most members in an answer to Prometheus, and the most characters of a label.
_MOST_TARGETS = 2_000
_LABEL = 200

_ADDRESS = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", re.ASCII)
_LOOPBACK = re.compile(r"(?:127(?:\.\d{1,3}){3}|localhost|\[::1\]):\d{1,5}", re.ASCII)


class Unavailable(Exception):
    """A route cannot answer now; the client gets status 503."""


@contextmanager
def serving(
    endpoint: MetricsEndpoint, routes: Mapping[str, Route], towards: tuple[str, int] = ("127.0.0.1", 9)
) -> Iterator[str]:
    """Serves the routes inside the `with` block; yields the address, `host:port`, under which others reach it.

    An endpoint on all interfaces is announced with the local address from which this machine reaches `towards`.

    Raises:
        RunError: the address is not available.
    """
    try:
        server = _Server((endpoint.host, endpoint.port), _handler(routes))
    except (OSError, OverflowError) as error:
        raise RunError(
            f"cannot serve metrics on {endpoint.host}:{endpoint.port}: {error}; pass --metrics-port 0 for a free port, "
            "or another --metrics-host"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{_reachable(endpoint.host, towards)}:{server.server_address[1]}"
    finally:
        with suppress(OSError):  # Linux notices it at once, other systems within 0.1 s
            server.socket.shutdown(socket.SHUT_RDWR)
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: A hanging scrape must not delay the end of the process.
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(_PATIENCE, _cut, (request,))
        deadline.daemon = True
        try:
            deadline.start()
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect."""


def _cut(connection: socket.socket) -> None:
    """Ends a connection, even if its client is still sending or does not read."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Bounded:
    """The lines of a request, which ends after `most` bytes."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._left = stream, most

    def readline(self, most: int) -> bytes:
        line: bytes = self._stream.readline(min(most, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._stream.close()


def _handler(routes: Mapping[str, Route]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def setup(self) -> None:
            super().setup()
            self.rfile = cast("Any", _Bounded(self.rfile, _MOST_BYTES))

        def do_GET(self) -> None:
            route = routes.get(urlsplit(self.path).path)
            if route is None:
                return self._answer(404, "text/plain; charset=utf-8", f"not found; paths: {', '.join(routes)}\n".encode())
            return self._answer(*_answered(route, self.headers.get("Accept", "")))

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing, because there is a scrape every few seconds."""

    return Handler


def _answered(route: Route, accept: str) -> tuple[int, str, bytes]:
    """(status, content type, body); an unexpected error of the route is logged."""
    try:
        return 200, *route(accept)
    except Unavailable as error:
        return 503, "text/plain; charset=utf-8", f"{error}\n".encode()
    except Exception:
        _log.exception("a scrape of the metrics failed")
        return 500, "text/plain; charset=utf-8", b"internal error; the log of this process has it\n"


def _reachable(host: str, towards: tuple[str, int]) -> str:
    """The host name or address under which others reach this machine."""
    if host not in ("", "0.0.0.0", "::"):  # noqa: S104 - the user chose it
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(towards)  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def targets(members: Mapping[str, Member], seals: Seals, *, anywhere: bool) -> bytes:
    """The answer to Prometheus's HTTP service discovery: processes with an endpoint on this machine, sealed, or anywhere.

    Its labels differ from those of the metrics.
    """

    def may_be_asked(member: Member) -> bool:
        allowed = _ADDRESS if anywhere or member.has_sealed_metrics(seals) else _LOOPBACK
        return allowed.fullmatch(member.metrics) is not None

    found = [(name, member) for name, member in sorted(members.items()) if may_be_asked(member)]
    return msgspec.json.encode(
        [{"targets": [member.metrics], "labels": _labels(name, member)} for name, member in found[:_MOST_TARGETS]]
    )


def _labels(name: str, member: Member) -> dict[str, str]:
    about = {"worker": name, "role": member.kind, "serves": member.names, "host": member.host}
    return {label: visible_line(text)[:_LABEL] for label, text in about.items() if text}
