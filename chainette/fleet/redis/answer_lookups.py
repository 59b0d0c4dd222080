"""Questions of workers for the answers of earlier runs (`--reuse`), and the replies of their run's sink.

Both may get lost, and both expire: a worker without a reply asks again, and the same question gets the same reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

import msgspec

from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import BadMessage, open_message
from chainette.fleet.protocol.seals import Purpose, Seals
from chainette.fleet.redis.connect import is_damage
from chainette.records import Output, encode

if TYPE_CHECKING:
    import redis

__all__ = ["Found", "Lookups", "Question"]

#: Seconds that questions and replies live.
_LIVES = 60


class Question(msgspec.Struct, frozen=True, array_like=True):
    """Which of these rows has an earlier run?"""

    #: Names the reply.
    token: str
    #: The queue of the node the rows are at (`PlanNode.station`).
    station: str
    #: Row -> the key of its answer.
    keys: dict[str, bytes]


class Found(msgspec.Struct, frozen=True, array_like=True):
    """The reply: row -> its outputs, [] if no earlier run has it. Rows that did not fit in are left out."""

    outputs: dict[str, list[Output]]


class Lookups:
    """Passes questions and replies on, over one connection pool. Thread-safe.

    Raises (every call):
        redis.RedisError: Redis did not answer.
    """

    def __init__(self, connection: redis.Redis, seals: Seals) -> None:
        self._redis, self._seals = connection, seals

    def ask(self, keys: RunKeys, question: Question) -> None:
        """Asks the sink of a run."""
        message = self._seals.seal(keys.run, keys.epoch, Purpose.ASKED, "", encode(question))
        with _damage_is_loss(), self._redis.pipeline(transaction=False) as pipe:
            pipe.rpush(keys.asked, message)
            pipe.expire(keys.asked, _LIVES)
            pipe.execute()

    def next(self, keys: RunKeys) -> Question | None:
        """Takes the question that has waited longest; None if there is none.

        Raises:
            BadMessage: it is not a question.
        """
        with _damage_is_loss():
            message = cast("bytes | None", self._redis.lpop(keys.asked))
            body = self._seals.open(keys.run, keys.epoch, Purpose.ASKED, "", message)
            return None if body is None else open_message(body, Question)
        self._redis.delete(keys.asked)
        return None

    def reply(self, keys: RunKeys, token: str, found: Found) -> None:
        """Answers a question."""
        message = self._seals.seal(keys.run, keys.epoch, Purpose.FOUND, token, encode(found))
        self._redis.set(keys.found(token), message, ex=_LIVES)

    def found(self, keys: RunKeys, token: str) -> Found | None:
        """The reply to a question; None if there is none yet, or if somebody else has written one."""
        with _damage_is_loss(), suppress(BadMessage):
            message = cast("bytes | None", self._redis.get(keys.found(token)))
            if message is not None:
                self._redis.delete(keys.found(token))
                return open_message(self._seals.open(keys.run, keys.epoch, Purpose.FOUND, token, message), Found)
        return None


@contextmanager
def _damage_is_loss() -> Iterator[None]:
    """A key of another type counts as a message that was lost."""
    from redis import ResponseError

    try:
        yield
    except ResponseError as error:
        if not is_damage(error):
            raise
