"""Addresses of Redis as they may be shown and written down."""

from __future__ import annotations

import pytest

from chainette.errors import RedisUnavailable
from chainette.fleet.redis.connect import connect, shown


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://host:6379/0?db=3", "redis://host:6379/0?db=3"),
        ("rediss://me:word@host:6379/0", "rediss://host:6379/0"),
        ("redis://:wo@rd@host/0", "redis://host/0"),
        ("redis://:wo/rd@host/0", "redis://host/0"),  # no URL, and no less a secret
        ("redis://:wo?rd@host/0", "redis://host/0"),
        ("://:word@host/0", "://host/0"),
        ("redis://host/0?password=word&db=1", "redis://host/0?db=1"),
        ("rediss://host/0?ssl_password=word", "rediss://host/0"),
        ("unix:///run/valkey/socket", "unix:///run/valkey/socket"),
        ("unix:///run/a@b/socket?db=1", "unix:///run/a@b/socket?db=1"),
        ("unix://:word@/run/valkey/socket?db=1", "unix:///run/valkey/socket?db=1"),
        ("unix://:wo/rd@/run/valkey/socket", "unix:///run/valkey/socket"),
        ("unix:///run/valkey/socket?password=word", "unix:///run/valkey/socket"),
    ],
)
def test_a_password_is_never_shown(url: str, seen: str) -> None:
    assert shown(url) == seen


def test_a_refused_connection_is_one_sentence_with_what_to_do() -> None:
    with pytest.raises(RedisUnavailable, match=r"refused; start it, or give --redis URL or CHAINETTE_REDIS_URL$"):
        connect("redis://127.0.0.1:1/0")
