"""`--stream`: answers as they arrive, in a terminal or a pipe; concurrent answers are printed one after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType

import typer

from chainette.cli.printing import is_terminal
from chainette.cli.screen.plain import Plain
from chainette.core.streaming import Asked, Dropped, Finished, Joined, Passed, Piece, StreamEvent, Unusable
from chainette.records import Rejection
from chainette.utils.terminal_text import visible

__all__ = ["Tokens", "Turns", "text_writer"]


def text_writer() -> Callable[[str], None]:
    """Writes text to the present stdout and flushes it."""
    stream = sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


class Turns:
    """Texts that grow concurrently: the one that began first is written as it grows, the others when their turn comes."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        #: Text -> its pieces that wait for their turn; none for the first text.
        self._open: dict[object, list[str]] = {}
        self._ended: set[object] = set()
        self._at_line_start = True

    def __contains__(self, key: object) -> bool:
        """Whether a text has begun and not ended."""
        return key in self._open and key not in self._ended

    def add(self, key: object, text: str) -> None:
        """Begins or continues a text."""
        waiting = self._open.setdefault(key, [])
        if next(iter(self._open)) == key:
            self._put(text)
        else:
            waiting.append(text)

    def end(self, key: object, line: str) -> None:
        """Ends a text with a separate line."""
        self.add(key, f"\n{line}\n\n")
        self._ended.add(key)
        while self._open and (first := next(iter(self._open))) in self._ended:
            self._ended.remove(first)
            del self._open[first]
            if self._open:
                waiting = self._open[next(iter(self._open))]
                self._put("".join(waiting))
                waiting.clear()

    def interrupt(self, line: str) -> None:
        """Writes an unrelated line at once."""
        self.finish_line()
        self._put(f"{line}\n")

    def between(self, line: str) -> None:
        """Writes an unrelated line when no text is in the middle of a line."""
        if not self._open:
            self.interrupt(line)
            return
        key = object()
        self.add(key, f"{line}\n\n")
        self._ended.add(key)

    def finish_line(self) -> None:
        """Starts a new line unless the last one is complete."""
        if not self._at_line_start:
            self._put("\n")

    def _put(self, text: str) -> None:
        if text:
            self._write(text)
            self._at_line_start = text.endswith("\n")


class Tokens(Plain):
    """Prints every answer token by token with its outcome, and the lines about engines."""

    streams = True

    def __init__(self, directory: os.PathLike[str], write: Callable[[str], object]) -> None:
        self._turns = Turns(write)
        self._colored = is_terminal()
        super().__init__(directory, self._turns.interrupt)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._turns.finish_line()

    def on_stream(self, event: StreamEvent) -> None:
        match event:
            case Asked():
                self._ask(event)
            case Piece():
                key = event.step_id, event.row_id
                self._turns.add(key, self._style(event.reasoning, dim=True) + visible(event.text))
            case Unusable():
                words = f"not usable ({event.reason}): {event.message}; asked again"
                self._turns.end((event.step_id, event.row_id), self._style(words, fg="yellow"))
            case Passed():
                self._pass(event)
            case Rejection():
                self._reject(event)
            case Dropped():
                self._tell(f"{event.node_id}, row {event.row_id}", "dropped")
            case Joined():
                self._tell(f"{', '.join(event.aliases)}, row {event.row.row_id}", "joined")
            case Finished():
                pass

    def _ask(self, event: Asked) -> None:
        key = event.step_id, event.row_id
        broken = "\nit broke off and starts again\n\n" if key in self._turns else ""
        again = f", ask {event.ask}" if event.ask > 1 else ""
        self._turns.add(key, f"{broken}{self._style(f'{event.step_id}, row {event.row_id}{again}', bold=True)}\n")

    def _pass(self, event: Passed) -> None:
        key = event.node_id, event.row.row_id
        if key in self._turns:
            self._turns.end(key, self._style("validated", fg="green"))
        else:
            self._tell(f"{event.node_id}, row {event.row.row_id}", event.row.values[event.node_id].decode())

    def _reject(self, rejection: Rejection) -> None:
        key, words = (rejection.step_id, rejection.row_id), f"rejected ({rejection.reason}): {rejection.message}"
        if key in self._turns:
            self._turns.end(key, self._style(words, fg="red"))
        else:
            self._tell(f"{rejection.step_id}, row {rejection.row_id}", words)

    def _tell(self, head: str, text: str) -> None:
        """Writes a text that is complete."""
        key = object()
        self._turns.add(key, self._style(head, bold=True))
        self._turns.end(key, visible(text))

    def _style(self, text: str, *, fg: str | None = None, bold: bool | None = None, dim: bool | None = None) -> str:
        text = visible(text)
        return typer.style(text, fg=fg, bold=bold, dim=dim) if self._colored and text else text

    def _tell_ready(self, line: str) -> None:
        self._turns.between(visible(line))  # the event comes once it is in the log, and answers may have begun

    def _tell_progress(self) -> None:
        """The answers themselves show the progress."""
