"""The answers of earlier runs for a worker: it asks the sink of the run, which has their directories."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic

import anyio

from chainette.core.plan_node import PlanNode
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.redis.answer_lookups import Found, Lookups, Question
from chainette.records import Output, parent_of
from chainette_workers.runtime import insist

__all__ = ["AskedAnswers", "NobodyLooks"]

#: Seconds between two looks for a reply, at first and at most; and seconds until the question is asked again.
_SOON, _LATE, _ANEW = 0.002, 0.05, 2.0

#: Times a question is asked before its unit goes back, so that it does not occupy room that other runs need.
_TRIES = 3


class NobodyLooks(Exception):
    """The sink of a run does not look for the answers of earlier runs; nothing is known about the rows."""


@dataclass(frozen=True)
class AskedAnswers:
    """Asks the sink of one run."""

    lookups: Lookups
    keys: RunKeys

    async def find_all(self, node: PlanNode, keys: Mapping[str, bytes]) -> Mapping[str, list[Output]]:
        """See `Answers`.

        Raises:
            NobodyLooks: the sink does not answer.
        """
        found, left = dict[str, list[Output]](), dict(keys)
        while left:
            reply = await self._ask(node, left)
            found |= {row_id: reply.outputs[row_id] for row_id in left if reply.outputs.get(row_id)}
            left = {row_id: key for row_id, key in left.items() if row_id not in reply.outputs}
        return found

    async def _ask(self, node: PlanNode, keys: Mapping[str, bytes]) -> Found:
        """A reply that answers for some of the rows."""
        for _ in range(_TRIES):
            question = Question(secrets.token_hex(8), node.station, dict(keys))
            await insist(partial(self.lookups.ask, self.keys, question))
            wait, end = _SOON, monotonic() + _ANEW
            while monotonic() < end:
                await anyio.sleep(wait)
                wait = min(_LATE, 2 * wait)
                reply = await insist(partial(self.lookups.found, self.keys, question.token))
                if reply is not None and _answers(reply, keys):
                    return reply
        raise NobodyLooks(f"{node.id}: the sink of the run does not look for rows of earlier runs")


def _answers(reply: Found, keys: Mapping[str, bytes]) -> bool:
    """Whether a reply is about some of these rows, and only about them."""
    about = [(row_id, output) for row_id, outputs in reply.outputs.items() for output in outputs]
    fits = all(output.row_id == row_id or parent_of(output.row_id) == row_id for row_id, output in about)
    return bool(reply.outputs) and reply.outputs.keys() <= keys.keys() and fits
