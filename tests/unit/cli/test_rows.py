"""`chainette rows`: conditions, and the choice between a table and records."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from chainette.cli.commands.rows import _is_hard_to_read, _kept

ROW: dict[str, Any] = {"row_id": "0", "digest.items": [{"name": "a", "values": [3]}], "handle._way": "bug", "keys": 2}


@pytest.mark.parametrize(
    "where",
    [
        "digest.items | length == 1",
        "digest.items[0]['values'][0] == 3",
        "digest.items[0].values[0] == 3",
        "keys == 2",
        "handle._way == 'bug'",
        "'a' in (digest.items | tojson)",
    ],
)
def test_a_field_is_found_though_a_method_has_its_name(where: str) -> None:
    assert [*_kept(iter([ROW]), where)] == [ROW]
    assert [*_kept(iter([ROW]), f"not ({where})")] == []


def test_a_misspelt_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(typer.BadParameter, match="there is no 'itms'; did you mean 'items'"):
        next(_kept(iter([ROW]), "digest.itms"))
    with pytest.raises(typer.BadParameter, match="'dgest' is not in scope; did you mean 'digest'"):
        next(_kept(iter([ROW]), "dgest.items"))


def test_long_texts_and_many_columns_are_shown_as_records() -> None:
    short, long = {"a": "x" * 90, "b": "y"}, {"a": "x" * 900, "b": "y"}
    assert not _is_hard_to_read([short, short], ["a", "b"], 100)
    assert _is_hard_to_read([short, long], ["a", "b"], 100)
    assert _is_hard_to_read([dict.fromkeys("abcdefgh", "z")], [*"abcdefgh"], 100)
