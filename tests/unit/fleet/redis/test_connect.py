"""Addresses of Redis as they may be shown and written down."""

from __future__ import annotations

import traceback

import pytest

from chainette.errors import RedisUnavailable, RunError
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


#: Of these a URL library makes something, often a host or a port out of a part of the password.
MISTYPED = (
    ":CANARYpw@127.0.0.1:1",
    "worker:CANARYpw@127.0.0.1:1/0",
    "redis://worker:CANARYpw/x@127.0.0.1:1/0",
    "redis://worker:CANARY?pw@127.0.0.1:1",
    "redis://worker:CANARY#pw@127.0.0.1:1",
    "redis://w?CANARYpw@127.0.0.1:1",
    "redis://:CANARYpw",
    "redis://worker:CANARYpw",
    "redis://worker:CANARYpw%40127.0.0.1:1/0",
    "redis://[CANARYpw@::1]:1",
    "redis://worker:CANARYpw@[::1:1/0",
    "redis://worker:CANARYpw@127.0.0.1:port/0",
    "redis://worker:CANARYpw@127.0.0.1:99999999/0",
    "redis://worker:CANARYpw@127.0.0.1:1/CANARYpw",
    " redis://worker:CANARYpw@127.0.0.1:1",
    "redis://worker:CANARYpw@127.0.0.1:1/0\n",
    "redis://worker:CANA RYpw@127.0.0.1:1/0 ",
    "redis:/worker:CANARYpw@127.0.0.1",
    "redis//worker:CANARYpw@127.0.0.1",
    "redis%3A//worker:CANARYpw@127.0.0.1",
    "redis+sentinel://:CANARYpw@127.0.0.1:1,127.0.0.1:2/master/0",
    "rediss://127.0.0.1:1/0?ssl_cert_reqs=CANARYpw",
    "redis://127.0.0.1:1/0?password=pw@CANARY",
    "redis://127.0.0.1:1/0?db=CANARYpw",
    "redis://127.0.0.1:1/0?pasword=CANARYpw",
)
CORRECT = (
    "redis://:CANARYpw@127.0.0.1:1",
    "redis://worker:CANARY@pw@127.0.0.1:1/0",
    "redis://127.0.0.1:1/0?password=CANARYpw",
    "rediss://worker:CANARY%2Fpw@127.0.0.1:1/0",
    "unix://worker:CANARYpw@/nowhere/socket",
    "unix:///nowhere/socket?password=CANARYpw",
)


@pytest.mark.parametrize("url", [*MISTYPED, *CORRECT])
def test_no_error_about_a_url_holds_its_password_not_even_its_traceback(url: str) -> None:
    with pytest.raises(RunError) as refused:
        connect(url, timeout=1)
    said = "".join(traceback.format_exception(refused.value))
    assert "CANA" not in said and "CANA" not in shown(url)
    assert isinstance(refused.value, RedisUnavailable) is (url in CORRECT)
    assert url in CORRECT or "write redis://USER:PASSWORD@HOST:PORT/DB" in str(refused.value)


def test_a_refused_connection_is_one_sentence_with_what_to_do() -> None:
    with pytest.raises(RedisUnavailable, match="refused; start one here with `chainette valkey`, or give --redis"):
        connect("redis://127.0.0.1:1/0")
