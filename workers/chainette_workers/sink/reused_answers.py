"""The sink's part in `--reuse`: it has the directories of the earlier runs, and looks there for its run's workers.

A thread beside the sink answers. The same row gets the same answer again, also from the next sink: an answer that may serve
one row only is claimed in a file of the run's directory. So a question or a reply may get lost, and a worker or a sink may die.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import redis

from chainette.core.answer_key import KEY_BYTES
from chainette.core.plan import Plan
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import BadMessage
from chainette.fleet.redis.answer_lookups import Found, Lookups, Question
from chainette.fleet.redis.connect import is_passing
from chainette.fleet.redis.run_registry import Board
from chainette.records import Output
from chainette.run.answer_sources import AnswerSources
from chainette.run.stored_answers import StoredAnswers

__all__ = ["answering"]

#: Seconds between two looks for a question: the first after one, and the longest.
_SOON, _LATE = 0.002, 0.05

#: Seconds for which the end of a run waits for the thread.
_LEAVE = 1.0

#: Bytes after which a reply takes no more rows; the worker asks for the others again.
_FULL = 4 << 20


@contextmanager
def answering(
    sources: AnswerSources | None, plan: Plan, board: Board, keys: Callable[[], RunKeys]
) -> Iterator[Callable[[], None]]:
    """Looks for the workers' rows meanwhile, if there are earlier runs. The given function raises as `StoredAnswers.open`
    if that is not possible."""
    if sources is None:
        yield lambda: None
        return
    desk = _Desk(sources, plan, board.lookups, keys)
    thread = threading.Thread(target=desk.serve, name="answering", daemon=True)
    thread.start()
    try:
        yield desk.require
    finally:
        desk.stop.set()
        thread.join(_LEAVE)  # it may still be making an index, which appears whole or not at all


@dataclass
class _Desk:
    sources: AnswerSources
    plan: Plan
    lookups: Lookups
    #: The keys of the run in its epoch.
    keys: Callable[[], RunKeys]
    stop: threading.Event = field(default_factory=threading.Event)
    _failure: Exception | None = None

    def require(self) -> None:
        if self._failure is not None:
            raise self._failure

    def serve(self) -> None:
        try:
            with closing(StoredAnswers.open(self.sources)) as stored:
                wait = _SOON
                while not self.stop.wait(wait):
                    wait = _SOON if self._answer_one(stored) else min(_LATE, 2 * wait)
        except Exception as error:  # it ends the run, not the thread
            self._failure = error

    def _answer_one(self, stored: StoredAnswers) -> bool:
        """Answers a question; False if there is none."""
        keys = self.keys()
        try:
            question = self.lookups.next(keys)
            if question is not None:
                self.lookups.reply(keys, question.token, self._look(stored, question))
        except BadMessage:
            return True  # nobody of ours asked it
        except redis.RedisError as error:
            if not is_passing(error):
                raise
            return False  # the worker asks again
        return question is not None

    def _look(self, stored: StoredAnswers, question: Question) -> Found:
        """The reply to a question.

        Raises:
            BadMessage: it is about a node the plan does not have, or has a malformed key.
        """
        node = self.plan.stations.get(question.station)
        if node is None or any(len(key) != KEY_BYTES for key in question.keys.values()):
            raise BadMessage(f"a question about rows of {question.station[:100]!r} in Redis cannot be right")
        found, size = dict[str, list[Output]](), 0
        for row_id, key in question.keys.items():
            found[row_id] = stored.find(node, row_id, key) or []
            size += len(row_id) + len(key)  # for rows that are not found, too: anybody may ask for millions
            size += sum(len(output.value) + len(output.reasoning or "") for output in found[row_id])
            if size > _FULL:
                break
        return Found(found)
