"""Compares roots in Redis with the input: their records, and the position that the input was read to for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from chainette.fleet.protocol.messages import RootRecord
from chainette.io.inputs.input_digest import Trail
from chainette.io.inputs.readers import InputFile
from chainette.io.inputs.roots import first_record
from chainette_workers.sink.message_faults import root_fault

__all__ = ["InputCheck"]


@dataclass
class InputCheck:
    """The input of a run as its sink sees it; reads it a second time where a coordinator elsewhere has read it."""

    source: InputFile
    batch_size: int
    #: As in `RunState`, at this moment.
    starts: Callable[[], Sequence[tuple[int, int]]]
    #: Records of the input, where that is known without reading much.
    expected: int | None = None
    _trail: Trail | None = field(default=None, init=False)

    def ids(self, root: int) -> range:
        """The numbers of a root's records; the last root may have fewer."""
        starts = self.starts()
        return range(first_record(root, starts, self.batch_size), first_record(root + 1, starts, self.batch_size))

    def fault(self, root: int, record: RootRecord) -> str:
        """The reason why these cannot be the records of a root; "" if they can."""
        if not (0 <= root <= self._most and self.ids(root).start < self._most):
            return "the input has no such root"
        if fault := root_fault(self.ids(root), self.source.size, record):
            return fault
        if record.read is None:
            return ""
        self._trail = self._trail or self.source.trail()
        return "" if self._trail.confirms(record.read) else "the input here is another one than it was made from"

    @cached_property
    def _most(self) -> int:
        """Records that the input can have at most: a byte each, but for Parquet, which counts them."""
        return max(self.source.size, self.expected or 0)
