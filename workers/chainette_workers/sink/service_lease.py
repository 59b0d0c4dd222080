"""The lease of a process that serves runs, with the fields that describe it, as workers have one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import redis

from chainette.fleet.protocol.queue_values import LEASE
from chainette.fleet.redis.run_registry import Board

__all__ = ["ServiceLease"]


@dataclass
class ServiceLease:
    """A lease, from `with` to its end; it holds while `renew` is called often enough."""

    board: Board
    me: str
    kind: str
    #: Fields besides its kind, host and process id.
    about: Mapping[str, str] = field(default_factory=dict)
    _renewed_at: float = field(default=-LEASE)

    def __enter__(self) -> Self:
        self._words: dict[str, str | int | float] = {
            "kind": self.kind,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **self.about,
        }
        self.renew()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(redis.RedisError):
            self.board.leave(self.me)

    def renew(self) -> None:
        """Renews the lease if it is time to; if Redis does not answer, the next call tries again."""
        if time.monotonic() - self._renewed_at < LEASE / 4:
            return
        with suppress(redis.RedisError):
            self.board.beat(self.me, self._words)
            self._renewed_at = time.monotonic()
