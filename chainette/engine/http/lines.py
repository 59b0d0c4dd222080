"""Lines: passes on the pieces of an answer that an HTTP server streams line by line.

The answer itself, and whether it is complete, is read from the whole body at the end, so nothing can go wrong here.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chainette.engine.base import Completion, Delta, Tell, tell_whole
from chainette.engine.http.exchange import OnLine

__all__ = ["Lines"]


class Lines:
    """Passes on the pieces of one answer, over as many tries as it takes."""

    def __init__(self, delta_of: Callable[[bytes], Delta], tell: Tell) -> None:
        self._delta_of = delta_of
        self._tell = tell
        self._told = False

    def listen(self) -> OnLine:
        """A try begins; the pieces of earlier ones are void."""
        if self._told:
            self._tell(Delta(anew=True))
            self._told = False
        return self._take

    def end(self, completion: Completion) -> None:
        """The answer is complete. If the server does not stream, passes it on as one piece."""
        if not self._told:
            tell_whole(completion, self._tell)

    def _take(self, line: bytes) -> None:
        try:
            delta = self._delta_of(line)
        except msgspec.MsgspecError:
            return
        if delta.text or delta.reasoning:
            self._told = True
            self._tell(delta)
