"""The in-memory queue tells when to look at it again, so that a local run waits without asking."""

from __future__ import annotations

import json

import pytest

from chainette.core.flow import frontier
from chainette.core.plan import Plan
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import RootRecord
from chainette.fleet.protocol.queue_values import ANCHOR, Claim
from chainette.records import CHAIN_INPUT, Effects, Outcome, Output, Row, Usage
from tests.support.claims import claim_one
from tests.support.fleet import straight

KEYS = RunKeys("run", 0)


class Watched:
    """A queue with one run, and how often it said that something changed."""

    def __init__(self) -> None:
        self.changes = 0
        self.plan: Plan = straight()
        self.queue = MemoryQueue(changed=self.count)
        self.queue.install("run", 0, "me", "anchor", [], {"window": 10})
        self.queue.beat("w", {}, 3600)
        self.changes = 0

    def count(self) -> None:
        self.changes += 1

    def admit(self) -> None:
        rows = [Row("0", {CHAIN_INPUT: json.dumps({"text": "a"}).encode()})]
        self.queue.admit(KEYS, self.plan, 0, 0, RootRecord(rows, 1), [], frontier(self.plan, 0, rows), "t")

    def take(self) -> Claim:
        claim = claim_one(self.queue, "w", "token", [("run", KEYS.queue("python", "first"))])
        assert isinstance(claim, Claim)
        return claim


@pytest.fixture
def watched() -> Watched:
    found = Watched()
    found.admit()
    assert found.changes == 1
    return found


def test_units_that_come_back_are_told_and_claims_are_not(watched: Watched) -> None:
    claim = watched.take()
    assert watched.changes == 1
    assert watched.queue.release(claim, "w") and watched.changes == 2
    watched.take()
    assert watched.queue.reconcile("w") == 1 and watched.changes == 3


def test_entries_and_credit_are_told(watched: Watched) -> None:
    outcome = Outcome([Output("0", b"{}")], [], [], Usage(), Effects())
    assert watched.queue.commit(watched.take(), "w", watched.plan, outcome, "t") and watched.changes == 2
    [entry] = watched.queue.read(KEYS, (ANCHOR, "anchor"))
    assert entry.done
    watched.queue.ack(KEYS, "me", (entry.id, entry.token), [0])
    assert watched.changes == 3 and watched.queue.progress(KEYS).live == set()


def test_what_was_put_in_is_handed_out_without_a_copy(watched: Watched) -> None:
    record = watched.queue.record(KEYS, 0)
    assert watched.take().unit.rows[0] is record.rows[0]
