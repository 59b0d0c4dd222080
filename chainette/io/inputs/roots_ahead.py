"""Reads the roots of a slow input in another thread, so that nobody waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from chainette.records import Read, Rejection, Row

__all__ = ["WAITING", "Root", "RootsAhead"]


@dataclass(frozen=True)
class Root:
    """Slice n of the input: records n*B to n*B+B-1, where B is the batch size, unless a limit was raised."""

    number: int
    rows: list[Row]
    bad: list[Rejection]
    records: int
    #: The position up to which the input was read.
    read: Read | None = None


#: Stands for a root that is being read.
WAITING = Root(-1, [], [], 0)


class RootsAhead:
    """Yields each root as soon as it has been read, and `WAITING` until then. Starts reading a root when it is asked for."""

    def __init__(self, roots: Iterator[Root]) -> None:
        self._roots = roots
        self._read: list[Root | BaseException] = []
        self._reader: threading.Thread | None = None

    def __iter__(self) -> Iterator[Root]:
        return self

    def __next__(self) -> Root:
        if self._reader is None:
            # it may wait for a source forever, and must not keep the process from ending
            self._reader = threading.Thread(target=self._read_one, name="input", daemon=True)
            self._reader.start()
        if self._reader.is_alive():
            return WAITING
        self._reader = None
        found = self._read.pop()
        if isinstance(found, BaseException):
            raise found
        return found

    def _read_one(self) -> None:
        try:
            self._read.append(next(self._roots))
        except BaseException as error:
            self._read.append(error)
