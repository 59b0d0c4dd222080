"""The names of a chain's nodes, branches and aliases; each must have its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from chainette.records import CHAIN_INPUT, PYTHON
from chainette.utils.ids import folder_key, has_path, snake_case

__all__ = ["INPUTS", "RESERVED", "Names"]

#: The input of a node that is executed alone, beside its history.
INPUTS = "inputs"

#: Names the run directory or the templates use themselves.
RESERVED = frozenset({CHAIN_INPUT, "input", "row_id", "flattened", "rejected", INPUTS, PYTHON})


@dataclass
class Names:
    """The names taken so far."""

    #: `folder_key` of a folder -> the name that takes it.
    _folders: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._folders.values()

    def take(self, name: str) -> Iterator[str]:
        """Takes a name; yields the reasons why it cannot be used."""
        folder = snake_case(name)
        key = folder_key(folder)
        if name in RESERVED:
            yield f"{name!r} is a name that Chainette uses itself; choose another"
        elif key in RESERVED:
            yield f"{name!r} would be written to the folder {folder!r}, which Chainette uses itself"
        if not has_path(folder):
            yield f"this process cannot name the folder {folder!r}; set PYTHONUTF8=1 or a UTF-8 locale (LC_ALL=C.UTF-8)"
        taken = self._folders.get(key)
        if taken == name:
            yield f"the name {name!r} is used twice in this chain; ids, branch names and aliases must differ"
        elif taken is not None:
            alike = "" if snake_case(taken) == folder else " on file systems that ignore case or Unicode variants"
            yield f"{name!r} and {taken!r} would share the folder {folder!r}{alike}; rename one"
        self._folders[key] = name
