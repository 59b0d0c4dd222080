"""Running a chain on this machine: `run`, `resume`, `run_iter`, and the seed's Executor and AsyncExecutor.

All of them are one path (`start.py`, `resumption.py`): compile, open a directory or none, schedule units, close.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

from pydantic import BaseModel

from chainette.core.chain import Chain, Inputs
from chainette.core.node import Node
from chainette.core.plan import Plan
from chainette.core.run_keywords import ResumeKeywords, RunKeywords
from chainette.core.streaming import StreamEvent
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.version_swap import rollback as go_back
from chainette.io.rundir.writer import RunWriter
from chainette.records import Row
from chainette.run.blocking import block, iterate
from chainette.run.blocking import stream as streamed
from chainette.run.one_node import execute_node
from chainette.run.options import RunOptions, options_of
from chainette.run.resumption import resume as resume_run
from chainette.run.resumption import retry
from chainette.run.start import start
from chainette.utils.debug import ChainDebugger
from chainette.utils.terminal_text import visible

__all__ = [
    "AsyncExecutor",
    "Executor",
    "RunOptions",
    "RunResult",
    "arun",
    "execute",
    "resume",
    "retry_rejected",
    "rollback",
    "run",
    "run_iter",
    "stream",
]


class AsyncExecutor:
    """Runs a chain from a coroutine."""

    def __init__(self, chain: Chain | Plan, **options: Unpack[RunKeywords]) -> None:
        self.chain = chain
        self.options = options_of(options)

    async def run(self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None) -> RunResult:
        """Runs every row into a run directory; see `Chain.run`."""
        return await start(self.chain, inputs, output_dir, self.options)


class Executor:
    """Runs a chain from ordinary code, even if an event loop runs already."""

    def __init__(self, chain: Chain | Plan, **options: Unpack[RunKeywords]) -> None:
        self.chain = chain
        self.options = options

    def run(self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None) -> RunResult:
        """Runs every row into a run directory; see `Chain.run`."""
        return block(AsyncExecutor(self.chain, **self.options).run, inputs, output_dir)

    def run_iter(self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None) -> Iterator[list[Row]]:
        """Yields finished rows root by root; see `Chain.run_iter`."""
        return iterate(self.chain, inputs, output_dir, options_of(self.options))


def run(
    chain: Chain | Plan, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Unpack[RunKeywords]
) -> RunResult:
    """See `Chain.run`. Callers that have compiled the chain pass its plan."""
    return Executor(chain, **options).run(inputs, output_dir)


async def arun(
    chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Unpack[RunKeywords]
) -> RunResult:
    """See `Chain.arun`."""
    return await AsyncExecutor(chain, **options).run(inputs, output_dir)


def run_iter(
    chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Unpack[RunKeywords]
) -> Iterator[list[Row]]:
    """See `Chain.run_iter`."""
    return Executor(chain, **options).run_iter(inputs, output_dir)


def stream(chain: Chain, row: BaseModel | dict[str, Any], **options: Unpack[RunKeywords]) -> Iterator[StreamEvent]:
    """See `Chain.stream`."""
    return streamed(chain, row, options_of(options))


def resume(
    directory: str | os.PathLike[str],
    chain: Chain | Plan | None = None,
    *,
    from_step: str | Sequence[str] = (),
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    more: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    **options: Unpack[ResumeKeywords],
) -> RunResult:
    """Continues the run in a directory from its durable rows; nothing durable is asked for again.

    Unless the chain is given, it is loaded as the log says. With `from_step`, that step or those steps, and everything that
    depends on them, are recomputed; with `select="changed+"`, all rows that the chain would compute differently now; with
    `select="rejected"`, the rejected rows (see `run/selected_rows.py`). `inputs` is the new path of an input that was moved;
    "-" is standard input, with which a run with `accept` can continue. `more` names files that are appended to the input of
    a finished run: their records continue the numbering, and begin a new root. `options` are the options of `Chain.run`
    that the log does not fix; `limit` and `accept` may be higher than before.

    Raises:
        RunDirectoryError: there is no run, it was made by a chain that lives in Python only, or the limit is lower.
        ChainChanged: a step has changed since its rows were written.
        InputError: the input is not the one that the run began with.
    """
    steps = [from_step] if isinstance(from_step, str) else from_step
    paths, appended = ([given] if isinstance(given, str | os.PathLike) else given for given in (inputs, more))
    source = sys.stdin.buffer if [str(path) for path in paths] == ["-"] else None
    found = options_of(options, inputs=() if source else paths, more=appended, source=source)
    return block(resume_run, RunDir(directory), chain, found, steps)


def retry_rejected(
    directory: str | os.PathLike[str],
    chain: Chain | None = None,
    *,
    steps: Sequence[str] = (),
    reasons: Sequence[str] = (),
    engine: str | None = None,
    **options: Unpack[ResumeKeywords],
) -> RunResult:
    """Computes rejected rows again, from the step that rejected them on; other rows stay as they are.

    `steps` and `reasons` narrow down which ones; `engine` asks another engine of the chain.

    Raises:
        RunDirectoryError: nothing matches, or rows that are needed again were not kept.
    """
    return block(
        retry,
        RunDir(directory),
        chain,
        options_of(options),
        frozenset(steps),
        frozenset(reasons),
        engine,
    )


def rollback(directory: str | os.PathLike[str]) -> None:
    """Brings back the rows a directory had before the last `from_step` or `retry_rejected`; a second call undoes the first.

    Raises:
        RunDirectoryInUse: a process works on the run.
        RunDirectoryError: there is no run, or no earlier version of it.
    """
    go_back(RunDir(directory))


def execute(
    node: Node,
    inputs: Sequence[BaseModel],
    histories: Sequence[Row] | None = None,
    writer: RunWriter | None = None,
    debug: bool = False,
    batch_size: int | None = None,
) -> tuple[list[Any], list[Row]]:
    """See `Node.execute`."""
    hook = ChainDebugger(lambda text: sys.stderr.write(f"{visible(text)}\n")) if debug else None
    return block(execute_node, node, inputs, histories, writer, hook, batch_size)
