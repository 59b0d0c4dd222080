"""A worker in a thread of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from chainette_workers.worker.configuration import WorkerConfig
from chainette_workers.worker.standalone import serve

from tests.support.patience import LONG

__all__ = ["serving"]


@contextmanager
def serving(config: WorkerConfig) -> Iterator[None]:
    """It serves until the end of the block, and must have ended then."""
    stopping = threading.Event()
    thread = threading.Thread(target=serve, args=(config, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(LONG)
        assert not thread.is_alive()
