"""Calling the scripts: their sources put together, their arguments packed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from chainette.fleet.redis.connect import is_damage

if TYPE_CHECKING:
    import redis

__all__ = ["SCRIPTS", "Scripts", "sources"]

SCRIPTS = (
    "ack",
    "admit",
    "aside",
    "ask",
    "attach",
    "attend",
    "bar",
    "beat",
    "bury",
    "claim",
    "close",
    "commit",
    "drop",
    "fail",
    "install",
    "leave",
    "mend",
    "missing",
    "note",
    "reap",
    "reconcile",
    "release",
    "reserve",
    "revive",
    "say",
    "share_answers",
    "split",
    "stage",
    "start",
    "state",
    "take_role",
    "total",
)

#: Sources that others include.
_PARTS = ("effects", "strikes", "workers")

#: Scripts that may simply be repeated: a repetition finishes an interrupted call. Callers of the others must look again first.
_REPEATABLE = frozenset(
    {
        "ask",
        "attend",
        "beat",
        "drop",
        "leave",
        "missing",
        "note",
        "reap",
        "reserve",
        "revive",
        "say",
        "share_answers",
        "state",
        "take_role",
        "total",
    }
)

_pack = msgspec.msgpack.Encoder().encode


class Script:
    """One script, sent over a connection of the pool: redis-py's own way takes twice as long."""

    def __init__(self, connection: redis.Redis, script: str) -> None:
        self._redis = connection
        self.script = script
        self.sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, args: Sequence[bytes]) -> Any:
        """The script's reply; it is loaded again if the server forgot it.

        Raises:
            redis.RedisError: Redis did not answer, or refused.
        """
        from redis.exceptions import NoScriptError

        pool = self._redis.connection_pool
        connection = pool.get_connection()
        try:
            return _evaluated(connection, self.sha, args)
        except NoScriptError:
            self._redis.script_load(self.script)
            return _evaluated(connection, self.sha, args)
        finally:
            pool.release(connection)


def _evaluated(connection: Any, sha: str, args: Sequence[bytes]) -> Any:
    connection.send_command("EVALSHA", sha, 0, *args)
    return connection.read_response()


class Scripts:
    """The scripts of `fleet/redis/scripts/` over one connection pool."""

    def __init__(self, connection: redis.Redis) -> None:
        self.by_name = {name: Script(connection, source) for name, source in sources().items()}

    def call(self, name: str, **arguments: Any) -> Any:
        """A script's reply. `bytes` among the arguments travel as they are.

        Raises:
            redis.RedisError: Redis did not answer, or a key had a foreign type. Such a key is deleted, and counts as lost from
                then on; the scripts that may be repeated are repeated at once.
        """
        import redis

        blobs: list[bytes] = []
        packed = _pack(_with_blobs(arguments, blobs))
        try:
            return self.by_name[name](args=[packed, *blobs])
        except redis.ResponseError as error:
            if not is_damage(error):
                raise
            self.by_name["mend"](args=[packed, *blobs])
            if name not in _REPEATABLE:
                raise
            return self.by_name[name](args=[packed, *blobs])


@cache
def sources() -> Mapping[str, str]:
    """The scripts by name, read once in a process."""
    folder = files("chainette.fleet.redis.scripts")
    read = {name: folder.joinpath(f"{name}.lua").read_text() for name in (*SCRIPTS, *_PARTS, "common")}

    def whole(name: str) -> str:
        source = read[name]
        for part in _PARTS:
            source = source.replace(f"--{part.upper()}\n", read[part])
        return read["common"] + source

    return {name: whole(name) for name in SCRIPTS}


def _with_blobs(value: Any, blobs: list[bytes]) -> Any:
    """The value with every `bytes` moved to `blobs` and its number in its place."""
    if isinstance(value, bytes):
        blobs.append(value)
        return {"blob": len(blobs) + 1}
    if isinstance(value, dict):
        return {name: _with_blobs(part, blobs) for name, part in value.items()}
    return [_with_blobs(part, blobs) for part in value] if isinstance(value, list) else value
