"""The shards of a run as its log has them."""

from __future__ import annotations

from dataclasses import dataclass, field

from chainette.io.rundir.event_types import ShardSealed, UnitCommitted
from chainette.utils.plurals import counted

__all__ = ["LoggedShards"]

#: The log's prefix for folders of steps with `yield_output=False`.
_HELD = ".held/"


@dataclass
class LoggedShards:
    """The bytes and rows of every shard up to the last event."""

    #: Folder -> journal number -> (bytes, rows).
    ends: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    #: Folder -> number -> bytes of the sealed shard.
    sealed: dict[str, dict[int, int]] = field(default_factory=dict)
    #: Journal -> CRC-32 of its bytes; of the shard once that is sealed. Logs of older versions have none.
    sums: dict[str, int] = field(default_factory=dict)
    #: Journal -> description of its rows that no line of the log covers.
    holes: dict[str, str] = field(default_factory=dict)

    def rows(self, folder: str) -> int:
        """The number of rows in a folder."""
        return sum(rows for _, rows in self.ends.get(folder, {}).values())

    def append(self, event: UnitCommitted) -> None:
        """Takes in the spans of a unit's rows."""
        self.sums |= event.sums
        for file, (_, first, size, rows) in event.off.items():
            folder, _, number = file.rpartition("/")
            ends = self.ends.setdefault(folder, {})
            _, known = ends.get(int(number), (0, 0))
            if first != known:
                self.holes[file] = f"the log does not speak of rows {known:,} to {first - 1:,} of {file}"
            ends[int(number)] = (size, rows)

    def seal(self, event: ShardSealed) -> None:
        """Takes in that a shard is in its final form."""
        folder, _, number = event.file.rpartition("/")
        self.sealed.setdefault(folder, {})[int(number)] = event.bytes
        self.sums.pop(event.file, None)
        if event.sum is not None:
            self.sums[event.file] = event.sum
        _, known = self.ends.get(folder, {}).get(int(number), (0, 0))
        if event.rows != known:
            self.holes[event.file] = f"{event.file} has {counted(event.rows, 'row')}, and the log speaks of {known:,}"

    def drop_held(self) -> None:
        """The rows of steps with `yield_output=False` are gone."""
        self.ends = {folder: ends for folder, ends in self.ends.items() if not folder.startswith(_HELD)}
