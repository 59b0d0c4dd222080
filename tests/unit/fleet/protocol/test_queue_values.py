"""A claim knows which of its rows a part commits, and which stay in hand."""

from __future__ import annotations

from chainette.fleet.protocol.queue_values import Claim
from chainette.records import Row, Unit


def claim_of(*rows: str, part: int = 0) -> Claim:
    return Claim("job", "token", "run", 0, Unit("node", 3, "7", "", [Row(row_id, {}) for row_id in rows]), part=part)


def ids(unit: Unit) -> list[str]:
    return [row.row_id for row in unit.rows]


def test_a_unit_that_ends_in_one_commit_keeps_its_name() -> None:
    claim = claim_of("0", "1", "2")
    for rows in (None, {"0", "1", "2"}):
        assert claim.piece(rows) == claim.unit and claim.rest(rows) is None


def test_each_part_has_a_name_of_its_own_and_leaves_the_other_rows_in_hand() -> None:
    claim = claim_of("0", "1", "2")
    assert (claim.piece({"2", "0"}).part, ids(claim.piece({"2", "0"}))) == ("7+0", ["0", "2"])
    left = claim.rest({"2", "0"})
    assert left is not None and (left.unit.part, ids(left.unit), left.part, left.token) == ("7", ["1"], 1, "token")
    assert (left.piece().part, ids(left.piece())) == ("7+1", ["1"])
    assert left.rest() is None and left.rest({"1"}) is None
