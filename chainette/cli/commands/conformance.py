"""`chainette conformance`: whether an engine keeps the promises that runs rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.commands.warmup import chosen, registry_with
from chainette.cli.flags import AsJson, ChainRoot, Declaring, EngineFile, OneEngine, Settings
from chainette.cli.printing import print_json, tell
from chainette.conformance.case import CaseOutcome, Verdict
from chainette.conformance.examination import examine
from chainette.utils.event_loop import run_loop
from chainette.utils.terminal_text import visible

__all__ = ["conformance"]


@guarded
def conformance(
    chain: Declaring = None,
    engine: OneEngine = None,
    settings: Settings = None,
    engines: EngineFile = None,
    chain_root: ChainRoot = Path(),
    patience: Annotated[
        float, typer.Option("--case-patience", metavar="SECONDS", min=1, help="How long a case may take.")
    ] = 120.0,
    refused: Annotated[
        str,
        typer.Option("--refused", metavar="TEXT", help="A message that the service declines to answer, for two more cases."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Hold an engine of CHAIN or of --engines FILE to the cases every backend is held to.

    About a hundred questions, each of at most 400 tokens. Exit codes: 0 it keeps every promise, 1 it breaks one or does not
    open, 2 its declaration is wrong.
    """
    config = chosen(registry_with(chain, engines, chain_root, settings), engine)
    verdicts = run_loop(examine, config, _told_as_json if as_json else _told, patience, refused)
    counts = {outcome: sum(verdict.outcome is outcome for verdict in verdicts) for outcome in CaseOutcome}
    if not as_json:
        tell(f"{config.name} ({config.backend}): {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    raise typer.Exit(1 if counts[CaseOutcome.FAILED] else 0)


def _told_as_json(verdict: Verdict) -> None:
    print_json([verdict])


def _told(verdict: Verdict) -> None:
    words = f": {visible(' '.join(verdict.words.split()))}" if verdict.words else ""
    tell(f"{verdict.outcome:14}  {verdict.case}{words}")
