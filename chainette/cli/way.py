"""Who moves a run's units: this process, workers that it starts, or the workers that serve a Redis."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import typer

from chainette.fleet.redis.connect import chosen_url, shown
from chainette.io.rundir.events import RunCreated
from chainette.run.options import Drive

__all__ = ["Way", "drive_of", "reached"]

#: `ENGINE=N,...`; the name of an engine may hold commas and equals signs too.
_ONE_ENGINE = re.compile(r"(.+?)=\s*(\d+)\s*(?:,|$)")
_BY_ENGINE = re.compile(rf"(?:{_ONE_ENGINE.pattern})+")


@dataclass(frozen=True)
class Way:
    """Who moves the units: this process, workers of its own, or those that serve a Redis.

    Raises:
        typer.BadParameter: --local beside one of the others.
    """

    local: bool = False
    workers: str | None = None
    redis: str | None = None

    def __post_init__(self) -> None:
        if self.local and (self.workers or self.redis):
            raise typer.BadParameter("--local does the work in this process; leave out --workers and --redis")

    @classmethod
    def recorded(cls, begun: RunCreated) -> Self:
        """How a run was started. A Redis comes with its password where the environment knows that."""
        redis = begun.way.get("redis")
        return cls(workers=begun.way.get("workers"), redis=redis and reached(redis))

    @property
    def flags(self) -> tuple[str, ...]:
        """How to say it again."""
        if self.workers is not None:
            return ("--workers", self.workers)
        if self.redis is not None:
            return ("--redis", shown(self.redis))
        return ("--local",) if self.local else ()


def reached(redis: str) -> str:
    """The address with its password, where the environment knows that."""
    known = chosen_url(None)
    return known if redis == shown(known) else redis


def drive_of(
    workers: str | None, redis: str | None, metrics: tuple[str, int], *, enqueue: bool = False, watching: str
) -> Drive | None:
    """Who moves a run's units: None is this process. `watching` is a flag that needs it to be this one, "" where none does.

    Raises:
        typer.BadParameter: flags that exclude each other, or --workers that is neither a number nor numbers by engine.
    """
    if workers is not None and (redis is not None or enqueue):
        raise typer.BadParameter("--workers starts a Redis of its own; with --redis, the workers are those that serve it")
    if redis is None and workers is None and not enqueue:
        return None
    if watching:
        raise typer.BadParameter(
            f"{watching} sees requests of this process only; use `run` without --workers and --redis, or `resume --local`"
        )
    if workers is None:
        return over_redis(redis, *metrics)
    return _own_workers(workers)


def over_redis(redis: str | None, metrics_host: str = "127.0.0.1", metrics_port: int = 0) -> Drive:
    """The workers that serve a Redis."""
    from chainette_workers.metrics.endpoint import Endpoint  # noqa: PLC0415 - redis-py takes 0.2 s, which no local run pays
    from chainette_workers.sink.drive import RedisFleet  # noqa: PLC0415

    return RedisFleet(redis, Endpoint(metrics_host, metrics_port))


def _own_workers(workers: str) -> Drive:
    """So many workers for each engine, or for each that is named.

    Raises:
        typer.BadParameter: neither a number nor numbers by engine.
    """
    from chainette_workers.sink.local_fleet import LocalFleet  # noqa: PLC0415 - as above

    try:
        if "=" not in workers:
            return LocalFleet(_count(workers))
        if not _BY_ENGINE.fullmatch(workers):
            raise ValueError(workers)
        return LocalFleet({name.strip(): _count(number) for name, number in _ONE_ENGINE.findall(workers)})
    except ValueError:
        raise typer.BadParameter(f"--workers {workers}: expected a number, or ENGINE=N for each engine") from None


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
