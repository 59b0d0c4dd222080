"""`chainette resume`: goes on with a run directory from what is durable."""

from __future__ import annotations

from typing import Annotated

import typer

from chainette.cli.common import guarded
from chainette.cli.launch import Telling, launch
from chainette.cli.options import (
    Debug,
    JsonLogs,
    MaxRejectRate,
    Patience,
    Quiet,
    RedisUrl,
    RunDirectory,
    Show,
    Window,
    Workers,
    drive_of,
)

__all__ = ["resume"]

#: Flags of `run` that the first line of the log answers for.
_FIXED = frozenset(
    {"--limit", "--batch-size", "--seed", "--format", "--max-rows-per-file", "--flattened", "--no-flattened", "--key"}
    | {"--engines", "--simulate", "--chain-root", "-o", "--output"}
)


@guarded
def resume(
    context: typer.Context,
    directory: RunDirectory,
    from_step: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="STEP", help="Compute this step and all that follow anew, as the chain is now; repeatable."
        ),
    ] = None,
    max_reject_rate: MaxRejectRate = None,
    engine_patience: Patience = 600.0,
    window: Window = None,
    workers: Workers = None,
    redis: RedisUrl = None,
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
    show: Show = False,
    debug: Debug = False,
) -> None:
    """Go on with the run in DIR, the way it was started.

    What is durable is not asked for again. The chain, the input, the engines and the settings are those that the
    log of DIR recorded.
    """
    _refuse(context.args)
    telling = Telling(quiet, json_logs, show, debug)
    drive = drive_of(workers, redis, watching=telling.watching)

    from chainette import executor

    launch(
        directory,
        telling,
        lambda hooks: executor.resume(
            directory,
            from_step=from_step or (),
            max_reject_rate=max_reject_rate,
            engine_patience=engine_patience,
            window=window,
            hooks=hooks,
            drive=drive,
        ),
    )


def _refuse(words: list[str]) -> None:
    """Says why a word of the command line cannot be taken.

    Raises:
        typer.BadParameter: there is one.
    """
    for word in words:
        flag = word.partition("=")[0]
        if flag in _FIXED:
            raise typer.BadParameter(
                f"{flag} is fixed by the log of the run, which goes on the way it was started; begin a new run to change it"
            )
        raise typer.BadParameter(
            f"No such option: {flag}" if flag.startswith("-") else f"Got unexpected extra argument ({word})"
        )
