"""An order counts once: not after it was carried out, not after a later one, and not long after it was given."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from chainette_workers.service.service import Elsewhere
from chainette_workers.service.sink_service import _due, _is_closed

from chainette import Chain, apply
from chainette.fleet.redis.run_registry import Order
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from tests.support.chains import Text

ANEW = Order(chain_ref="c.py", digest="d", inputs=("in.jsonl",), directory="out", from_steps=("same",), number=3)


def same(item: Text) -> Text:
    return item


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    Chain(name="c", steps=[apply(same)]).run([{"text": "a"}], tmp_path / "out")
    state, _ = read_state(RunDir(tmp_path / "out"))
    state.order = 2
    return state


def test_an_order_is_carried_out_once(state: RunState) -> None:
    assert _due(ANEW, state) == ANEW and not _is_closed(state, ANEW)
    state.order = 3
    assert _due(ANEW, state).from_steps == () and _is_closed(state, ANEW)


def test_an_order_that_a_later_one_replaced_is_refused_with_the_next_command(state: RunState) -> None:
    state.order = 4
    with pytest.raises(Elsewhere, match="number 3, but out has already followed number 4; continue with `chainette resume`"):
        _due(ANEW, state)
    assert _is_closed(state, ANEW), "a finished run is not opened by it"
    assert _due(ANEW.after(state.order), state).number == 5


def test_an_order_whose_directory_is_gone_begins_no_run_after_a_week() -> None:
    assert _due(ANEW, None) == ANEW
    with pytest.raises(Elsewhere, match="its order is 8 days old and there is no run in out; enqueue it again"):
        _due(msgspec.structs.replace(ANEW, at=int(time.time()) - 8 * 86400), None)
