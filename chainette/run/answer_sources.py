"""The earlier runs a run takes answers from (`--reuse`), and the look-up of answers in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from chainette.core.plan_node import PlanNode
from chainette.records import Output

__all__ = ["AnswerSources", "Answers"]


class AnswerSources(msgspec.Struct, frozen=True):
    """The earlier runs a run takes answers from."""

    #: Their directories, the first one first.
    directories: tuple[str, ...]
    #: The folder for the indexes and the claims, inside the run's own directory.
    folder: str
    #: Steps whose rows are all computed.
    but: tuple[str, ...] = ()
    #: The run's own directory, if its rows share answers, and earlier sessions have left some; "" otherwise.
    own: str = ""


class Answers(Protocol):
    """Finds the outputs of earlier runs, in this process or by asking another one."""

    async def find_all(self, node: PlanNode, keys: Mapping[str, bytes]) -> Mapping[str, list[Output]]:
        """Row -> its outputs, for rows that an earlier run has; see `StoredAnswers.find`."""
