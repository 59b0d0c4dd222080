"""Connecting to the fleet's Redis, without the retries that redis-py does by itself."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import TYPE_CHECKING

from chainette.errors import RedisUnavailable, RunError

if TYPE_CHECKING:
    import redis

__all__ = ["DEFAULT_URL", "VARIABLE", "chosen_url", "connect", "eviction_risk", "impatient", "is_damage", "is_passing", "shown"]

_log = logging.getLogger("chainette")

#: The environment variable that holds the URL, password and all.
VARIABLE = "CHAINETTE_REDIS_URL"
#: Seconds between two questions whether Redis has loaded its data.
_LOADING = 0.5
#: Tries of the first call, since a connection may break once; seconds between two of them.
_TRIES, _PAUSE = 3, 0.1
#: Beginnings of replies that say "not now" and for which redis-py has no class.
_PASSING = ("BUSY", "MASTERDOWN", "UNBLOCKED", "MISCONF", "NOREPLICAS")

#: Forms of an address, and the placeholder for a URL that has none of them and may hold a password anywhere.
_FORMS = "redis://USER:PASSWORD@HOST:PORT/DB, rediss://..., or unix://PATH, and / ? # @ % in a password as %2F %3F %23 %40 %25"
_HIDDEN = "(a hidden text)"

#: Hosts that are this machine.
_LOCAL = ("127.0.0.1", "::1", "localhost")

_HOST = r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?"
_SERVER = re.compile(
    rf"(?P<scheme>(?:[\w+.-]+:|:?)//)(?:(?P<user>.*)@)?(?P<address>{_HOST}(?:,{_HOST})*(?:/\d*)?)(?:\?(?P<options>[^@]*))?",
    re.DOTALL,
)
_SOCKET = re.compile(r"(?P<scheme>unix://)(?:(?P<user>(?!/)[^?]*)@)?(?P<address>/[^?#]*)(?:\?(?P<options>.*))?", re.DOTALL)

DEFAULT_URL = "redis://127.0.0.1:6379/0"


def connect(url: str | None = None, *, timeout: float = 10.0) -> redis.Redis:
    """A client whose commands are sent once; its callers know which ones may be repeated.

    The URL comes from the argument, from CHAINETTE_REDIS_URL, or is `redis://127.0.0.1:6379/0`. A Redis that is still
    loading its data is waited for.

    Raises:
        RedisUnavailable: it does not answer; the message holds no password.
        RunError: it is not a URL, or Redis denies access.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    url = chosen_url(url)
    address = shown(url)
    try:
        client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout)
        settings = client.connection_pool.connection_kwargs
        if str(settings.get("host", "")).lower() not in address.lower():
            raise ValueError
        client.connection_pool.make_connection()  # fails on unknown options
    except (redis.RedisError, ValueError, TypeError):  # their words hold parts of the URL
        raise RunError(f"{address} is not the address of a Redis; write {_FORMS}") from None
    try:
        _wait_until_loaded(client, address)
    except (redis.RedisError, OSError, UnicodeError) as error:
        kind = RedisUnavailable if isinstance(error, redis.RedisError) and is_passing(error) else RunError
        words = str(error).rstrip(".")
        reason = words.replace(password, "***") if (password := settings.get("password")) else words
        start = "start it" if settings.get("host") not in _LOCAL else "start one here with `chainette valkey`"
        said = f"Redis at {address} does not answer: {reason}; {start}, or give --redis URL or {VARIABLE}"
        raise kind(said) from (error if reason == words else None)
    return client


def _wait_until_loaded(client: redis.Redis, address: str) -> None:
    import redis

    said, failures = False, 0
    while True:
        try:
            client.ping()
            return
        except redis.BusyLoadingError:
            if not said:
                _log.warning("Redis at %s is still loading its data; waiting for it", address)
            said = True
            time.sleep(_LOADING)
        except redis.ConnectionError as error:
            failures += 1
            if failures == _TRIES or not is_passing(error):
                raise
            time.sleep(_PAUSE)


def eviction_risk(client: redis.Redis) -> str:
    """The reason why Redis may delete keys by itself, with the command that stops it; "" if it does not, or does not report it.

    INFO reports it also to users who may not call CONFIG.

    Raises:
        redis.RedisError: it does not answer.
    """
    import redis

    try:
        policy = str(client.info("memory").get("maxmemory_policy", ""))
    except redis.ResponseError:  # an ACL without INFO
        return ""
    if not policy.startswith(("allkeys", "volatile")):
        return ""
    return (
        f"Redis deletes keys of runs when its memory is full (maxmemory-policy is {policy}), so that their rows are computed "
        f"again; keep them: redis-cli config set maxmemory-policy noeviction"
    )


def chosen_url(url: str | None) -> str:
    """The URL that was given, else that of the environment, else the default."""
    return url or os.environ.get(VARIABLE) or DEFAULT_URL


def impatient(client: redis.Redis, timeout: float) -> redis.Redis:
    """The same Redis, through connections that wait at most so many seconds for an answer."""
    import redis

    pool = client.connection_pool
    waits = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    return redis.Redis.from_pool(redis.ConnectionPool(pool.connection_class, **{**pool.connection_kwargs, **waits}))


def is_passing(error: redis.RedisError) -> bool:
    """Whether the same call may succeed later: Redis is away, starting, full, or no longer the master."""
    import redis

    if isinstance(error, redis.AuthenticationError):
        return False
    away = redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError | redis.OutOfMemoryError
    return isinstance(error, away) or str(error).startswith(_PASSING)


def is_damage(error: redis.RedisError) -> bool:
    """Whether Redis holds data that Chainette did not write, so that a command or a script cannot go on."""
    words = ("WRONGTYPE", "is not an integer", "is not a valid float", "attempt to ")
    return any(word in str(error) for word in words)


def shown(url: str) -> str:
    """The URL without user, password and options, except the database; a text in which those cannot be told apart is hidden."""
    found = _SOCKET.fullmatch(url) or _SERVER.fullmatch(url)
    if found is None or re.search(r"[?&]\w+=", found["user"] or ""):  # an option with an "@"
        return _HIDDEN
    database = re.search(r"(?:^|&)(db=\d+)(?=&|$)", found["options"] or "")
    return found["scheme"] + found["address"] + (f"?{database[1]}" if database else "")
