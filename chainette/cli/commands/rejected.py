"""`chainette rejected`: the rows a run rejected, and why; `--retry` opens them again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from chainette.cli.command_errors import guarded
from chainette.cli.flag_bundles import Telling
from chainette.cli.flags import AsJson, RunDirectory, Yes
from chainette.cli.launch import launch, require_trust
from chainette.cli.printing import command_line, for_scripts, is_terminal, print_json, tell
from chainette.cli.screen.tables import console, new_table
from chainette.cli.signature import Only, words_of
from chainette.core.run_settings import RECORDED, UNRECORDED, RunSettings
from chainette.core.usercode.parameters import text_of
from chainette.io.rundir.folder_rows import read_folder
from chainette.io.rundir.input_records import kind_of_records, record_lines
from chainette.io.rundir.logged_paths import chain_root_of
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.records import CHAIN_INPUT, Reason, record_of
from chainette.run import executor
from chainette.utils.plurals import counted
from chainette.utils.terminal_text import visible

__all__ = ["rejected"]

#: Rows of the table, and characters of a raw answer in it.
_ROWS = 50
_RAW = 120

#: Recorded settings that do not hold for a run over some of the records.
_OF_ITS_INPUT = frozenset({"accept", "batch_size", "limit", "reuse"})


@guarded
def rejected(
    context: typer.Context,
    directory: RunDirectory,
    step: Annotated[list[str] | None, typer.Option("--step", metavar="ID", help="Rows of this step only; repeatable.")] = None,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", metavar="R", help="Rows with this reason only; repeatable.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Show N rows [default: 50; --json, --records: all].")
    ] = None,
    as_json: AsJson = False,
    records: Annotated[
        bool,
        typer.Option("--records", help="Print the records of the input these rows come from, as an input for another run."),
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask for these rows again; `chainette rollback DIR` undoes it.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="With --retry: the engine that answers this time.")
    ] = None,
    *,
    settings: Annotated[RunSettings, Only(UNRECORDED)],
    telling: Annotated[Telling, Only({"quiet", "json_logs", "show", "debug", "hook"})],
    yes: Yes = False,
) -> None:
    """List the rejected rows of DIR, or --retry them.

    Each is shown with the reason, the message and the raw answer, or the bad line of the input. --retry takes the chain file
    as it is now if only settings like max_tokens, max_attempts or escalate have changed; other rows stay as they are.

    After a change that affects every row, for example of a prompt, ask for the rejected rows in a separate directory:
    `chainette rejected DIR --records > rejected.jsonl`, then `chainette run CHAIN rejected.jsonl --reuse DIR -o NEW`.
    """
    steps, reasons = step or [], reason or []
    _check_reasons(reasons)
    if retry + records + as_json > 1:
        raise typer.BadParameter("--retry asks again, --records and --json print; give one")
    if retry:
        require_trust(RunDir(directory), trusted=yes)
        _retry(directory, steps, reasons, engine, settings, telling)
        return
    if alone := _typed_for_a_retry(context):
        raise typer.BadParameter(f"{alone} is about the answers of a --retry; give both")
    rows = (row for row in _rejected_rows(directory, steps) if not reasons or row["reason"] in reasons)
    if records:
        _print_records(directory, itertools.islice(rows, limit))
    elif as_json:
        print_json(itertools.islice(rows, limit))
    else:
        _print_table(rows, limit or _ROWS)


def _typed_for_a_retry(context: typer.Context) -> str:
    """The first flag on the command line that only a retry needs; "" if there is none."""
    for name in ("engine", *sorted(UNRECORDED)):
        source = context.get_parameter_source(name)  # chainette.toml may say it for every command
        if source is not None and source.name == "COMMANDLINE":
            return f"--{name.replace('_', '-')}"
    return ""


def _check_reasons(reasons: Iterable[str]) -> None:
    for reason in reasons:
        if reason not in tuple(Reason):
            raise typer.BadParameter(f"--reason {reason}: there is no such reason; known: {', '.join(Reason)}")


def _rejected_rows(directory: Path, steps: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of `rejected/` of these steps, or of all."""
    run = RunDir(directory)
    state, _ = read_state(run)
    known = [CHAIN_INPUT, *(node.id for node in state.graph.steps)]
    for step in steps:
        if step not in known:
            raise typer.BadParameter(f"--step {step}: the run has no such step; it has {', '.join(known)}")
    return (_typed(row) for row in read_folder(run, state, "rejected") if not steps or row["step_id"] in steps)


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of CSV like one of the other formats."""
    return row | {"attempts": int(row["attempts"]), "line": int(row["line"]), "raw": row["raw"] or None}


def _print_records(directory: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Each record once, in the order of the input; those of bad lines are of no use to another run."""
    run = RunDir(directory)
    state, _ = read_state(run)
    numbers = {int(record_of(row["row_id"])) for row in rows if row["step_id"] != CHAIN_INPUT}
    for line in record_lines(run, state, numbers):
        typer.echo(for_scripts(line))
    if numbers:
        tell(f"{counted(len(numbers), 'record')}; to ask for them with the chain as it is now: {_asking(run, state)}", err=True)


def _asking(run: RunDir, state: RunState) -> str:
    """The command of a run like this one, over a file of its records."""
    root = chain_root_of(state.run, run)
    fixed = {name: value for name, value in state.run.settings.items() if name in RECORDED - _OF_ITS_INPUT}
    if fixed.get("engines_file"):
        fixed["engines_file"] = str(root / fixed["engines_file"])
    words = [word for name, value in state.parameters.items() for word in ("--set", f"{name}={text_of(value)}")]
    if root.resolve() != Path.cwd():
        words += ["--chain-root", str(root)]
    reuse = ("--reuse", str(run), "-o", "NEW")
    return command_line(
        "run",
        state.run.chain_ref or "CHAIN",
        f"rejected.{kind_of_records(state)}",
        *words,
        *words_of(RunSettings(**fixed)),
        *reuse,
    )


def _print_table(rows: Iterator[dict[str, Any]], limit: int) -> None:
    screen = console()
    shown = list(itertools.islice(rows, limit))
    if not shown:
        screen.print("no rejected rows")
        return
    screen.print(_narrow_table(shown) if is_terminal() else _wide_table(shown))
    more = sum(1 for _ in rows)
    if more:
        screen.print(f"and {more:,} more: --limit N shows more, --json all of them")
    elif is_terminal():
        screen.print(f"{len(shown):,} rejected rows; --json prints them whole, --retry asks again")


def _wide_table(rows: Iterable[dict[str, Any]]) -> Table:
    table = new_table(("row", "line", "step", "reason", "tries", "message", "raw"), numbers=("line", "tries"), cut=("raw",))
    for row in rows:
        cells = (row["row_id"], row["line"] or "", row["step_id"], row["reason"], row["attempts"], row["message"])
        table.add_row(*map(str, cells), _cut(row["raw"]))
    return table


def _narrow_table(rows: Iterable[dict[str, Any]]) -> Table:
    """Two lines a row, so that 80 columns are enough: the raw answer stands below the message."""
    fixed = ("row", "step", "reason")
    table = new_table((*fixed, "message and raw answer"), cut=fixed)
    for row in rows:
        text = Text(visible(" ".join(row["message"].split())), no_wrap=True, overflow="ellipsis").append(
            f"\n{_cut(row['raw'])}", style="dim"
        )
        table.add_row(row["row_id"], row["step_id"], row["reason"], text)
    return table


def _cut(raw: str | None) -> str:
    """A raw answer on one line."""
    text = visible(" ".join((raw or "").split()))
    return text if len(text) <= _RAW else f"{text[: _RAW - 3]}..."


def _retry(
    directory: Path, steps: list[str], reasons: list[str], engine: str | None, settings: RunSettings, telling: Telling
) -> None:
    run, given = RunDir(directory), settings.given
    launch(
        run,
        replace(telling, again=("--local",)),
        lambda hooks: executor.retry_rejected(
            run, steps=steps, reasons=reasons, engine=engine, hooks=hooks, progress=False, **given
        ),
    )
