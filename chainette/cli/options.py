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
    "JsonLogs",
    "MaxRejectRate",
    "Patience",
    "Quiet",
    "RunDirectory",
    "Show",
    "Window",
]


class Format(StrEnum):
    """What shards are written as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    CSV = "csv"


ChainRef = Annotated[str, typer.Argument(metavar="CHAIN", help="chain.py, chain.py:name or package.module:name.")]
RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]
ChainRoot = Annotated[Path, typer.Option("--chain-root", metavar="DIR", help="The folder below which chains are found.")]
EngineFile = Annotated[
    Path | None, typer.Option("--engines", metavar="FILE", help="A YAML file whose engines replace those of the chain.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and the directory at the end.")]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Print the events of the run, one JSON object a line.")]
Show = Annotated[bool, typer.Option("--show", help="Print prompts and answers side by side.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tell every event, prompt and answer on stderr; show tracebacks.")]
MaxRejectRate = Annotated[
    float | None,
    typer.Option("--max-reject-rate", metavar="R", help="Pause when this share of a step's rows is rejected (after 200 rows)."),
]
Patience = Annotated[
    float, typer.Option("--engine-patience", metavar="SECONDS", min=0, help="Give up when an engine is silent for so long.")
]
Window = Annotated[int | None, typer.Option("--window", metavar="N", min=1, help="Rows that may be live at once.")]
