"""The settings of a run: the one list that flags, the log, orders to services and Python keywords follow.

To add a setting, add a field here and use it. It is then a flag of `run` and `enqueue` (and of `resume`, unless the log
fixes it), a keyword of `Chain.run`, and part of every order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from chainette.errors import InputError

__all__ = ["FLAGS", "RECORDED", "RESUMABLE", "UNRECORDED", "Flag", "Format", "RunSettings"]

Format = Literal["jsonl", "parquet", "csv"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A setting on the command line; unless `name` says otherwise, the flag is the field's name with dashes."""

    help: str
    metavar: str | None = None
    #: The smallest value.
    minimum: int | None = None
    name: str = ""
    #: Whether the value is the path of a file that must be there; or that of a folder.
    file: bool = False
    folder: bool = False
    #: Whether the log fixes the value for all later sessions of the directory; otherwise each session has its own.
    recorded: bool = True
    #: The help of `resume`, if a later session may raise a recorded value.
    raised: str = ""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How to run, in values the log and orders to services can hold.

    Raises:
        InputError: a value is out of range.
    """

    limit: Annotated[
        int | None,
        Flag(
            help="Take the first N records.",
            metavar="N",
            minimum=1,
            raised="Take the first N records, more than before; also of a finished run.",
        ),
    ] = None
    accept: Annotated[
        int | None,
        Flag(
            help="Stop once the first N rows, in the order of the input, have reached the end [default: the chain's].",
            metavar="N",
            minimum=1,
            raised="Accept the first N rows, more than before; also of a finished run.",
        ),
    ] = None
    batch_size: Annotated[int | None, Flag(help="Rows per unit of work [default: the chain's].", metavar="N", minimum=1)] = None
    seed: Annotated[int, Flag(help="The seed from which every request's sampling seed is derived.", metavar="N")] = 0
    format: Annotated[Format, Flag(help="The file format of the rows.")] = "jsonl"
    max_rows_per_file: Annotated[int, Flag(help="Rows per shard.", metavar="N", minimum=1)] = 100_000
    flattened: Annotated[bool, Flag(help="Also write one row per item across all steps.")] = True
    key: Annotated[str | None, Flag(help="Copy this input column into every shard, as _key.", metavar="FIELD")] = None
    columns: Annotated[
        tuple[str, ...],
        Flag(help="Fill this field of the input model from this column of the input; repeatable.", metavar="FIELD=COLUMN"),
    ] = ()
    usage: Annotated[bool, Flag(help="Also write the tokens and seconds that each row's answers took.")] = False
    csv_safe: Annotated[bool, Flag(help="With --format csv: put ' before text that a spreadsheet would run as a formula.")] = (
        False
    )
    engines_file: Annotated[
        str | None,
        Flag(help="A YAML file whose engines replace those of the chain.", metavar="FILE", name="--engines", file=True),
    ] = None
    simulate: Annotated[bool, Flag(help="Draw answers from the schemas instead of asking a model.")] = False
    dedupe: Annotated[
        bool, Flag(help="Ask once for rows whose requests are equal, and share the answer; steps may say otherwise.")
    ] = False
    reuse: Annotated[
        tuple[str, ...],
        Flag(
            help="Take answers to equal requests from this earlier run instead of asking again; repeatable.",
            metavar="DIR",
            folder=True,
            raised="Take answers from this earlier run instead of those that the run was started with; repeatable.",
        ),
    ] = ()
    no_reuse: Annotated[
        tuple[str, ...],
        Flag(
            help="With --reuse: compute every row of this step, such as a function that reads outside data; repeatable.",
            metavar="STEP",
        ),
    ] = ()
    max_reject_rate: Annotated[
        float | None,
        Flag(help="Pause when this share of a step's rows is rejected (after 200 rows).", metavar="R", recorded=False),
    ] = None
    engine_patience: Annotated[
        float, Flag(help="Give up if an engine has not answered for this long.", metavar="SECONDS", minimum=0, recorded=False)
    ] = 600.0
    price: Annotated[
        tuple[str, ...],
        Flag(
            help="Dollars per million tokens, such as gpt=in:0.15,out:0.6,cached:0.08, or llama=gpu_hour:2.5; repeatable.",
            metavar="ENGINE=PRICE",
            recorded=False,
        ),
    ] = ()
    budget: Annotated[
        tuple[str, ...],
        Flag(
            help="The most that the run may spend, over all resumes: 20usd, 3gpuh, 5e6tok or 1000req; for one engine "
            "gpt=20usd, in place of its own budget; repeatable.",
            metavar="AMOUNT",
            recorded=False,
        ),
    ] = ()
    #: None derives it from the engines.
    window: Annotated[int | None, Flag(help="The most rows in progress.", metavar="N", minimum=1, recorded=False)] = None

    def __post_init__(self) -> None:
        if isinstance(self.columns, Mapping):
            object.__setattr__(self, "columns", tuple(f"{field}={column}" for field, column in self.columns.items()))
        for name in ("columns", "price", "budget", "reuse", "no_reuse"):  # one value, or the list that JSON made of a tuple
            value = getattr(self, name)
            object.__setattr__(self, name, (str(value),) if isinstance(value, str | Path) else tuple(map(str, value)))
        object.__setattr__(self, "reuse", tuple(map(os.path.abspath, self.reuse)))
        if self.engines_file is not None:
            object.__setattr__(self, "engines_file", os.fspath(self.engines_file))
        for name, flag in FLAGS.items():
            value = getattr(self, name)
            if flag.minimum is not None and value is not None and not isinstance(value, Real):
                raise InputError(f"{name} is {value!r}; it must be a number")
            if flag.minimum is not None and value is not None and value < flag.minimum:
                raise InputError(f"{name} is {value}; it must be {flag.minimum} or more")
        if not math.isfinite(self.engine_patience):  # JSON, in which orders travel, has no word for it
            raise InputError(f"engine_patience is {self.engine_patience}; it must be a number of seconds, such as 1e9")
        if self.format not in get_args(Format):
            raise InputError(f"format is {self.format!r}; it must be jsonl, parquet or csv")
        if self.max_reject_rate is not None and not 0 < self.max_reject_rate <= 1:
            raise InputError(f"max_reject_rate is {self.max_reject_rate}; it must be above 0 and at most 1")

        _filled_from(self.columns)

    @property
    def filled_from(self) -> Mapping[str, str]:
        """Field -> the column that fills it."""
        return _filled_from(self.columns)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not at their defaults."""
        return {field.name: value for field in fields(RunSettings) if (value := getattr(self, field.name)) != field.default}


def _filled_from(columns: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for words in columns:
        field, equals, column = words.partition("=")
        if not (field and equals and column):
            raise InputError(f"columns is {words!r}; write FIELD=COLUMN, such as text=body")
        if found.setdefault(field, column) != column:
            raise InputError(f"columns: the field {field!r} is filled from {found[field]!r} and from {column!r}; leave one out")
    return found


#: Setting -> its flag.
FLAGS: Mapping[str, Flag] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(RunSettings, include_extras=True).items()
}

#: Settings the log fixes for every later session of a directory.
RECORDED = frozenset(name for name, flag in FLAGS.items() if flag.recorded)

#: Settings every session of a directory has anew.
UNRECORDED = frozenset(FLAGS) - RECORDED

#: Settings a later session may give.
RESUMABLE = UNRECORDED | {name for name, flag in FLAGS.items() if flag.raised}
