"""Obstacles to opening engines, as far as they show without opening one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import create_engine
from chainette.errors import EngineConfigError, EnginesCannotOpen

__all__ = ["foreseen", "require_openable"]


def foreseen(config: EngineConfig) -> Iterator[str]:
    """One sentence per obstacle on this machine: a missing package, model file or variable. Asks no server."""
    try:
        found = [*create_engine(config).obstacles()]
    except EngineConfigError as error:
        found = [str(error)]
    head = f"engine {config.name!r}: "
    yield from (head + words.removeprefix(head) for words in dict.fromkeys(found))


def require_openable(configs: Iterable[EngineConfig]) -> None:
    """Checks engines before the first row: otherwise a missing key of the last engine would show only after rows were paid for.

    Raises:
        EnginesCannotOpen: at least one has an obstacle; the error names all of them.
    """
    found = [words for config in configs for words in foreseen(config)]
    if found:
        raise EnginesCannotOpen(found)
