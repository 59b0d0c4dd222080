"""Claiming one unit at a time, for tests that look at single transitions."""

from __future__ import annotations

from collections.abc import Sequence

from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.queue_values import Claim, Drain

__all__ = ["claim_one"]


def claim_one(
    queue: LeasedQueue, me: str, token: str, pairs: Sequence[tuple[str, str]], *, alone: bool = False, ahead: bool = False
) -> Claim | Drain | None:
    """The next unit of these (run, queue) pairs; None if all are empty."""
    found = queue.claim_rows(me, token, [(*pair, 0) for pair in pairs], alone=alone, ahead=ahead)
    return found if isinstance(found, Drain) else next(iter(found), None)
