"""The last values that were put in, by key, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Recent"]


@dataclass
class Recent:
    """Keeps at least the last half of `most` values, and at most all of them; fewer if they have more than `most_bytes`.

    Two tables take turns: once the newer one is half of it all, the older one is thrown away whole. That costs nothing per
    value, while a list of ages would cost more than the values.
    """

    most: int
    most_bytes: int
    _new: dict[bytes, bytes] = field(default_factory=dict)
    _old: dict[bytes, bytes] = field(default_factory=dict)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None if there is none, or if it is too long ago."""
        found = self._new.get(key)
        return self._old.get(key) if found is None else found

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value; one that would take all the room is not kept."""
        if len(value) > self.most_bytes // 2:
            return
        if 2 * (len(self._new) + 1) > self.most or 2 * (self._bytes + len(value)) > self.most_bytes:
            self._new, self._old, self._bytes = {}, self._new, 0
        self._new[key] = value
        self._bytes += len(value)
