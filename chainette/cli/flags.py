"""The arguments and options that several commands share, each declared once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ChainRef",
    "ChainRoot",
    "Debug",
    "EngineFile",
    "Format",
    "InputsRoot",
    "JsonLogs",
    "MaxRejectRate",
    "MetricsHost",
    "MetricsPort",
    "Offers",
    "OverRedis",
    "Patience",
    "Quiet",
    "RedisUrl",
    "RunDirectory",
    "RunsRoot",
    "Settings",
    "Show",
    "Stream",
    "Window",
    "Workers",
]


class Format(StrEnum):
    """What shards are written as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    CSV = "csv"


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
        help="A YAML file whose engines replace those of the chain.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and the directory at the end.")]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Print the events of the run, one JSON object a line.")]
Show = Annotated[bool, typer.Option("--show", help="Print prompts and answers side by side.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print answers token by token as they come; with a small --limit.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tell every event, prompt and answer on stderr; show tracebacks.")]
MaxRejectRate = Annotated[
    float | None,
    typer.Option("--max-reject-rate", metavar="R", help="Pause when this share of a step's rows is rejected (after 200 rows)."),
]
Patience = Annotated[
    float, typer.Option("--engine-patience", metavar="SECONDS", min=0, help="Give up when an engine is silent for so long.")
]
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
Window = Annotated[int | None, typer.Option("--window", metavar="N", min=1, help="Rows that may be live at once.")]
