"""Live runs and fleets as lines: their words, and that they fit."""

from __future__ import annotations

import io
from typing import cast

import msgspec
import pytest
from chainette_workers.sink.status_fields import outline_of
from rich.console import Console

from chainette.cli.fleet_json import fleet_json
from chainette.cli.screen.fleet_screen import FleetView, RunView, watch
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.redis.fleet_view import Fleet, LiveRun, Queue
from chainette.fleet.redis.run_registry import Board
from tests.support.fleet import forked, record

RUN = "20261126-131458-65650b16"
COUNTS = '{"records": 1200, "expected": 3000000, "nodes": {"first": [1200, 1190, 10, 0], "second": [900, 900, 0, 0]}}'
MEMBERS = {
    "w-47a9952f2ce9": Member(names="judge,python,writer", rows_in_flight=192, units_in_flight=3, swaps=2),
    "sink-7fa31b028515": Member(kind="sink", pid=4193, host="a-host-with-a-rather-long-name", started="2026-11-26"),
}
QUEUES = tuple(Queue(node, "python", 41, units=2, rows=64) for node in ("first", "letters", "no_x", "loud", "louder", "second"))


class Told:
    """A board that says the same again and again, and after `looks` the run is over."""

    def __init__(self, looks: int = 100, **fields: str) -> None:
        self.looks = looks
        known = {"order": "{}", "sink": "sink-7fa31b028515", "total": "1", "window": "4096", "live_rows": "2808"}
        known |= {"outline": msgspec.json.encode(outline_of(forked())).decode(), "counts": COUNTS}
        self.run = LiveRun(record(RUN, **(known | fields)), MEMBERS, QUEUES)

    def fleet(self) -> Fleet:
        return Fleet((self.run,), MEMBERS)

    def live(self, run: str) -> LiveRun | None:
        self.looks -= 1
        return self.run if self.looks >= 0 else None


def board(told: Told) -> Board:
    return cast("Board", told)


@pytest.mark.parametrize("width", [80, 120, 60])
def test_every_line_fits_but_for_the_reasons(width: int) -> None:
    for lines in (RunView(board(Told()), RUN).draw(width, 24), FleetView(board(Told())).draw(width, 24)):
        assert lines
        assert all(line.cell_len < width for line in lines), [line.plain for line in lines if line.cell_len >= width]
        assert len(lines) < 24


def test_a_run_says_how_far_it_is_what_waits_and_what_is_at_work() -> None:
    text = "\n".join(line.plain for line in RunView(board(Told()), RUN).draw(160, 30) or [])
    assert f"run {RUN}: running, 2,808 of 4,096 rows live" in text
    assert "first 41 waiting + 2 at work" in text
    assert "1200/3.0M" in text


def test_a_run_that_is_held_says_why_in_full() -> None:
    reason = "sink on a-host-with-a-rather-long-name: no space left for the shards of this run; free some, then go on"
    told = Told(state="paused", reason=reason)
    for lines in (RunView(board(told), RUN).draw(80, 24) or [], FleetView(board(told)).draw(80, 24)):
        assert any(reason in line.plain for line in lines)


def test_a_fleet_says_who_lives_and_what_swaps_cost() -> None:
    text = "\n".join(line.plain for line in FleetView(board(Told())).draw(160, 30))
    assert "1 worker, 0 coordinators, 1 sink; 192 rows in flight" in text
    assert "2 swaps, the last took" in text
    assert f"run {RUN}: running" in text and "chain.py:chain" in text


def test_a_pipe_gets_each_line_once_until_the_run_is_over() -> None:
    out = io.StringIO()
    watch(Console(file=out, width=80), RunView(board(Told(looks=2)), RUN).draw)
    lines = out.getvalue().splitlines()
    assert lines and len(lines) == len(set(lines)) and "\x1b" not in out.getvalue()


def test_a_fleet_as_json_has_the_numbers_of_its_screen_and_the_reason_of_a_pause() -> None:
    told = Told(state="paused", reason="the disk is full")
    found = fleet_json(told.fleet())
    [run] = found["runs"]
    assert (run["run"], run["state"], run["live_rows"], run["window"]) == (RUN, "paused", 2808, 4096)
    assert (run["records"], run["expected"]) == (1200, 3_000_000)
    assert run["steps"]["first"] == {"in": 1200, "out": 1190, "rejected": 10, "completion_tokens": 0}
    assert {queue["node"]: (queue["waiting"], queue["units"]) for queue in run["queues"]}["loud"] == (41, 2)
    assert any("the disk is full" in reason for reason in run["why"])
    assert {member["name"]: (member["kind"], member["engines"]) for member in found["members"]} == {
        "w-47a9952f2ce9": ("worker", ["judge", "python", "writer"]),
        "sink-7fa31b028515": ("sink", []),
    }
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
