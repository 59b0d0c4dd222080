"""An HTTP proxy in a process of its own: whatever host a client names, it connects to that port of 127.0.0.1.

with web_proxy() as proxy:
    ...                 # HTTP_PROXY=proxy.url
proxy.asked             # the first line of each request, "POST http://llm.example:8000/v1/ask HTTP/1.1"
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

__all__ = ["WebProxy", "web_proxy"]


@dataclass
class WebProxy:
    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def web_proxy() -> Iterator[WebProxy]:
    process = subprocess.Popen([sys.executable, "-I", __file__], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        proxy = WebProxy(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        yield proxy
    finally:
        process.terminate()
        said, _ = process.communicate()
    proxy.asked += said.splitlines()


async def _serve() -> None:
    server = await asyncio.start_server(_carry, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    method, target, _ = line.split()
    print(line.decode(), flush=True)
    place, _, path = target.removeprefix(b"http://").partition(b"/")
    there, back = await asyncio.open_connection("127.0.0.1", int(place.rpartition(b":")[2]))
    if method == b"CONNECT":
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        back.write(method + b" /" + path + b" HTTP/1.1\r\n" + rest)
    await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(_serve())
