"""The durable outcomes of a root, and copies of them."""

from __future__ import annotations

from chainette.core.durable import Durable
from chainette.records import Earlier, Output, Row
from tests.support.fleet import straight

ROWS = [Row(str(number), {"chain_input": b"{}"}) for number in range(8)]
NODE = straight().nodes["first"]


def some() -> Durable:
    durable = Durable()
    durable.add(NODE, [Output("0", b"1")], {"1": "not_json"}, ["2"], {"3": Earlier(asks=2)})
    return durable


def test_a_copy_has_every_outcome() -> None:
    found = some().copy().divide(NODE.id, ROWS)
    assert found == some().divide(NODE.id, ROWS)
    assert found[0][0].earlier == Earlier(asks=2)


def test_an_outcome_that_is_added_to_a_copy_is_not_in_the_original() -> None:
    durable = some()
    durable.copy().add(NODE, [Output("0", b"2"), Output("4", b"1")], {"5": "refused"}, ["6"], {"7": Earlier(asks=1)})
    assert durable.divide(NODE.id, ROWS) == some().divide(NODE.id, ROWS)
