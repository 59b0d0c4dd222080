"""The drawing of a run: every node once, nothing on top of another, the rows on the arrows."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest

from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.graph import GraphSamples
from chainette.io.rundir.run_state import RunState
from chainette.report.drawing import Box, Drawing, draw
from tests.support.chains import everything, texts


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    """Of a run over a chain with every kind of node."""
    directory = tmp_path_factory.mktemp("run") / "out"
    everything().run(texts(30), directory)
    state = RunState()
    for _, event in read_log(Path(directory) / "events.jsonl"):
        state.apply(event)
    return state


@pytest.fixture(params=[0.5, 0], ids=["centred", "left"])
def drawing(state: RunState, request: pytest.FixtureRequest) -> Drawing:
    return draw(state, request.param)


def overlap(one: Box, other: Box) -> bool:
    across = one.x < other.x + other.width and other.x < one.x + one.width
    return across and one.y < other.y + other.height and other.y < one.y + one.height


def test_every_node_and_join_is_drawn_once(drawing: Drawing, state: RunState) -> None:
    nodes = sorted(box.title for box in drawing.boxes if box.kind in ("step", "apply", "pick"))
    assert nodes == sorted(node.id for node in state.graph.nodes)
    forks = [fork for fork in state.graph.forks if not isinstance(fork, GraphSamples)]
    joins = [fork for fork in forks if fork.joins]
    assert sum(box.kind == "join" for box in drawing.boxes) == len(joins) >= 2
    branches = [branch.branch for fork in forks for branch in fork.branches]
    assert sorted(words.text for words in drawing.words) == sorted(branches)


def test_no_box_overlaps_another_or_lies_outside(drawing: Drawing) -> None:
    assert not [(one.title, other.title) for one, other in combinations(drawing.boxes, 2) if overlap(one, other)]
    for box in drawing.boxes:
        assert box.x >= 0 and box.x + box.width <= drawing.width
        assert box.y >= 0 and box.y + box.height <= drawing.height


def test_boxes_show_the_rows_that_left_the_flow(drawing: Drawing, state: RunState) -> None:
    boxes = {box.title: dict(box.exits) for box in drawing.boxes if box.kind in ("step", "apply", "input")}
    for name, exits in boxes.items():
        counts = state.node(name).plain()
        shown = {key: counts[key] for key in ("rejected", "dropped", "stopped", "expanded") if counts[key]}
        shown |= {"invalid": counts["invalid_candidates"]} if counts.get("invalid_candidates") else {}
        assert exits == shown, name
    every = {kind for exits in boxes.values() for kind in exits}
    assert {"rejected", "dropped", "expanded", "invalid"} <= every


def test_arrows_carry_the_rows_that_the_next_node_took(drawing: Drawing, state: RunState) -> None:
    carried = sorted(arrow.rows for arrow in drawing.arrows if arrow.spot)
    for node in state.graph.nodes:
        assert state.node(node.id).taken in carried
    assert state.finished_rows in carried


def test_more_rows_make_a_thicker_arrow(drawing: Drawing) -> None:
    by_rows = sorted(drawing.arrows, key=lambda arrow: arrow.rows)
    assert all(one.width <= other.width for one, other in pairwise(by_rows))
    assert by_rows[0].width < by_rows[-1].width


def test_on_the_left_the_main_flow_stays_on_the_first_screen(state: RunState) -> None:
    left = {box.title: box for box in draw(state, 0).boxes}
    assert {left[name].x for name in ("chain_input", "extract", "count", "twice")} == {left["chain_input"].x}
    assert left["chain_input"].x + left["chain_input"].width < 250
