"""What a live run, and a whole fleet, look like in a terminal: lines that fit its width, out of what Redis says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from chainette.cli.screen.live import view_lines
from chainette.cli.screen.progress import EngineView, Progress
from chainette.cli.screen.summary import clock, short
from chainette.fleet.protocol.keys import served
from chainette.fleet.redis.connect import is_passing
from chainette.fleet.redis.reasons import reasons
from chainette.fleet.redis.run_registry import Board
from chainette.fleet.redis.snapshot import Load, Snapshot, as_number
from chainette.io.rundir.replay import NodeCounts, RunState
from chainette.records import Usage

__all__ = ["FleetView", "RunView", "watch"]

#: Seconds between two looks.
_EVERY = 1.0

#: Draws a view into a width and a height; None where there is nothing left to look at.
Draw = Callable[[int, int], list[Text] | None]


def watch(console: Console, draw: Draw) -> None:
    """Draws again and again until there is nothing left, or Ctrl-C; what does not go to a terminal gets new lines only.

    A Redis that does not answer for a while is waited for, and said so.
    """
    draw = _patient(draw)
    if not console.is_terminal or console.is_dumb_terminal:
        _follow(console, draw)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while (lines := draw(*console.size)) is not None:
            live.update(Group(*lines), refresh=True)
            time.sleep(_EVERY)


def _patient(draw: Draw) -> Draw:
    """The view as it was, and why it stands still, if Redis does not answer."""
    import redis  # noqa: PLC0415 - 0.2 s, which a look at a directory does not need

    last: list[Text] = []

    def patient(width: int, height: int) -> list[Text] | None:
        nonlocal last
        try:
            lines = draw(width, height)
        except redis.RedisError as error:
            if not is_passing(error):
                raise
            return [*last, Text(f"Redis does not answer ({error}); looking again", style="yellow")]
        last = lines or []
        return lines

    return patient


def _follow(console: Console, draw: Draw) -> None:
    before: list[str] = []
    while (lines := draw(console.width, 1000)) is not None:
        now = [line.plain for line in lines]
        for line in now:
            if line not in before:
                console.print(line, soft_wrap=True)
        before = now
        time.sleep(_EVERY)


class RunView:
    """One live run. Speeds are measured from the first look on."""

    def __init__(self, board: Board, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._board, self._run = board, run
        self.progress = Progress(Path(), clock)

    def draw(self, width: int, height: int) -> list[Text] | None:
        """The view as it is now; None once the run is closed."""
        snapshot = self._board.snapshot(self._run)
        if snapshot is None:
            return None
        self.progress.look(state_of(snapshot), engines_of(snapshot))
        head = [_headline(snapshot), *_queue_lines(snapshot)]
        why = [Text(f"why: {reason}", style="yellow") for reason in reasons(snapshot)]
        room = height - len(head) - len(why)
        bars = view_lines(self.progress, width, room) if _decoded(snapshot.info.fields.get("outline")) else []
        return [*_fitting([*head, *bars], width), *why]


class FleetView:
    """Everybody who lives, and every run."""

    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self._board, self._clock = board, clock
        self._progress: dict[str, Progress] = {}

    def draw(self, width: int, height: int) -> list[Text]:
        """The view as it is now, at most `height - 1` lines."""
        members, infos = self._board.members(), self._board.runs()
        snapshots = [found for info in infos if (found := self._board.snapshot(info.run)) is not None]
        lines = [_census_line(members), *(_member_line(name, words) for name, words in sorted(members.items()))]
        if not any(words.get("kind", "worker") == "worker" for words in members.values()):
            lines.append(Text("no live workers; start one: chainette worker --engine NAME", style="yellow"))
        runs = [line for snapshot in snapshots for line in self._lines_of(snapshot, width)]
        runs = runs or [Text("no live runs", style="dim")]
        room = max(4, height - 1 - len(runs))
        if len(lines) > room:
            lines = [*lines[: room - 1], Text(f"+{len(lines) - room + 1} more", style="dim")]
        return [*_fitting(lines, width), *runs]

    def _lines_of(self, snapshot: Snapshot, width: int) -> list[Text]:
        """A run, and behind it why it does not move; the reasons may take more than a line."""
        why = [Text(f"  why: {reason}", style="yellow") for reason in reasons(snapshot)]
        return [*_fitting(list(self._run_lines(snapshot)), width), *why]

    def _run_lines(self, snapshot: Snapshot) -> Iterator[Text]:
        info = snapshot.info
        progress = self._progress.setdefault(info.run, Progress(Path(), self._clock))
        progress.look(state_of(snapshot), {})
        total = progress.total()
        of = f" of {total.total:,}" if total.total is not None else ""
        parts = [
            info.state,
            f"{total.done:,}{of} rows" if info.epoch >= 0 else "",
            f"{short(total.rate)} rows/s" if total.rate else "",
            f"{short(total.tokens)} tok/s" if total.tokens else "",
            f"{clock(total.left)} left" if total.left else "",
            f"{total.rejected:,} rejected" if total.rejected else "",
        ]
        chain = info.fields.get("chain_ref", "")
        yield Text(f"run {info.run}: {' · '.join(part for part in parts if part)}", style="bold")
        share = total.done / total.total if total.total else 0.0
        full = round(20 * min(1.0, share))
        yield Text.assemble("  ", ("━" * full, "cyan"), ("─" * (20 - full), "dim"), f" {chain}")


# -- out of Redis


def state_of(snapshot: Snapshot) -> RunState:
    """The run as the log of its directory would give it, as far as its sink has said."""
    fields = snapshot.info.fields
    counts = _decoded(fields.get("counts")) or {"records": 0, "expected": None, "nodes": {}}
    graph: dict[str, Any] = _decoded(fields.get("outline"))
    nodes = {
        name: NodeCounts(taken, given, rejected, usage=Usage(completion_tokens=tokens))
        for name, (taken, given, rejected, tokens) in counts["nodes"].items()
    }
    return RunState(seq=0, graph=graph, nodes=nodes, records=counts["records"], expected=counts["expected"])


def _decoded(said: str | None) -> dict[str, Any]:
    """A JSON object that a sink wrote down at its run; empty if Redis holds something else by now."""
    try:
        return msgspec.json.decode(said or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError):
        return {}


def engines_of(snapshot: Snapshot) -> dict[str, EngineView]:
    """Who serves the engines of a run."""
    graph = _decoded(snapshot.info.fields.get("outline"))
    return {name: _engine(name, snapshot.members) for name in graph.get("engines", {})}


def _engine(name: str, members: Mapping[str, Mapping[str, str]]) -> EngineView:
    serving = [words for words in members.values() if name in served(words)]
    if not serving:
        return EngineView(name, "no live worker", trouble=True)
    rows = sum(as_number(words.get("rows_in_flight")) for words in serving)
    return EngineView(name, f"{len(serving)} worker{'s' * (len(serving) > 1)}, {rows:,} rows in flight there")


# -- the lines


def _headline(snapshot: Snapshot) -> Text:
    info = snapshot.info
    window = f", {snapshot.live_rows:,} of {snapshot.window:,} rows live" if snapshot.window else ""
    behind = f", {snapshot.results:,} results to be written" if snapshot.results else ""
    return Text(f"run {info.run}: {info.state}{window}{behind}", style="bold")


def _queue_lines(snapshot: Snapshot) -> Iterator[Text]:
    busy = [f"{node} {_load(load)}" for node, load in snapshot.loads.items() if load != Load()]
    if busy:
        yield Text(f"queues: {', '.join(busy)}", style="dim")
    if snapshot.barred:
        yield Text(f"phases: rows for {', '.join(snapshot.barred)} wait in the shards for a later one", style="dim")


def _load(load: Load) -> str:
    parts = [f"{load.waiting} waiting" * bool(load.waiting), f"{load.units} at work" * bool(load.units)]
    return " + ".join(part for part in parts if part)


def _census_line(members: Mapping[str, Mapping[str, str]]) -> Text:
    kinds = [words.get("kind", "worker") for words in members.values()]
    rows = sum(as_number(words.get("rows_in_flight")) for words in members.values())
    counted = [f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) != 1)}" for kind in ("worker", "coordinator", "sink")]
    return Text(f"{', '.join(counted)}; {rows:,} rows in flight", style="bold")


def _member_line(name: str, words: Mapping[str, str]) -> Text:
    if words.get("kind", "worker") == "worker":
        units, rows = words.get("units_in_flight", "0"), words.get("rows_in_flight", "0")
        swaps = as_number(words.get("swaps"))
        turns = f"; {swaps} swaps, the last took {words.get('swap_seconds')} s" if swaps else ""
        return Text(f"worker {name}: {words.get('engines')}, {rows} rows in flight in {units} units{turns}")
    return Text(f"{words.get('kind')} {name}: pid {words.get('pid')} on {words.get('host')}, since {words.get('started')}")


def _fitting(lines: list[Text], width: int) -> list[Text]:
    for line in lines:
        line.no_wrap = True
        line.truncate(max(40, width - 1), overflow="ellipsis")
    return lines
