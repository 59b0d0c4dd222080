"""One exchange over either library: bodies of every framing, connections that are kept or lost, TLS, proxies, limits."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from chainette.engine.config import make_config
from chainette.engine.http.breaker import Breaker
from chainette.engine.http.carrier import MOST_BYTES, OnLine
from chainette.engine.http.client import Client, Reply
from chainette.engine.http.endpoints import Endpoint
from chainette.engine.http.error_replies import Failure, Fault
from chainette.engine.http.timing import Policy, Timing
from chainette.utils.event_loop import run_loop
from tests.support.patience import LONG
from tests.support.web_proxy import web_proxy

pytestmark = pytest.mark.usefixtures("carrier")


def run(main: Coroutine[Any, Any, None]) -> None:
    """On the loop that runs use, which is uvloop if it is installed."""
    run_loop(asyncio.wait_for, main, LONG)


class Raw:
    """A server that answers each request with scripted bytes; the connection stays open unless `close` is set."""

    def __init__(self, *parts: bytes, close: bool = False) -> None:
        self.parts = parts
        self.close = close
        self.url = ""
        #: The first lines and headers of requests.
        self.heads: list[str] = []
        self.connections = 0
        #: Set when a request comes, when a client hangs up, and when the server has closed a connection.
        self.came, self.left, self.closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head.decode())
                self.came.set()
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                for part in self.parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.closed.set()


@asynccontextmanager
async def serving(raw: Raw, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Raw]:
    server = await asyncio.start_server(raw.serve, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    raw.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/v1"
    try:
        yield raw
    finally:
        server.close()


class Asking:
    """A client of one server."""

    def __init__(self, url: str, **keys: Any) -> None:
        self.client = Client(make_config("llm", "m", "openai", endpoint=url, **keys), 5.0)
        [where] = self.client.connect([url], str, {})
        self.endpoint = Endpoint(where, Breaker(Policy(), Timing()))

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, seconds: float = LONG, on_line: OnLine | None = None) -> Reply | Failure:
        return await self.client.send(self.endpoint, "/ask", b"{}", seconds, on_line)

    async def data(self, on_line: OnLine | None = None) -> bytes:
        reply = await self.ask(on_line=on_line)
        assert isinstance(reply, Reply), reply
        return reply.data

    async def failure(self, seconds: float = LONG) -> Failure:
        failure = await self.ask(seconds)
        assert isinstance(failure, Failure), failure
        return failure


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwhol\r\n2\r\ne!\r\n0\r\n\r\n"
GZIPPED = gzip.compress(b"whole!")


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"whole!"),
        CHUNKED,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok(b"whole!"),
        ok(GZIPPED, "Content-Encoding: gzip"),
        ok(zlib.compress(b"whole!"), "Content-Encoding: deflate"),
    ],
    ids=["length", "chunks", "after an interim answer", "gzip", "deflate"],
)
@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "at once"])
def test_an_answer_arrives_whole_and_its_connection_is_used_again(answer: bytes, size: int) -> None:
    async def main() -> None:
        raw = Raw(*(answer[start : start + size] for start in range(0, len(answer), size)))
        async with serving(raw), Asking(raw.url) as asking:
            assert [await asking.data() for _ in range(3)] == [b"whole!"] * 3
        assert raw.connections == 1

    run(main())


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def main() -> None:
        async with serving(Raw(b"HTTP/1.1 200 OK\r\n\r\nwho", b"le!", close=True)) as raw, Asking(raw.url) as asking:
            assert [await asking.data() for _ in range(2)] == [b"whole!"] * 2
            assert raw.connections == 2

    run(main())


@pytest.mark.parametrize("said", [True, False])
def test_a_connection_that_the_server_closed_is_replaced(said: bool) -> None:
    async def main() -> None:
        raw = Raw(ok(b"whole!", *["Connection: close"][:said]), close=True)
        async with serving(raw), Asking(raw.url) as asking:
            for count in (1, 2, 3):
                assert await asking.data() == b"whole!"
                assert raw.connections == count
                await raw.closed.wait()
                raw.closed.clear()
                for _ in range(3):  # the loop hears of the end at its next look
                    await asyncio.sleep(0)

    run(main())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", ""),
        (CHUNKED[:-7], ""),
        (b"", ""),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ""),
        (ok(b"plain", "Content-Encoding: gzip"), ""),
        (lambda: ok(gzip.compress(bytes(MOST_BYTES + 1)), "Content-Encoding: gzip"), "larger than 64 MiB"),
        (lambda: ok(bytes(MOST_BYTES + 1)), "larger than 64 MiB"),
    ],
    ids=["half", "half of chunks", "nothing", "not HTTP", "not gzip", "bomb", "too large"],
)
def test_an_answer_that_is_not_whole_or_too_large_is_broken(answer: bytes | Callable[[], bytes], words: str) -> None:
    """Large ones are made here: every process that collects the tests would hold them."""

    async def main() -> None:
        async with (
            serving(Raw(answer if isinstance(answer, bytes) else answer(), close=True)) as raw,
            Asking(raw.url) as asking,
        ):
            failure = await asking.failure()
            assert failure.fault is Fault.BROKEN
            assert words in failure.words

    run(main())


def test_an_answer_that_is_too_large_is_broken_although_the_run_began_inside_an_except() -> None:
    async def main() -> None:
        async with serving(Raw(ok(bytes(MOST_BYTES + 1)), close=True)) as raw, Asking(raw.url) as asking:
            assert "larger than 64 MiB" in (await asking.failure()).words

    try:
        raise LookupError("another one")
    except LookupError:
        run(main())


def test_lines_are_told_as_they_come_and_an_error_of_the_listener_is_raised_itself() -> None:
    class Stop(Exception):
        pass

    def stop(line: bytes) -> None:
        raise Stop

    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n"
        async with serving(Raw(head + b"one\r\ntw", b"o\nthree")) as raw, Asking(raw.url) as asking:
            lines: list[bytes] = []
            assert await asking.data(lines.append) == b"one\r\ntwo\nthree"
            assert lines == [b"one", b"two", b"three"]
            with pytest.raises(Stop):
                await asking.data(stop)
            await raw.left.wait()
            assert await asking.data() == b"one\r\ntwo\nthree"

    run(main())


def test_a_request_that_is_cancelled_or_late_closes_its_connection() -> None:
    async def main() -> None:
        async with serving(Raw()) as raw, Asking(raw.url) as asking:
            waiting = asyncio.create_task(asking.ask())
            await raw.came.wait()
            waiting.cancel()
            await raw.left.wait()
            raw.left.clear()
            assert (await asking.failure(0.05)).fault is Fault.TIMEOUT
            await raw.left.wait()

    run(main())


@pytest.mark.parametrize("carrier", ["httptools"], indirect=True)  # aiohttp is lenient here
@pytest.mark.parametrize("missing", [0, 6, 12, 35], ids=["all of it", "no body", "half a head", "half a line"])
def test_bytes_that_nobody_asked_for_answer_no_request(missing: int) -> None:
    forged = ok(b"forged")

    async def main() -> None:
        raw = Raw(ok(b"whole!") + forged[: len(forged) - missing])
        async with serving(raw), Asking(raw.url) as asking:
            assert [await asking.data() for _ in range(3)] == [b"whole!"] * 3

    run(main())


@pytest.mark.parametrize("carrier", ["httptools"], indirect=True)
@pytest.mark.parametrize("sent", [b"", ok(b"forged")], ids=["its end", "another answer"])
def test_a_connection_is_not_used_again_if_it_holds_something_that_the_loop_has_not_seen(sent: bytes) -> None:
    async def answer(listening: socket.socket) -> socket.socket:
        loop = asyncio.get_running_loop()
        served, _ = await loop.sock_accept(listening)
        await loop.sock_recv(served, 1 << 16)
        await loop.sock_sendall(served, ok(b"whole!"))
        return served

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(0.0)
            async with Asking(f"http://127.0.0.1:{listening.getsockname()[1]}") as asking:
                served = asyncio.create_task(answer(listening))
                assert await asking.data() == b"whole!"
                with await served as first:
                    first.sendall(sent) if sent else first.shutdown(socket.SHUT_WR)
                    served = asyncio.create_task(answer(listening))
                    assert await asking.data() == b"whole!"  # begins before the loop looks again
                    (await served).close()

    run(main())


@pytest.mark.parametrize("carrier", ["httptools"], indirect=True)
def test_a_connection_whose_request_was_answered_unread_is_closed_at_once() -> None:
    may_read, has_read = asyncio.Event(), asyncio.Event()
    length = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal length
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await may_read.wait()
        with suppress(ConnectionError):
            while part := await reader.read(1 << 20):
                length += len(part)
        writer.close()
        has_read.set()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with Asking(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as asking:
            reply = await asking.client.send(asking.endpoint, "/ask", bytes(MOST_BYTES), LONG)
            assert isinstance(reply, Reply) and reply.status == 413
            may_read.set()
            await has_read.wait()
            assert length < MOST_BYTES
        server.close()

    run(main())


@pytest.mark.parametrize("carrier", ["httptools"], indirect=True)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ok(GZIPPED[:-6], "Content-Encoding: gzip"), "ended too early"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + GZIPPED[:-6], "ended too early"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + bytes(2 << 20).replace(b"\0", b"x"), "head of the answer is larger than 1 MiB"),
    ],
    ids=["half of gzip", "half of gzip without a length", "another protocol", "long head"],
)
def test_a_broken_answer_is_told_as_such_and_not_waited_for(answer: bytes, words: str) -> None:
    async def main() -> None:
        async with serving(Raw(answer, close=True)) as raw, Asking(raw.url) as asking:
            assert words in (await asking.failure()).words

    run(main())


@pytest.mark.parametrize("carrier", ["httptools"], indirect=True)
def test_compressed_streams_that_follow_each_other_are_one_body() -> None:
    async def main() -> None:
        body = gzip.compress(b"who") + gzip.compress(b"le!")
        async with serving(Raw(ok(body, "Content-Encoding: gzip"))) as raw, Asking(raw.url) as asking:
            assert await asking.data() == b"whole!"
        async with serving(Raw(ok(GZIPPED + b"more", "Content-Encoding: gzip"))) as raw, Asking(raw.url) as asking:
            assert (await asking.failure()).fault is Fault.BROKEN

    run(main())


def test_headers_are_sent_once_each_and_those_of_the_declaration_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T_KEY", "sk-1")

    async def main() -> None:
        keys: dict[str, Any] = {"api_key_env": "T_KEY", "headers": {"authorization": "Token 2", "X-Team": "größe"}}
        async with serving(Raw(ok(b""))) as raw, Asking(f"{raw.url}?team=a/b", **keys) as asking:
            await asking.data()
        [head] = raw.heads
        assert head.startswith("POST /v1/ask?team=a/b HTTP/1.1\r\n")
        sent = [line.split(": ", 1) for line in head.split("\r\n")[1:-2]]
        names = [name.lower() for name, _ in sent]
        assert len(set(names)) == len(names) and {"host", "content-length", "accept-encoding"} <= set(names)
        assert {"authorization": "Token 2", "x-team": "größe"}.items() <= {name.lower(): value for name, value in sent}.items()

    run(main())


def test_a_port_that_nobody_listens_on_is_unreachable() -> None:
    async def main() -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            async with Asking(f"http://127.0.0.1:{bound.getsockname()[1]}") as asking:
                assert (await asking.failure()).fault is Fault.UNREACHABLE

    run(main())


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_a_host_has_a_name_or_an_address_of_either_family(host: str) -> None:
    async def main() -> None:
        try:
            async with serving(Raw(ok(b"whole!")), host) as raw, Asking(raw.url) as asking:
                assert await asking.data() == b"whole!"
                assert f"\r\nHost: {raw.url.split('/')[2]}\r\n" in raw.heads[0]
        except OSError:
            pytest.skip("no IPv6 here")

    run(main())


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context, and its certificate, which nobody trusts."""
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    named = ["-addext", "subjectAltName=DNS:localhost,DNS:llm.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made.split(), *named], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.mark.parametrize("trusted", [True, False])
def test_a_server_is_asked_over_tls_if_the_system_trusts_its_certificate(
    tls: tuple[ssl.SSLContext, Path], trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = tls
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def main() -> None:
        async with serving(Raw(ok(b"whole!")), "localhost", context) as raw, Asking(raw.url) as asking:
            if trusted:
                assert [await asking.data() for _ in range(2)] == [b"whole!"] * 2
            else:
                failure = await asking.failure()
                assert failure.fault is Fault.UNREACHABLE and "certificate" in failure.words.lower()

    run(main())


@pytest.mark.parametrize(
    ("scheme", "asked"), [("http", "POST http://llm.example/v1/ask HTTP/1.1"), ("https", "CONNECT llm.example:443 HTTP/1.1")]
)
def test_a_proxy_of_the_environment_is_used_and_its_password_never_shown(
    scheme: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(Raw(b"HTTP/1.1 502 no-secret-word\r\nContent-Length: 0\r\n\r\n")) as proxy:
            monkeypatch.setenv(f"{scheme}_proxy", proxy.url.replace("//", "//me:secret-word@"))
            async with Asking(f"{scheme}://llm.example/v1") as asking:
                answer = await asking.ask()
        assert proxy.heads[0].startswith(asked)
        assert "Proxy-Authorization: Basic" in proxy.heads[0]
        assert "secret-word" not in (answer.words if isinstance(answer, Failure) else "")

    run(main())


@pytest.mark.parametrize("exception", ["127.0.0.1", "no_proxy"])
def test_no_proxy_is_asked_for_this_machine_or_for_hosts_in_no_proxy(exception: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "llm.invalid")

    async def main() -> None:
        async with serving(Raw(ok(b"whole!"))) as raw, Asking(raw.url) as asking:
            assert await asking.data() == b"whole!"
        async with Asking("http://llm.invalid") as asking:
            assert "127.0.0.1:9" not in (await asking.failure()).words

    run(main())


def test_compressed_bytes_are_not_inflated_beyond_the_limit() -> None:
    """2 GB of zeros in 2 MB: the memory never holds more than the limit."""
    bomb = gzip.compress(bytes(MOST_BYTES), 1) * 32

    async def main() -> None:
        async with serving(Raw(ok(bomb, "Content-Encoding: gzip"))) as raw, Asking(raw.url) as asking:
            tracemalloc.start()
            failure = await asking.failure()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert "larger than 64 MiB" in failure.words
        assert peak < 2 * MOST_BYTES

    run(main())


@pytest.mark.parametrize("part", [b" ", b": ping\n\n", b"2\r\nab\r\n"], ids=["blanks", "comments", "chunks"])
def test_an_answer_that_drips_is_cut_off_when_its_time_is_over(part: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" if b"ab" in part else b"HTTP/1.1 200 OK\r\n\r\n"
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
        gone.set()

    async def main() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        async with Asking(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as asking:
            assert (await asking.failure(0.2)).fault is Fault.TIMEOUT
            await gone.wait()
        server.close()

    run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_go_through_a_real_proxy_in_another_process(
    scheme: str, tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = tls
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def main() -> int:
        async with serving(Raw(ok(b"whole!")), tls=context if scheme == "https" else None) as raw:
            port = int(raw.url.rpartition(":")[2].partition("/")[0])
            async with Asking(f"{scheme}://llm.example:{port}/v1") as asking:
                assert [await asking.data() for _ in range(2)] == [b"whole!"] * 2
        return port

    with web_proxy() as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        port = run_loop(asyncio.wait_for, main(), LONG)
    asked = f"CONNECT llm.example:{port} " if scheme == "https" else f"POST http://llm.example:{port}/v1/ask "
    assert proxy.asked[0].startswith(asked)
