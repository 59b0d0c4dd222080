"""The choice among a worker's engines that exclude each other: a swap happens only if it is worth its time.

Engines exclude each other if they share a device, or if they have one name and other settings. The served engine is given
up if none of its units can be claimed. For an engine of another name it is also given up if it was served for at least as
long as the last swap took and more units wait for the other. So swaps never take more time than work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from chainette.engine.config import EngineConfig

__all__ = ["EngineTurns", "exclude"]

#: The least seconds for which an engine is served, even if swaps cost nothing.
_LEAST = 0.5


def exclude(one: EngineConfig, other: EngineConfig) -> bool:
    """Whether a worker has only one of the two open at a time."""
    return one.digest != other.digest and (one.name == other.name or one.shares_device_with(other))


@dataclass
class EngineTurns:
    """The choice among engines that exclude each other."""

    #: Seconds the last swap took: release and load.
    cost: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _served: EngineConfig | None = None
    _since: float = 0.0
    #: Those that an engine of this worker excludes, by digest.
    _contended: dict[str, EngineConfig] = field(default_factory=dict)

    def know(self, configs: Iterable[EngineConfig]) -> None:
        """Learns which engines the current runs need."""
        every = {config.digest: config for config in configs}
        self._contended = {
            digest: config for digest, config in every.items() if any(exclude(config, other) for other in every.values())
        }

    @property
    def contended(self) -> bool:
        """Whether there is a choice."""
        return bool(self._contended)

    def may_serve(self, digest: str) -> bool:
        """Whether units of an engine may be claimed now."""
        if digest not in self._contended or self._served is None:
            return digest not in self._contended
        return digest == self._served.digest or not exclude(self._contended[digest], self._served)

    def choose(self, waiting: Mapping[str, int], busy: Callable[[str], bool]) -> None:
        """Decides again. `waiting`: units of each engine that can be claimed; `busy`: whether the worker holds units of one."""
        served = self._served
        others = [
            config
            for digest, config in self._contended.items()
            if waiting.get(digest) and (served is None or exclude(config, served))
        ]
        if not others:
            self._look_elsewhere(waiting, busy)
            return
        deepest = max(others, key=lambda config: waiting[config.digest])
        if served is None or self._is_worth(served, deepest, waiting, busy):
            self._served, self._since = deepest, self.clock()

    def _look_elsewhere(self, waiting: Mapping[str, int], busy: Callable[[str], bool]) -> None:
        """No units seem to wait: the engines take turns to ask for units that are put off or must run alone. Nothing is loaded
        for that."""
        digests = [*self._contended]
        served = self._served.digest if self._served is not None else ""
        if digests and not waiting.get(served) and not busy(served):
            after = digests.index(served) + 1 if served in digests else 0
            self._served = self._contended[digests[after % len(digests)]]

    def _is_worth(
        self, served: EngineConfig, other: EngineConfig, waiting: Mapping[str, int], busy: Callable[[str], bool]
    ) -> bool:
        left = waiting.get(served.digest, 0)
        if not left:
            return not busy(served.digest)
        stayed = self.clock() - self._since
        return other.name != served.name and waiting[other.digest] > left and stayed >= max(_LEAST, self.cost)

    def settled(self, seconds: float) -> None:
        """A swap is over and took so many seconds; the new engine is served from now on."""
        self.cost, self._since = seconds, self.clock()
