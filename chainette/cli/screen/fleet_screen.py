"""A live run, and a whole fleet, in a terminal: lines that fit its width, drawn from Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from chainette.engine.price import Cost
from chainette.fleet.protocol.keys import aside as kept_aside
from chainette.fleet.protocol.member_fields import WORKER, Member
from chainette.fleet.protocol.seals import VARIABLE
from chainette.fleet.redis.connect import is_passing
from chainette.fleet.redis.fleet_view import LiveRun, Queue
from chainette.fleet.redis.run_registry import Board
from chainette.fleet.redis.stall_reasons import reasons
from chainette.io.rundir.costs import plain_cost
from chainette.io.rundir.progress import EngineView, Progress
from chainette.screen.live_layout import fitting, view_lines
from chainette.screen.numbers import amount, clock, short
from chainette.utils.plurals import counted, counted_of
from chainette.utils.terminal_text import visible_line

__all__ = ["FleetView", "RunView", "watch"]

#: Seconds between two looks.
_EVERY = 1.0

#: Draws a view into a width and a height; None once there is nothing left to show.
Draw = Callable[[int, int], list[Text] | None]


def watch(console: Console, draw: Draw) -> None:
    """Draws again and again until there is nothing left, or Ctrl-C; output that is no terminal gets new lines only.

    If Redis does not answer for a while, it is waited for, and the screen says so.
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
    """If Redis does not answer: the last view, and the reason why it stands still."""
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
    """One live run. Speeds are measured from the first look."""

    def __init__(self, board: Board, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._board, self._run = board, run
        self.progress = Progress(Path(), clock)

    def draw(self, width: int, height: int) -> list[Text] | None:
        """The view as it is now; None once the run is closed."""
        run = self._board.live(self._run)
        if run is None:
            return None
        self.progress.look(run.state(), engines_of(run))
        head = [_headline(run), *_queue_lines(run)]
        why = [Text(visible_line(f"why: {reason}"), style="yellow") for reason in reasons(run)]
        room = height - len(head) - len(why)
        bars = view_lines(self.progress, width, room) if run.info.outline.nodes else []
        return [*fitting([*head, *bars], max(40, width - 1)), *why]


class FleetView:
    """Everybody who lives, and every run."""

    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self._board, self._clock = board, clock
        self._progress: dict[str, Progress] = {}

    def draw(self, width: int, height: int) -> list[Text]:
        """The view as it is now, at most `height - 1` lines."""
        fleet = self._board.fleet()
        lines = [_totals(fleet.members), *(_member_line(name, member) for name, member in sorted(fleet.members.items()))]
        if not any(member.is_worker for member in fleet.members.values()):
            lines.append(Text("no live workers; start one: chainette worker --engine NAME", style="yellow"))
        if any(not run.info.key and run.info.epoch >= 0 for run in fleet.runs):
            lines.append(
                Text(f"messages are not sealed; a key in {VARIABLE} seals them (Security in the documentation)", style="dim")
            )
        runs = [line for run in fleet.runs for line in self._lines_of(run, width)]
        runs = runs or [Text("no live runs", style="dim")]
        room = max(4, height - 1 - len(runs))
        if len(lines) > room:
            lines = [*lines[: room - 1], Text(f"+{len(lines) - room + 1} more", style="dim")]
        return [*fitting(lines, max(40, width - 1)), *runs]

    def _lines_of(self, run: LiveRun, width: int) -> list[Text]:
        """A run, and the reasons why it does not move, which may take more than one line."""
        why = [Text(visible_line(f"  why: {reason}"), style="yellow") for reason in reasons(run)]
        return [*fitting(list(self._run_lines(run)), max(40, width - 1)), *why]

    def _run_lines(self, run: LiveRun) -> Iterator[Text]:
        info = run.info
        progress = self._progress.setdefault(info.run, Progress(Path(), self._clock))
        progress.look(run.state(), {})
        total = progress.total()
        parts = [
            info.state,
            counted_of(total.done, total.total, "row") if info.epoch >= 0 else "",
            f"{short(total.rate)} rows/s" if total.rate else "",
            f"{short(total.tokens)} tok/s" if total.tokens else "",
            f"{clock(total.left)} left" if total.left else "",
            f"{total.rejected:,} rejected" if total.rejected else "",
            amount(plain_cost(info.counts.cost)) if info.counts.cost != Cost() else "",
        ]
        yield Text(f"run {info.run}: {' · '.join(part for part in parts if part)}", style="bold")
        share = total.done / total.total if total.total else 0.0
        full = round(20 * min(1.0, share))
        if aside := _aside_words(run):
            yield Text(f"  {aside}", style="yellow")
        yield Text.assemble("  ", ("━" * full, "cyan"), ("─" * (20 - full), "dim"), f" {info.chain_ref}")


# -- out of Redis


def engines_of(run: LiveRun) -> dict[str, EngineView]:
    """The workers that serve the engines of a run."""
    return {name: _engine(name, run.members) for name in run.info.outline.engines}


def _engine(name: str, members: Mapping[str, Member]) -> EngineView:
    serving = [member for member in members.values() if name in member.engines]
    if not serving:
        return EngineView(name, "no live worker", trouble=True)
    rows = sum(member.rows_in_flight for member in serving)
    return EngineView(name, f"{counted(len(serving), 'worker')}, {counted(rows, 'row')} in flight there")


# -- the lines


def _headline(run: LiveRun) -> Text:
    info = run.info
    window = f", {info.live_rows:,} of {counted(info.window, 'row')} live" if info.window else ""
    behind = f", {counted(run.results, 'result')} to be written" if run.results else ""
    return Text(f"run {info.run}: {info.state}{window}{behind}", style="bold")


def _queue_lines(run: LiveRun) -> Iterator[Text]:
    busy = [f"{queue.node} {_load(queue)}" for queue in run.queues if queue.waiting or queue.units]
    if busy:
        yield Text(f"queues: {', '.join(busy)}", style="dim")
    if run.info.epoch >= 0:
        yield Text(f"messages: {f'sealed with fleet key {run.info.key}' if run.info.key else 'not sealed'}", style="dim")
    if aside := _aside_words(run):
        yield Text(aside, style="yellow")
    if run.barred:
        yield Text(f"phases: rows for {', '.join(run.barred)} wait in the shards for a later one", style="dim")


def _aside_words(run: LiveRun) -> str:
    """A note about messages that were put aside; "" if there are none."""
    info = run.info
    last = f"the last: {info.aside_why}; " if info.aside_why else ""
    return f"{counted(info.aside, 'invalid message')} put aside; {last}see {kept_aside(info.run)}" if info.aside else ""


def _load(queue: Queue) -> str:
    parts = [f"{queue.waiting} waiting" * bool(queue.waiting), f"{queue.units} at work" * bool(queue.units)]
    return " + ".join(part for part in parts if part)


def _totals(members: Mapping[str, Member]) -> Text:
    kinds = [member.kind for member in members.values()]
    rows = sum(member.rows_in_flight for member in members.values())
    processes = ", ".join(counted(kinds.count(kind), kind) for kind in (WORKER, "coordinator", "sink"))
    return Text(f"{processes}; {counted(rows, 'row')} in flight", style="bold")


def _member_line(name: str, member: Member) -> Text:
    if not member.is_worker:
        return Text(f"{member.kind} {name}: pid {member.pid} on {member.host}, since {member.started}")
    turns = f"; {counted(member.swaps, 'swap')}, the last took {member.swap_seconds} s" if member.swaps else ""
    held = f"{counted(member.rows_in_flight, 'row')} in flight in {counted(member.units_in_flight, 'unit')}"
    place = f" (pid {member.pid} on {member.host})" if member.pid else ""
    return Text(f"worker {name}{place}: {member.names}, {held}{turns}")
