"""The shards of a run, according to its log."""

from __future__ import annotations

from dataclasses import dataclass, field

from chainette.io.rundir.event_types import ShardSealed, UnitCommitted
from chainette.utils.plurals import counted

__all__ = ["LoggedShards"]

#: The prefix, in the log, of folders of steps with `yield_output=False`.
_HELD = ".held/"


@dataclass
class LoggedShards:
    """The bytes and rows of every shard, up to the last event."""

    #: Folder -> journal number -> (bytes, rows).
    ends: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    #: Folder -> number -> bytes of a sealed shard.
    sealed: dict[str, dict[int, int]] = field(default_factory=dict)
    #: Journal -> CRC-32 of its bytes, or of the shard once it is sealed. Logs of older versions have none.
    sums: dict[str, int] = field(default_factory=dict)
    #: Journal -> a description of its rows that no line of the log covers.
    holes: dict[str, str] = field(default_factory=dict)

    def rows(self, folder: str) -> int:
        """The number of rows in a folder."""
        return sum(rows for _, rows in self.ends.get(folder, {}).values())

    def append(self, event: UnitCommitted) -> None:
        """Records the spans of a unit's rows."""
        self.sums |= event.sums
        for file, (_, first, size, rows) in event.off.items():
            folder, _, number = file.rpartition("/")
            ends = self.ends.setdefault(folder, {})
            _, known = ends.get(int(number), (0, 0))
            if first != known:
                self.holes[file] = f"the log does not mention rows {known:,} to {first - 1:,} of {file}"
            ends[int(number)] = (size, rows)

    def seal(self, event: ShardSealed) -> None:
        """Records that a shard is in its final format."""
        folder, _, number = event.file.rpartition("/")
        self.sealed.setdefault(folder, {})[int(number)] = event.bytes
        self.sums.pop(event.file, None)
        if event.sum is not None:
            self.sums[event.file] = event.sum
        _, known = self.ends.get(folder, {}).get(int(number), (0, 0))
        if event.rows != known:
            self.holes[event.file] = f"{event.file} has {counted(event.rows, 'row')}, but the log mentions {known:,}"

    def drop_held(self) -> None:
        """Drops the rows of steps with `yield_output=False`, which were deleted."""
        self.ends = {folder: ends for folder, ends in self.ends.items() if not folder.startswith(_HELD)}
