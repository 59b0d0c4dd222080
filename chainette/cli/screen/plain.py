"""The output of a run without a live view: plain lines, the events as JSON lines, or only the directory.

A reporter is a hook that is also a context around the run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from chainette.cli.printing import for_scripts, show_path
from chainette.cli.screen.summary import summary_lines
from chainette.engine.base import Completion, Request
from chainette.hooks import Hook
from chainette.io.rundir.event_types import EngineLoaded, Event, RunResumed, RunStarted, UnitCommitted, UnitRetried
from chainette.io.rundir.progress import Progress, TotalView, earlier_events
from chainette.io.rundir.result import RunResult
from chainette.screen.numbers import clock, short
from chainette.utils.plurals import counted, counted_of
from chainette.utils.terminal_text import visible_json, visible_paragraph

__all__ = ["JsonLines", "Plain", "QuietReporter", "Reporter", "line_writer"]

#: Plain output has a line of progress every `_EVERY` seconds, and after each of `_PARTS` parts of the input.
_EVERY = 5.0
_PARTS = 10


def line_writer() -> Callable[[str], None]:
    """Prints lines to the present stdout, flushing each so that a log can be followed; if it is closed, to the new stdout."""
    stream = sys.stdout

    def write(text: str) -> None:
        out = sys.stdout if stream.closed else stream
        if not out.closed:
            out.write(text + "\n")
            out.flush()

    return write


class Reporter(Hook):
    """Reports a run while it goes on, and its result."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Called when the run is over, finished or not; the screen is free again."""

    def end(self, result: RunResult) -> None:
        """Called when the run has finished."""


class QuietReporter(Reporter):
    """Prints the directory at the end."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def end(self, result: RunResult) -> None:
        self._write(for_scripts(show_path(result.dir)))


class JsonLines(Reporter):
    """Prints the session's events as the log has them, without the checksum and the keys of rows."""

    def __init__(self, directory: os.PathLike[str], write: Callable[[str], object]) -> None:
        self._directory = directory
        self._write = write
        self._began = False

    def on_event(self, event: Event) -> None:
        if not self._began:
            self._began = True
            for earlier in earlier_events(self._directory, event):
                if earlier.epoch == event.epoch:
                    self._print(earlier)
        self._print(event)

    def _print(self, event: Event) -> None:
        if isinstance(event, UnitCommitted):
            event = msgspec.structs.replace(event, keys=b"")
        self._write(visible_json(msgspec.json.encode(event).decode()))


class Plain(Reporter):
    """Prints lines for a log file."""

    def __init__(
        self, directory: os.PathLike[str], write: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.progress = Progress(directory, clock)
        self._directory = directory
        self._write: Callable[[str], object] = lambda line: write(visible_paragraph(line))
        self._clock = clock
        self._last = clock()
        self._part = 0
        #: Node -> when the silence of its engine was last reported.
        self._told: dict[str, float] = {}

    def on_event(self, event: Event) -> None:
        self.progress.apply(event)
        match event:
            case RunStarted() | RunResumed():
                self._write(self._start())
            case EngineLoaded():
                self._tell_ready(f"engine {event.engine}: ready in {event.seconds:.1f} s ({event.backend}, {event.model})")
            case UnitRetried():
                self._tell_silence(event)
            case _:
                self._tell_progress()

    def on_answers(self, step_id: str, _requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        self.progress.arrivals.answer(step_id, completions)

    def _start(self) -> str:
        state = self.progress.state
        rows = "rows of unknown number" if state.expected is None else counted(state.expected, "row")
        verb = f"goes on in phase {state.phase + 1}" if state.phase else "resumed" if state.epoch else "started"
        return f"run {state.run.run_id}: chain {state.run.chain} {verb}, {rows}, into {self._directory}"

    def _tell_ready(self, line: str) -> None:
        self._write(line)

    def _tell_silence(self, event: UnitRetried) -> None:
        last = self._told.get(event.node)
        if last is None or self._clock() - last >= _EVERY:
            self._told[event.node] = self._clock()
            self._write(f"step {event.node}: its engine does not answer, retry in {event.delay:.1f} s: {event.message}")

    def _tell_progress(self) -> None:
        view = self.progress.total()
        part = _PARTS * view.done // view.total if view.total else 0
        if self._clock() - self._last >= _EVERY or part > self._part:
            self._last, self._part = self._clock(), part
            self._write(progress_line(view, self.progress))

    def end(self, result: RunResult) -> None:
        from chainette.cli.screen.tables import console, counts_table  # noqa: PLC0415 - rich, which a quiet run does without

        metadata = result.metadata
        console().print(counts_table(metadata))
        for line in summary_lines(metadata, show_path(result.dir)):
            self._write(line)


def progress_line(view: TotalView, progress: Progress) -> str:
    """`1,200 of 5,000 rows | extract 1,300, sum 1,200 | 31 rows/s | 2:03 left | 3 rejected`; before the first row has gone
    through all steps, `24 tok/s`."""
    parts = [
        counted_of(view.done, view.total, "row"),
        "" if (found := progress.state.accepted) is None else f"{found.certain:,} of {found.wanted:,} accepted",
        ", ".join(f"{node.id} {node.done:,}" for node in progress.nodes()),
        f"{short(view.rate)} rows/s" if view.rate else f"{short(view.tokens)} tok/s" if view.tokens else "",
        f"{clock(view.left)} left" if view.left is not None else "",
        f"{view.rejected:,} rejected" if view.rejected else "",
    ]
    return " | ".join(part for part in parts if part)
