"""Progress of runs that Python code starts: on a terminal or in a notebook, and nowhere else."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chainette.hooks import Hook

__all__ = ["shown"]

#: Held by the one run that draws on the terminal; other runs of the process go on without bars.
_TERMINAL = threading.Lock()


@contextmanager
def shown(directory: os.PathLike[str]) -> Iterator[tuple[Hook, ...]]:
    """The hooks that show a run while it goes on: none, unless stderr is a terminal or this process is a notebook's kernel.

    A terminal shows one run at a time.
    """
    if _is_notebook():
        from IPython.display import display

        from chainette.screen.live_bars import NotebookBars

        show: Any = display  # it has no types
        with NotebookBars(directory, lambda bundle: show(bundle, raw=True, display_id=True)) as bars:
            yield (bars,)
    elif _is_terminal() and _TERMINAL.acquire(blocking=False):
        try:
            with _on_terminal(directory) as hooks:
                yield hooks
        finally:
            _TERMINAL.release()
    else:
        yield ()


def _is_notebook() -> bool:
    """Whether a kernel runs this process; IPython in a terminal is none."""
    ipython: Any = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def _on_terminal(directory: os.PathLike[str]) -> Iterator[tuple[Hook, ...]]:
    from rich.console import Console

    from chainette.screen.live_bars import TerminalBars

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    bars = TerminalBars(directory, console)
    try:
        with bars:
            yield (bars,)
    finally:
        console.print(bars.last_line(), soft_wrap=True)
