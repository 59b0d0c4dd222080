"""Bars that follow a run: in a terminal, or in a notebook.

They are drawn a few times a second, regardless of the number of events, and have at most one line per step.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from html import escape
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from chainette.engine.base import Completion, Request
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event
from chainette.io.rundir.progress import Progress
from chainette.screen.live_layout import total_line, view_lines
from chainette.utils.terminal_text import visible_line

__all__ = ["Bars", "NotebookBars", "TerminalBars"]

#: Drawings a second in a terminal, and seconds between two in a notebook, where each is a message to a browser.
_REFRESH = 4
_EVERY = 0.5
#: Columns and lines in a notebook.
_WIDTH, _HEIGHT = 100, 24


class Bars(Hook):
    """Follows one session of a run directory; events may come from one thread while another draws."""

    def __init__(self, directory: os.PathLike[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.progress = Progress(directory, clock)
        self._directory = directory
        self._lock = threading.Lock()

    def on_event(self, event: Event) -> None:
        with self._lock:
            self.progress.apply(event)

    def on_answers(self, step_id: str, _requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        with self._lock:
            self.progress.arrivals.answer(step_id, completions)

    def lines(self, width: int, height: int) -> list[Text]:
        """The view, as `view_lines` fits it."""
        with self._lock:
            return view_lines(self.progress, width, height)

    def last_line(self) -> Text:
        """The run as a whole, and its directory."""
        with self._lock:
            line = total_line(self.progress.total()) if self.progress.state.seq >= 0 else Text("not started")
        return line.append(f" · {visible_line(os.fspath(self._directory))}")


class TerminalBars(Bars):
    """Bars that move in place. The text above them stays; they disappear when the run has finished, and stay if it was stopped.

    Prints go above the bars, also those to the other one of stdout and stderr if it is a terminal.
    """

    def __init__(self, directory: os.PathLike[str], console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(directory, clock)
        self._console = console
        self._live = Live(
            get_renderable=lambda: Group(*self.lines(*console.size)),
            console=console,
            refresh_per_second=_REFRESH,
            transient=True,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.transient = error is None
        self._live.stop()


class NotebookBars(Bars):
    """One output of the cell, replaced as the run goes on; its last line stays."""

    def __init__(
        self, directory: os.PathLike[str], show: Callable[[dict[str, str]], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`show` displays a bundle of MIME types, and returns a handle whose `update` replaces it."""
        super().__init__(directory, clock)
        self._show = show
        self._ended = threading.Event()
        # the cell an output belongs to is a context variable of IPython
        self._thread = threading.Thread(target=copy_context().run, args=(self._draw,), name="chainette-bars", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _draw(self) -> None:
        shown = _bundle(self.lines(_WIDTH, _HEIGHT))
        handle = self._show(shown)
        while not self._ended.wait(_EVERY):
            if (drawn := _bundle(self.lines(_WIDTH, _HEIGHT))) != shown:
                handle.update(shown := drawn, raw=True)
        handle.update(_bundle([self.last_line()]), raw=True)


def _bundle(lines: Sequence[Text]) -> dict[str, str]:
    text = "\n".join(line.plain.rstrip() for line in lines)
    return {"text/plain": text, "text/html": f"<pre>{escape(text)}</pre>"}
