"""The arguments and options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainette.core.run_settings import FLAGS

__all__ = [
    "ChainRef",
    "ChainRoot",
    "Debug",
    "EngineFile",
    "InputsRoot",
    "JsonLogs",
    "MetricsHost",
    "MetricsPort",
    "Offers",
    "OverRedis",
    "Quiet",
    "RedisUrl",
    "RunDirectory",
    "RunsRoot",
    "Settings",
    "Show",
    "Stream",
    "Workers",
]


ChainRef = Annotated[
    str,
    typer.Argument(
        metavar="CHAIN", help="chain.py, chain.py:name or package.module:name; the name of a Chain, or of a function -> Chain."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the function that makes the chain; repeatable."),
]
Offers = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A value of a chain's parameter that runs may have; repeatable, also with another value of the same name.",
    ),
]
RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]
ChainRoot = Annotated[
    Path,
    typer.Option(
        "--chain-root",
        metavar="DIR",
        exists=True,
        file_okay=False,
        resolve_path=True,  # before the chain is loaded, which may change the current folder
        help="The folder below which chains are found.",
    ),
]
InputsRoot = Annotated[
    Path,
    typer.Option("--inputs-root", metavar="DIR", exists=True, file_okay=False, help="The folder below which inputs are found."),
]
RunsRoot = Annotated[
    Path,
    typer.Option(
        "--runs-root", metavar="DIR", exists=True, file_okay=False, help="The folder below which run directories lie."
    ),
]
EngineFile = Annotated[
    Path | None,
    typer.Option(
        "--engines",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        resolve_path=True,
        help=FLAGS["engines_file"].help,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and the directory at the end.")]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Print the events of the run, one JSON object a line.")]
Show = Annotated[bool, typer.Option("--show", help="Print prompts and answers side by side.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print answers token by token as they come; with a small --limit.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tell every event, prompt and answer on stderr; show tracebacks.")]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis", metavar="URL", help="The fleet's Redis [default: $CHAINETTE_REDIS_URL, else redis://127.0.0.1:6379/0]."
    ),
]
OverRedis = Annotated[str | None, typer.Option("--redis", metavar="URL", help="Use the workers that serve this Redis.")]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N | ENGINE=N,...",
        help="Use N worker processes per engine, with a Valkey of their own.",
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option("--metrics-host", metavar="HOST", help="Over a Redis: the interface that answers /metrics; 0.0.0.0 for all."),
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port", metavar="PORT", min=0, max=65535, help="Over a Redis: the port of /metrics; 0 takes a free one."
    ),
]
