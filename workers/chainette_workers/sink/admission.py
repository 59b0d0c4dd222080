"""The admission of a run's roots: by whom, and at which pace while the queue takes none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from chainette.io.inputs.roots import Root
from chainette.io.inputs.same_input import require_same_input
from chainette.run.coordinator import Coordinator, read_for_live_roots
from chainette.run.session import Session, roots_of
from chainette_workers.sink.sink import Sink

__all__ = ["Admitting", "Pace", "coordinated_here"]

#: Seconds of admissions between two looks at the results.
_ADMITTING = 0.02

#: Seconds between two tries of a waiting root while no other becomes complete.
_REFUSED = 0.1


class Admitting(Protocol):
    """The part that admits a run's roots."""

    @property
    def finished(self) -> bool: ...

    def step(self) -> bool: ...


def coordinated_here(session: Session, sink: Sink) -> Admitting:
    """Admits the session's own input.

    Raises:
        InputError: the rows admitted so far were read from other bytes.
    """
    if (read := read_for_live_roots(sink.queue, sink.keys)) is not None:
        state, directory = session.writer.state, str(session.writer.directory)
        require_same_input(session.source, state.input, read, directory)
    writer = session.writer
    roots = roots_of(session.plan, session.source, session.options, writer.state.roots.starts)

    def pending(last: int) -> Iterator[Root]:
        # roots after the last one that the epoch admitted were complete before the epoch if they are complete now
        return roots.pending(lambda root: root <= last or writer.state.roots.is_done(root))

    return Coordinator(sink.queue, sink.keys, session.plan, pending, writer.durable, admits=session.admits)


@dataclass
class Pace:
    """Admits roots for a moment at a time. A root that has to wait, usually for room in the window, is sent again when another
    one is complete, or after a while."""

    #: When the last root had to wait, and the number of complete roots then.
    _refused_at: float = 0.0
    _done_then: int = -1

    def admit(self, coordinator: Admitting, done: int) -> bool:
        """Admits roots, now that so many are complete; False if the first of them has to wait."""
        now = time.monotonic()
        if done == self._done_then and now < self._refused_at + _REFUSED:
            return False
        moved = goes_on = coordinator.step()
        while goes_on and time.monotonic() < now + _ADMITTING:
            goes_on = coordinator.step()
        if not goes_on:
            self._refused_at, self._done_then = now, done
        return moved
