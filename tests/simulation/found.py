"""Scenarios in which a promise was once broken, as they shrank. Each is followed by the mend."""

from __future__ import annotations

from tests.simulation.scenario import Scenario

__all__ = ["FOUND"]

FOUND: tuple[Scenario, ...] = ()
