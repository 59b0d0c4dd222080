"""The parts of the walk that whole runs cannot show: order of joins, and ids of re-admitted units."""

from __future__ import annotations

import pytest

from chainette import Branch, Chain, apply
from chainette.core.compile import compile_chain
from chainette.core.durable import Durable
from chainette.core.flow import advance, frontier, row_of, settle
from chainette.core.joining import join_rows
from chainette.core.plan import Plan
from chainette.records import Output, Row, Unit
from tests.support.chains import Text, Word


def same(item: Text) -> Text:
    return item


def words(item: Text) -> list[Word]:
    return [Word(word=item.text)]


def plan_of(*steps: object, batch_size: int = 4) -> Plan:
    return compile_chain(Chain(name="c", steps=steps, input_model=Text, batch_size=batch_size))  # type: ignore[arg-type]


def rows(*row_ids: str) -> list[Row]:
    return [Row(row_id, {"chain_input": b'{"text":"t"}'}) for row_id in row_ids]


def test_a_list_join_is_in_the_order_of_row_ids_however_its_rows_came() -> None:
    plan = plan_of([Branch("b", [apply(words)]).join("all")], apply(same))
    [fork] = plan.forks.values()
    parts = [Row(row_id, {"words": f'{{"word":"{row_id}"}}'.encode()}) for row_id in ("7~10", "7~2", "8~0", "7~0")]
    joined, lost = join_rows(fork, rows("7", "8", "9"), {"b": parts}, [])
    assert [row["all"] for row in joined] == [[{"word": "7~0"}, {"word": "7~2"}, {"word": "7~10"}], [{"word": "8~0"}], []]
    assert lost == []


def test_units_of_a_resumed_root_never_share_an_id_with_a_successor() -> None:
    plan = plan_of(apply(same, id="a"), apply(same, id="b"), apply(same, id="c"))
    durable = Durable()
    durable.add(plan.nodes["a"], [Output("1", b'{"text":"t"}')], {}, [])
    units = frontier(plan, 0, rows("0", "1"), durable).units
    assert [(unit.node, [row.row_id for row in unit.rows]) for unit in units] == [("a", ["0"]), ("b", ["1"])]
    first = units[0]
    successors = advance(
        plan, first, [row_of(plan.nodes["a"], first.rows[0], Output("0", b'{"text":"t"}'))], plan.nodes["a"].next, []
    ).units
    ids = {(unit.node, unit.part) for unit in [*units, *successors]}
    assert len(ids) == 3


def test_the_same_arguments_give_the_same_units() -> None:
    plan = plan_of(
        [Branch("x", [apply(same, id="a")]).join("one"), Branch("y", [apply(same, id="b")])], apply(same, id="c"), batch_size=2
    )
    assert frontier(plan, 3, rows("6", "7")) == frontier(plan, 3, rows("6", "7"))


def test_rows_above_the_batch_size_are_cut_into_parts_of_it() -> None:
    plan = plan_of(apply(words), apply(lambda w: [w], id="again", input_model=Word, output_model=Word), batch_size=2)
    unit = Unit("words", 0, "", "", rows("0"))
    outputs = [Row(f"0~{index}", {"words": b'{"word":"w"}'}) for index in range(5)]
    effects = advance(plan, unit, outputs, plan.nodes["words"].next, [])
    assert [(len(part.rows), part.part) for part in effects.units] == [(2, "/0"), (2, "/1"), (1, "/2")]


def test_a_root_with_pending_rows_cannot_be_settled() -> None:
    plan = plan_of(apply(same, id="a"))
    with pytest.raises(ValueError, match="row 0 is pending at 'a'"):
        settle(plan, 0, rows("0"), Durable())
