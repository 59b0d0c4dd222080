"""Counts in messages: only the number 1, as it is shown, stands before a singular."""

from __future__ import annotations

from chainette.utils.plurals import counted, counted_of


def test_only_one_is_followed_by_a_singular() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 3000)] == ["0 rows", "1 row", "2 rows", "3,000 rows"]
    assert [counted(number, "request") for number in (0.4, 0.8, 1.4, 1.6)] == [
        "0 requests",
        "1 request",
        "1 request",
        "2 requests",
    ]


def test_a_part_takes_the_noun_of_its_whole() -> None:
    assert [counted_of(0, 1, "row"), counted_of(1, 1200, "row")] == ["0 of 1 row", "1 of 1,200 rows"]
    assert [counted_of(1, None, "row"), counted_of(2, None, "row")] == ["1 row", "2 rows"]
