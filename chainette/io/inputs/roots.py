"""Roots: slices of batch_size records of the input, with good rows and bad lines separated."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from chainette.io.inputs.readers import InputFile, Record
from chainette.io.inputs.validate import BadRecord, InputModel
from chainette.records import CHAIN_INPUT, Read, Reason, Rejection, Row

__all__ = ["WAITING", "Root", "Roots", "first_record"]


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


def first_record(root: int, starts: Sequence[tuple[int, int]], batch_size: int) -> int:
    """The number of the first record of a root; `starts` is that of `Roots`."""
    first, record = next(start for start in reversed(starts) if start[0] <= root)
    return record + (root - first) * batch_size


class Roots:
    """The roots of an input. They are deterministic, so that every process numbers them alike."""

    def __init__(
        self, source: InputFile, model: InputModel, batch_size: int, starts: Sequence[tuple[int, int]] = ((0, 0),)
    ) -> None:
        """`starts` has (root, record) pairs from which roots are counted; the root before each may be shorter."""
        self._source = source
        self._model = model
        self._size = batch_size
        self._starts = starts
        files = source.files()
        #: The common folder of several files, which messages omit; None for one file.
        self._folder = Path(os.path.commonpath([file.parent for file in files])) if len(files) > 1 else None
        source.leave_out(model.unused(source.columns() or ()))

    def pending(self, is_done: Callable[[int], bool]) -> Iterator[Root]:
        """Roots that are not done, in order; roots that are done are skipped without decoding them. If the input grows,
        `WAITING` is yielded while the next root is being read.

        Raises:
            InputError: the input changed, or can no longer be read.
        """
        found = self._pending(is_done)
        return found if self._source.growing is None else _RootsAhead(found)

    def _pending(self, is_done: Callable[[int], bool]) -> Iterator[Root]:
        number = 0
        while is_done(number):
            number += 1
        trail = self._source.trail()
        records = self._source.records(self._first(number), trail)
        while batch := list(islice(records, self._first(number + 1) - self._first(number))):
            read = trail.mark()
            if self._source.is_cut:
                return  # the source has the rest of this root, or of its last line
            if not is_done(number):
                yield self._root(number, batch, read)
            number += 1

    def _first(self, number: int) -> int:
        return first_record(number, self._starts, self._size)

    def _root(self, number: int, batch: list[Record], read: Read) -> Root:
        rows, bad = [], []
        for record in batch:
            row_id = str(record.index)
            try:
                value, key = self._model.validate(record)
            except BadRecord as error:
                said = f"{self._place(record)}{error}"
                bad.append(Rejection(row_id, CHAIN_INPUT, Reason.INVALID_INPUT, said, 0, record.raw, record.line))
            else:
                rows.append(Row(row_id, {CHAIN_INPUT: value}, record.line, key))
        return Root(number, rows, bad, len(batch), read)

    def _place(self, record: Record) -> str:
        if self._folder is None or record.file is None:
            return ""
        return f"{record.file.relative_to(self._folder)}:{record.line}: "


class _RootsAhead:
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
