"""The result of a unit whose outcome is too large for one commit."""

from __future__ import annotations

import pytest

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.engine.config import EngineRegistry, using_registry
from chainette.hooks import Hook
from chainette.records import Output, Reason, Row, Unit, Usage
from chainette.run.unit_result import UnitResult
from tests.support.chains import Text, Word

ROWS = [Row(str(number), {"chain_input": b"{}"}) for number in range(4)]


@pytest.mark.parametrize("size", range(1, 4))
def test_the_parts_of_a_refused_outcome_have_each_row_and_all_usage_once(size: int) -> None:
    with using_registry(EngineRegistry()):
        register_engine("small", "m", "simulated")
        register_engine("large", "m", "simulated")
        step = Step(id="first", input_model=Text, output_model=Word, engine_name="small", escalate=["large"])
        plan = compile_chain(Chain(name="one", steps=[step]))
    result = UnitResult(plan, plan.stations["first"], Hook())
    kept, dropped, escalated, rejected = ROWS
    result.keep(kept, Output("0", b"{}", 1, None), Usage(1, 10, 5))
    result.drop(dropped)
    result.reject(escalated, Reason.NOT_JSON, "not JSON", 1, usage=Usage(2, 20, 10))
    result.reject(rejected, Reason.TEMPLATE_ERROR, "no such name")
    whole = result.take(Unit("first", 0, "", "", ROWS))
    result.give_back(whole)

    first = result.take_less(whole, Unit("first", 0, "+0", "", ROWS[:size]), ROWS[size:])
    assert result.finished() == {row.row_id for row in ROWS[size:]} and result.age() > 0
    parts = [first, result.take(Unit("first", 0, "+1", "", ROWS[size:]))]
    assert not result.finished() and result.age() == 0
    assert [output for part in parts for output in part.outputs] == whole.outputs != []
    assert [rejection for part in parts for rejection in part.rejected] == whole.rejected != []
    assert [row for part in parts for row in part.dropped] == whole.dropped == ["1"]
    assert {row: each for part in parts for row, each in part.escalated.items()} == whole.escalated != {}
    assert sum((part.usage for part in parts), Usage()) == whole.usage == Usage(3, 30, 15)
    onward = [(unit.node, row.row_id) for part in parts for unit in part.effects.units for row in unit.rows]
    assert onward == [(unit.node, row.row_id) for unit in whole.effects.units for row in unit.rows] == [("first@2", "2")]
