"""Decisions as they come back from a queue: only those that the plan can follow are taken."""

from __future__ import annotations

import pytest

from chainette.core.decision import decision_fault, round_end_of, way_of


@pytest.mark.parametrize("value", [b'{"_way":"refund"}', b'{"_way":null}'])
def test_a_decision_of_a_route_names_a_way_of_it_or_none(value: bytes) -> None:
    assert decision_fault(value, ["refund", ""], None) == ""
    assert way_of(value) in ("refund", "")


def test_a_decision_of_a_loop_names_a_round_up_to_its_own() -> None:
    value = b'{"_way":"again","_taken":2,"_score":0.5}'
    assert decision_fault(value, ["ended", "again"], 2) == ""
    assert round_end_of(value) == (2, 0.5)


@pytest.mark.parametrize(
    ("value", "round"),
    [
        (b'{"_way":"elsewhere"}', None),
        (b'{"_way":""}', None),
        (b'{"_way":"refund","_taken":1}', None),
        (b'{"_way":"refund","more":1}', None),
        (b'{"_way":"refund"}\n', None),
        (b"[]", None),
        (b'{"_way":"refund"}', 2),
        (b'{"_way":"refund","_taken":3,"_score":null}', 2),
        (b'{"_way":"refund","_taken":0,"_score":null}', 2),
    ],
)
def test_anything_else_is_refused(value: bytes, round: int | None) -> None:
    assert "decision" in decision_fault(value, ["refund", ""], round)
