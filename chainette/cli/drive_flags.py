"""The flags that choose the mover of a run's units: this process, workers it starts, or the workers that serve a Redis."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Self

import typer

from chainette.cli.flags import MetricsHost, MetricsPort, OverRedis, RedisUrl, Workers
from chainette.fleet.redis.connect import chosen_url, shown
from chainette.io.rundir.event_types import RunCreated
from chainette.run.options import Drive
from chainette.utils.garbage_collection import importing

__all__ = ["DriveFlags", "FleetDriveFlags", "ResumedDriveFlags", "over_redis", "reached"]

#: `ENGINE=N,...`; the name of an engine may hold commas and equals signs too.
_ONE_ENGINE = re.compile(r"(.+?)=\s*(\d+)\s*(?:,|$)")
_BY_ENGINE = re.compile(rf"(?:{_ONE_ENGINE.pattern})+")

_NO_WORKERS = "--workers starts a Redis of its own; with --redis, the workers are those that serve it"


@dataclass(frozen=True, kw_only=True)
class DriveFlags:
    """The flags of a new run."""

    workers: Workers = None
    redis: OverRedis = None
    metrics_host: MetricsHost = "127.0.0.1"
    metrics_port: MetricsPort = 0

    def drive(self, watching: str) -> Drive | None:
        """The drive that moves the units; None: this process. `watching` is a flag that works in this process only, or "".

        Raises:
            typer.BadParameter: flags that exclude each other, or --workers that is neither a number nor numbers by engine.
        """
        if self.workers is None:
            return None if self.redis is None else self._over_redis(watching)
        if self.redis is not None:
            raise typer.BadParameter(_NO_WORKERS)
        _refuse_watching(watching)
        return _own_workers(self.workers)

    def _over_redis(self, watching: str) -> Drive:
        _refuse_watching(watching)
        return over_redis(self.redis, self.metrics_host, self.metrics_port)


@dataclass(frozen=True, kw_only=True)
class FleetDriveFlags(DriveFlags):
    """The workers that serve a Redis, the default one if none is named."""

    redis: RedisUrl = None

    def drive(self, watching: str) -> Drive:
        if self.workers is not None:
            raise typer.BadParameter(_NO_WORKERS)
        return self._over_redis(watching)


@dataclass(frozen=True, kw_only=True)
class ResumedDriveFlags(DriveFlags):
    """Who moves the units of a run that goes on.

    Raises:
        typer.BadParameter: --local beside one of the others.
    """

    local: Annotated[bool, typer.Option("--local", help="Do the work in this process, however the run was started.")] = False

    def __post_init__(self) -> None:
        if self.local and (self.workers or self.redis):
            raise typer.BadParameter("--local does the work in this process; leave out --workers and --redis")

    def or_as_begun(self, begun: RunCreated) -> Self:
        """The flags as given, else those with which the run was started."""
        if self.flags:
            return self
        redis = begun.way.get("redis")
        return replace(self, workers=begun.way.get("workers"), redis=redis and reached(redis))

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that choose the same way again, without a password."""
        if self.workers is not None:
            return ("--workers", self.workers)
        if self.redis is not None:
            return ("--redis", shown(self.redis))
        return ("--local",) if self.local else ()


def _refuse_watching(flag: str) -> None:
    if flag:
        raise typer.BadParameter(
            f"{flag} sees requests of this process only; use `run` without --workers and --redis, or `resume --local`"
        )


def reached(redis: str) -> str:
    """The address, with its password if the environment has it."""
    known = chosen_url(None)
    return known if redis == shown(known) else redis


def over_redis(redis: str | None, metrics_host: str = "127.0.0.1", metrics_port: int = 0) -> Drive:
    """The workers that serve a Redis."""
    with importing():
        from chainette_workers.metrics.address import MetricsEndpoint  # noqa: PLC0415 - redis-py, which no local run pays for
        from chainette_workers.sink.redis_fleet import RedisFleet  # noqa: PLC0415

    return RedisFleet(redis, MetricsEndpoint(metrics_host, metrics_port))


def _own_workers(workers: str) -> Drive:
    """N workers for each engine, or for each engine that is named.

    Raises:
        typer.BadParameter: neither a number nor numbers by engine.
    """
    with importing():
        from chainette_workers.sink.forked_workers import Forker  # noqa: PLC0415 - as above
        from chainette_workers.sink.local_fleet import LocalFleet  # noqa: PLC0415

    try:
        if "=" not in workers:
            return LocalFleet(_count(workers), Forker.ahead())
        if not _BY_ENGINE.fullmatch(workers):
            raise ValueError(workers)
        return LocalFleet({name.strip(): _count(number) for name, number in _ONE_ENGINE.findall(workers)}, Forker.ahead())
    except ValueError:
        raise typer.BadParameter(f"--workers {workers}: expected a number, or ENGINE=N for each engine") from None


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
