"""Chain: the list of nodes a user declares, and the ways to run it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Protocol, Unpack, runtime_checkable

from pydantic import BaseModel

from chainette.core.branch import Element, checked_elements
from chainette.core.run_keywords import RunKeywords
from chainette.engine.config import EngineRegistry, current_registry
from chainette.errors import ChainetteError, DeclarationError, Place
from chainette.utils.argument_advice import explained, spelt_out
from chainette.utils.call_site import caller_place
from chainette.utils.ids import name_problem
from chainette.utils.plurals import counted

if TYPE_CHECKING:
    from chainette.core.streaming import StreamEvent
    from chainette.records import Row
    from chainette.run.executor import RunResult

__all__ = ["DEFAULT_BATCH_SIZE", "ArrowStream", "Chain", "Inputs"]

DEFAULT_BATCH_SIZE = 64


@runtime_checkable
class ArrowStream(Protocol):
    """A frame of pandas, polars or another library, an Arrow table, or a `RunResult`.

    Source: https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
    """

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


#: The path of a file, a folder or a pattern; several paths; or the rows themselves: models or dicts, a data frame, an Arrow
#: table, a dataset of `datasets`.
Inputs = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Iterable[BaseModel | dict[str, Any]] | ArrowStream


_OF_RUN = ("seed", "dedupe", "limit", "format", "output_dir", "resume", "key", "max_reject_rate", "simulate", "window")
_HINTS = dict.fromkeys(_OF_RUN, "chain.run(inputs, {given})") | {
    "id": "name={value}",
    "input": "input_model={value}",
    "nodes": "steps={value}",
    "engine": "engine_name={value} in each Step",
    "engine_name": "engine_name={value} in each Step",
}


@explained(_HINTS)
@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """Nodes in order; a list of branches is one stage.

    Declaring checks values only. Every way of running, and `chainette inspect`, first checks how the nodes fit together.
    """

    name: str
    steps: Sequence[Element]
    emoji: str = ""
    #: The most rows that are worked on together, 64 unless given.
    batch_size: int = DEFAULT_BATCH_SIZE
    #: The number of rows at the end after which a run stops: the first ones in the order of the input. None: it takes all.
    accept: int | None = None
    #: Defaults to the input model of the first node.
    input_model: type[BaseModel] | None = None
    place: Place = field(default_factory=caller_place, init=False, repr=False)
    registry: EngineRegistry = field(default_factory=current_registry, init=False, repr=False)

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            raise DeclarationError(f"{self.place}: chain name {self.name!r} {problem}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise DeclarationError(
                f"{self.place}: chain {self.name!r}: batch_size is {self.batch_size!r}, it must be 1 or more"
            )
        if self.accept is not None and (not isinstance(self.accept, int) or self.accept < 1):
            raise DeclarationError(
                f"{self.place}: chain {self.name!r}: accept is {self.accept!r}, it must be 1 or more (None: every row is taken)"
            )
        object.__setattr__(self, "steps", checked_elements(self.name, self.steps, self.place))

    def __repr__(self) -> str:
        return f"Chain({self.name!r}, {counted(len(self.steps), 'element')}, {self.place})"

    def _repr_html_(self) -> str:
        """The drawing of `chainette inspect-dag`, or the problems of a chain that does not fit together, for notebooks."""
        from chainette.core.chain_drawing import render_unicode
        from chainette.core.compile import compile_chain

        try:
            shown = render_unicode(compile_chain(self))
        except ChainetteError as error:
            shown = str(error)
        return f"<pre>{escape(shown)}</pre>"

    @spelt_out(RunKeywords)
    @explained()
    def run(
        self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Unpack[RunKeywords]
    ) -> RunResult:
        """Runs every row and writes a run directory (`runs/<run id>` unless named).

            chain.run("rows.jsonl")
            chain.run(pandas.read_sql(query, connection), "out")
            chain.run("rows.jsonl", "out", resume=True, select="changed+")  # after an edit: only the rows it changes

        Rows that are not in files of yours (models, dicts, frames, datasets) are kept in the directory. While it runs, a
        terminal or a notebook shows its progress. Works inside a running event loop too (it blocks it).

        Keyword Args:
            limit: the number of records to take, from the first on; None, the default: all.
            accept: stop once so many rows have reached the end, in the order of the input. Default: the chain's.
            batch_size: rows per unit of work. Default: the chain's.
            seed: the seed of every request's sampling seed. Default: 0.
            format: of the files: "jsonl" (the default), "parquet" or "csv".
            max_rows_per_file: rows per shard. Default: 100,000.
            flattened: also write one row per item across all steps. Default: True.
            key: an input column to copy into every shard, as `_key`. Default: None.
            columns: field of the input model -> the column that fills it: {"text": "body"}. Default: each its own.
            usage: also write the tokens and seconds each row's answers took. Default: False.
            csv_safe: with "csv", put `'` before text a spreadsheet would run as a formula. Default: False.
            engines_file: a YAML file whose engines replace those of the chain. Default: None.
            simulate: draw answers from the schemas instead of asking a model. Default: False.
            dedupe: ask once for rows whose requests are equal, unless their step says otherwise. Default: False.
            reuse: directories of earlier runs, whose answers to equal requests are taken. Default: none.
            no_reuse: with `reuse`, ids of steps whose every row is computed. Default: none.
            max_reject_rate: pause at this share of rejected rows of a step, after 200 rows. Default: None, never.
            engine_patience: seconds for which an engine may be silent before the run gives up. Default: 600.
            price: prices, such as "gpt=in:0.15,out:0.6" in dollars per million tokens. Default: those of the engines.
            budget: the most to spend, over all resumes: "20usd", "3gpuh", "5e6tok" or "1000req". Default: no limit.
            window: the most rows in progress. Default: None, derived from the engines.
            resume: go on with the run in `output_dir`, if there is one. Default: False.
            more: with `resume`, files that are appended to the input of a finished run. Default: none.
            select: with `resume`, the rows to compute again: "changed+", "STEP+" or "rejected". Default: none.
            progress: show the run in a terminal (on stderr) or notebook; elsewhere nothing is printed. Default: True.
            hooks: objects that are told of events (`chainette.hooks.Hook`). Default: none.
            drive: workers that do the work, such as `LocalFleet`. Default: None, this process.
            parameters: values of the parameters of the function that made the chain, for the log. Default: none.
            run_id: ASCII letters, digits, `_` and `-`, 64 at most. Default: a new one from date and time.
            chain_ref: the chain below `chain_root`, `chain.py:name`, so that `chainette resume` finds it. Default: "".
            chain_root: the folder in which `chain_ref` is. Default: "".
            chain_claim: the chain's files and their digest; set by the command line. Default: None.

        Raises:
            PlanError: the chain does not fit together.
            RunDirectoryError: the directory holds a run already and `resume=True` was not given.
            RunStopped: the run stopped itself and can be resumed.
        """
        from chainette.run.executor import run

        return run(self, inputs, output_dir, **options)

    @spelt_out(RunKeywords)
    async def arun(
        self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Unpack[RunKeywords]
    ) -> RunResult:
        """`run` for callers on an event loop, with the same options."""
        from chainette.run.executor import arun

        try:
            return await arun(self, inputs, output_dir, **options)
        except ChainetteError as error:
            raise error.with_traceback(None) from None  # as `explained` has it

    @spelt_out(RunKeywords)
    @explained()
    def run_iter(
        self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Unpack[RunKeywords]
    ) -> Iterator[list[Row]]:
        """Yields the finished rows root by root, and stores none of them.

        Rejected rows are left out. Writes nothing unless `output_dir` is given. Closing the iterator stops the run. The options
        are those of `run` except `drive`, but no progress is shown: the rows themselves are the progress.

        If engines share a device, all rows go through one engine and then through the next. Rows that wait for an engine are
        kept in memory, unless `output_dir` is given.
        """
        from chainette.run.executor import run_iter

        return run_iter(self, inputs, output_dir, **options)

    @spelt_out(RunKeywords)
    @explained()
    def stream(self, row: BaseModel | dict[str, Any], **options: Unpack[RunKeywords]) -> Iterator[StreamEvent]:
        """Yields the events of one row as they happen: questions, answers token by token, outputs (`chainette.core.streaming`).

        Seeds and outputs are those of `run([row])`; a row that is rejected ends with a `Rejection`. Writes nothing. Closing the
        iterator stops the run, and the generation at its engine. Works inside a running event loop too (it blocks it). The
        options are those of `run` except `drive`, as far as they concern one row.
        """
        from chainette.run.executor import stream

        return stream(self, row, **options)
