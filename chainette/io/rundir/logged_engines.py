"""The engines of a run, according to its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chainette.io.rundir.event_types import EngineAdapted, EngineLoaded

__all__ = ["LoggedEngines"]

#: Fields that are counted from the log; the description of an engine does not replace them.
_COUNTED = frozenset({"loads", "load_seconds", "identity"})


@dataclass
class LoggedEngines:
    """The engines that were loaded, up to the last event."""

    #: Name -> description, as in metadata.json.
    described: dict[str, dict[str, Any]] = field(default_factory=dict)

    def load(self, event: EngineLoaded) -> None:
        """Records that an engine became ready."""
        known = self._known(event.engine)
        known |= {name: value for name, value in event.details.items() if name not in _COUNTED}
        known |= {"backend": event.backend, "model": event.model, "deterministic": event.deterministic}
        known["identity"] = event.identity or known.get("identity", {})
        known["loads"] += 1
        known["load_seconds"] = round(known["load_seconds"] + event.seconds, 3)

    def adapt(self, event: EngineAdapted) -> None:
        """Records that requests to an engine differ from its declaration."""
        self._known(event.engine)["adapted"] = event.changes

    def _known(self, engine: str) -> dict[str, Any]:
        return self.described.setdefault(engine, {"loads": 0, "load_seconds": 0.0})

    def loaded_from(self, engine: str) -> Mapping[str, str]:
        """The origin of the engine that answered the existing rows; {} if unknown."""
        identity: dict[str, str] = self.described.get(engine, {}).get("identity", {})
        return identity

    @property
    def simulated(self) -> bool:
        """Whether the answers of an engine are simulated."""
        return any(engine.get("simulated") for engine in self.described.values())
