"""Entries of a stream that cannot be right are refused, whatever they hold."""

from __future__ import annotations

from chainette_workers.sink.acceptance import AcceptedRoot

from chainette.core.durable import Durable
from chainette.fleet.protocol.messages import Result
from chainette.fleet.protocol.queue_values import Entry
from chainette.records import Row, Usage
from tests.support.fleet import straight


def empty_result(node: str, *, done: bool) -> Entry:
    return Entry("1-1", "token", Result(node, 0, "", 0, [], [], [], Usage(), "worker"), 0, done)


def live_root() -> AcceptedRoot:
    return AcceptedRoot(straight(), 0, [Row("0", {}, 1)], Durable())


def test_a_result_without_rows_changes_nothing() -> None:
    assert live_root().refuse(empty_result("second", done=False), frozenset()) == ""


def test_a_result_without_rows_completes_no_root_whose_rows_are_pending() -> None:
    words = live_root().refuse(empty_result("second", done=True), frozenset())
    assert words == "root 0 was called complete while rows of it are pending"
