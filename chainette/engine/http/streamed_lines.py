"""Lines: passes on the pieces of an answer that an HTTP server streams line by line.

The answer itself, and whether it is complete, is read from the whole body at the end, so nothing can go wrong here.
"""

from __future__ import annotations

from chainette.engine.base import Completion, Delta, Tell, tell_whole
from chainette.engine.http.carrier import OnLine
from chainette.engine.http.chat_reply import Pieces

__all__ = ["Lines"]


class Lines:
    """Passes on the pieces of one answer, over as many tries as it takes."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        #: The text and the thoughts passed on in this try.
        self._told: list[Delta] = []

    def listen(self) -> OnLine:
        """A try begins; the pieces of earlier ones are void."""
        self._void()
        pieces = Pieces()

        def take(line: bytes) -> None:
            delta = pieces.of(line)
            if delta.text or delta.reasoning:
                self._told.append(delta)
                self._tell(delta)

        return take

    def end(self, completion: Completion) -> None:
        """The answer is complete. Passes it on as one piece unless its pieces were: a server may not stream, or stream an
        answer as something else."""
        told = "".join(delta.text for delta in self._told), "".join(delta.reasoning for delta in self._told)
        if told != (completion.text, completion.reasoning or ""):
            self._void()
            tell_whole(completion, self._tell)

    def _void(self) -> None:
        if self._told:
            self._tell(Delta(anew=True))
            self._told = []
