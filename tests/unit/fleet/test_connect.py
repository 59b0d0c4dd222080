"""Addresses of Redis as they may be shown and written down."""

from __future__ import annotations

import pytest

from chainette.fleet.connect import shown


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("rediss://me:word@host:6379/0", "rediss://host:6379/0"),
        ("unix://:word@/run/valkey/socket?db=1", "unix:///run/valkey/socket?db=1"),
        ("unix:///run/valkey/socket?password=word&db=1", "unix:///run/valkey/socket?db=1"),
        ("redis://host/0?db=1&password=word", "redis://host/0?db=1&"),
    ],
)
def test_a_password_is_never_shown(url: str, seen: str) -> None:
    assert shown(url) == seen
