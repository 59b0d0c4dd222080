"""`chainette report`: a run as one page to look at and to send around."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.directory_status import is_working
from chainette.cli.flags import RunDirectory
from chainette.cli.printing import show_path, tell
from chainette.cli.screen.summary import plan_line
from chainette.engine.price import Price, parse_price
from chainette.errors import EngineConfigError
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import timestamp
from chainette.io.rundir.folder_rows import rejection_examples
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.open import read_state, require_shards
from chainette.io.rundir.paths import RunDir, publish
from chainette.io.rundir.statistics import Figures, figures
from chainette.report.page import render_page

__all__ = ["report"]

#: Rejected rows that are shown per step and reason.
_EXAMPLES = 3


@guarded
def report(
    directory: RunDirectory,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="[default: DIR/report.html]")] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            "--price",
            metavar="ENGINE=PRICE",
            help="Another price than the run's, per million tokens: gpt=in:0.15,out:0.6,cached:0.08; repeatable.",
        ),
    ] = None,
) -> None:
    """Write the run in DIR as one HTML page.

    It shows where the rows went, throughput, latency, tokens, and rejected rows with their answers. It needs no network and
    no scripts. The run may still be in progress. Needs `pip install 'chainette[report]'`.
    """
    run = RunDir(directory)
    if not run.exists():
        read_state(run)  # names a missing file
    found = figures(event for _, event in read_log(run.log))
    require_shards(run, found.state)
    page = render_page(
        found,
        rejection_examples(run, found.state, _EXAMPLES),
        _prices(price or [], found),
        directory=str(directory),
        working=is_working(directory),
        written_at=timestamp(),
        plan=next(plan_line(metadata_of(found.state), directory), ""),
    )
    path = output or directory / "report.html"
    publish(path, page.encode())
    tell(f"wrote {show_path(path)} ({len(page) >> 10:,} KiB)")


def _prices(given: list[str], found: Figures) -> Mapping[str, Price]:
    """Engine -> price.

    Raises:
        typer.BadParameter: it is not a price, or the run has no such engine.
    """
    known = sorted(found.state.graph.engines)
    try:
        prices = dict(map(parse_price, given))
    except EngineConfigError as error:
        raise typer.BadParameter(str(error)) from None
    for engine in prices.keys() - {*known}:
        raise typer.BadParameter(f"--price: the run has no engine {engine!r}; it has {', '.join(known)}")
    return prices
