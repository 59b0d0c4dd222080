"""The cache of recent values, in bounded memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from chainette.utils.recent_values import Recent


def key(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8), digest_size=16).digest()


def test_the_last_half_is_known_and_never_more_than_all() -> None:
    recent = Recent(most=100, most_bytes=1 << 20)
    for number in range(1000):
        recent.put(key(number), b"value")
        assert all(recent.get(key(other)) == b"value" for other in range(max(0, number - 49), number + 1))
        assert len(recent) <= 100
    assert recent.get(key(0)) is None


def test_values_take_at_most_the_allowed_bytes() -> None:
    recent = Recent(most=100, most_bytes=1000)
    for number in range(30):
        recent.put(key(number), b"x" * 100)
        assert recent.get(key(number)) and len(recent) <= 10
    recent.put(key(99), b"x" * 600)
    assert recent.get(key(99)) is None and recent.get(key(29)) is not None


def test_closing_forgets_everything_and_closes_the_files() -> None:
    before = [*Path("/proc/self/fd").iterdir()] if Path("/proc/self/fd").exists() else []
    recent = Recent(most=4, most_bytes=1 << 20)
    for number in range(9):
        recent.put(key(number), b"value")
    recent.close()
    assert len(recent) == 0 and recent.get(key(8)) is None
    if before:
        assert len([*Path("/proc/self/fd").iterdir()]) == len(before)
