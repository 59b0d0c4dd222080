"""The arguments and options that several commands share, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from chainette.core.run_settings import FLAGS

__all__ = [
    "AsJson",
    "ChainModules",
    "ChainRef",
    "ChainRoot",
    "Debug",
    "Declaring",
    "EngineFile",
    "Hooked",
    "InputsRoot",
    "JsonLogs",
    "MetricsFlags",
    "MetricsHost",
    "MetricsPort",
    "Offers",
    "OneEngine",
    "OverRedis",
    "Quiet",
    "RedisUrl",
    "RunDirectory",
    "RunsRoot",
    "Select",
    "Settings",
    "Show",
    "Stream",
    "Workers",
    "Yes",
]


ChainRef = Annotated[
    str,
    typer.Argument(
        metavar="CHAIN",
        help="chain.py, chain.py:name or package.module:name (a Chain, or a function that returns one), or chain.yml.",
    ),
]
Declaring = Annotated[str | None, typer.Argument(metavar="CHAIN", help="The chain that declares the engine.")]
OneEngine = Annotated[str | None, typer.Option("--engine", metavar="NAME", help="Which engine [default: the only one].")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the function that makes the chain; repeatable."),
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        metavar="ROWS",
        help="Compute rows again, with the chain as it is now: changed+ (all that would differ), STEP+ (a step and "
        "all that follow, as --from STEP), a STEP that nothing follows, or rejected; repeatable.",
    ),
]
Offers = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A parameter value that runs may use; repeatable, also to allow several values of one parameter.",
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
ChainModules = Annotated[
    list[str] | None,
    typer.Option(
        "--chain-module",
        metavar="NAME",
        help="A module that runs may name as their chain, or a package of such modules; repeatable [default: files only].",
    ),
]
InputsRoot = Annotated[
    Path,
    typer.Option("--inputs-root", metavar="DIR", exists=True, file_okay=False, help="The folder below which inputs are found."),
]
RunsRoot = Annotated[
    Path,
    typer.Option(
        "--runs-root", metavar="DIR", exists=True, file_okay=False, help="The folder that contains the run directories."
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
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", envvar="CHAINETTE_YES", help="Run the directory's chain, even if somebody else began the run."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and the directory at the end.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything exactly, one JSON object per line.")]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Print the run's events, one JSON object per line.")]
Hooked = Annotated[
    list[str] | None, typer.Option("--hook", metavar="NAME", help="A plugin's hook that watches the run; repeatable.")
]
Show = Annotated[bool, typer.Option("--show", help="Print prompts and answers side by side.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print answers token by token as they arrive; needs a small --limit.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print every event, prompt and answer to stderr; show tracebacks.")]
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
        help="Start N worker processes per engine, with their own Valkey.",
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option("--metrics-host", metavar="HOST", help="With Redis: the address that serves /metrics; 0.0.0.0 for all."),
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port",
        metavar="PORT",
        min=0,
        max=65535,
        help="With Redis: the port that serves /metrics; 0 for any free one.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class MetricsFlags:
    """Where a process of a fleet answers /metrics."""

    metrics_host: MetricsHost = "127.0.0.1"
    metrics_port: MetricsPort = 0
