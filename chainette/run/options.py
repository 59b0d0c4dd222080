"""RunOptions: how to run a chain."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from chainette.core.plan import Plan
from chainette.core.run_keywords import ResumeKeywords, RunKeywords
from chainette.core.run_settings import FLAGS, RECORDED, RunSettings
from chainette.core.usercode.confined import ChainClaim
from chainette.engine.base import SamplingParams
from chainette.errors import InputError
from chainette.hooks import Hook
from chainette.io.inputs.growing_file import RowSource
from chainette.run.answer_sources import AnswerSources
from chainette.run.limits import Limits
from chainette.utils.argument_advice import explained

__all__ = ["Drive", "RunOptions", "options_of"]


class Drive(Protocol):
    """Moves the units of an open directory (a `session.Session`) to their end."""

    @property
    def attaches(self) -> bool:
        """Whether this session's units outlive it, so that a later session goes on with the epoch."""

    @property
    def way(self) -> dict[str, str]:
        """How `resume` is told to move a run in this way: values of its flags, by name."""

    def check(self, plan: Plan, /) -> None:
        """Raises if it cannot move the units of a plan; called before anything is written or taken back."""

    def __call__(self, session: Any) -> None: ...

    def clean(self, run: str) -> None:
        """Deletes the leftovers of a run whose directory says that it is finished.

        Raises:
            RunError: they cannot be deleted.
        """


#: A run's id becomes a folder, and part of keys, queues and job ids.
_RUN_ID = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_HINTS = dict.fromkeys(SamplingParams.__struct_fields__, "sampling=SamplingParams({given}) in each Step") | {
    "debug": "hooks=(ChainDebugger(print),) of chainette.utils.debug, or run the chain with `chainette run --debug`",
    "directory": "output_dir={value}",
    "engines": "engines_file={value}",
    "fmt": "format={value}",
    "generate_flattened_output": "flattened={value}",
    "max_lines_per_file": "max_rows_per_file={value}",
    "max_rows": "limit={value}",
    "output": "output_dir={value}",
    "output_path": "output_dir={value}",
    "redis": "drive=RedisFleet({value}) of chainette_workers.sink.redis_fleet, or run it with `chainette run --redis URL`",
    "workers": "drive=LocalFleet({value}) of chainette_workers.sink.local_fleet, or run it with `chainette run --workers N`",
    "writer": "output_dir=..., the run's directory",
}
del _HINTS["seed"]


@explained(_HINTS, called="run options")
@dataclass(frozen=True, kw_only=True)
class RunOptions(RunSettings):
    """How to run a chain in this process: the run's settings, and objects that only a process can hold."""

    #: The run's id; a new one if it is empty.
    run_id: str = ""
    #: How `resume` finds the chain again; set by the command line.
    chain_ref: str = ""
    chain_root: str = ""
    #: The chain's files and their digest; taken again if it is None.
    chain_claim: ChainClaim | None = None
    #: Values for the parameters of the chain's factory, as JSON or text; at a resume only the changed ones.
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: Goes on with a directory that holds a run.
    resume: bool = False
    #: Paths of a resumed run's input if it has moved; () otherwise.
    inputs: Sequence[str | os.PathLike[str]] = ()
    #: Paths that are appended to the input when a finished run is resumed; () otherwise.
    more: Sequence[str | os.PathLike[str]] = ()
    #: Rows of a resumed run that are computed again: `changed+`, `STEP+`, `rejected`; see `run/selected_rows.py`.
    select: Sequence[str] = ()
    #: The source of a resumed run's rows, again from the first one, if it had not ended: a stream, or rows.
    source: RowSource | None = None
    hooks: tuple[Hook, ...] = ()
    #: Who moves the units; None: this process does.
    drive: Drive | None = None
    #: Whether a terminal (on stderr) or a notebook shows the run as it goes on; elsewhere nothing is shown.
    progress: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "select", (self.select,) if isinstance(self.select, str) else tuple(self.select))
        if self.run_id and not _RUN_ID.fullmatch(self.run_id):
            raise InputError(f"run_id is {self.run_id!r}; it may hold ASCII letters, digits, '_' and '-' only, 64 at most")

    def wanted(self, plan: Plan) -> int | None:
        """The number of rows after which a fresh run of a plan stops; None if it takes all."""
        return self.accept or plan.accept

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings the log fixes for every later session of the directory."""
        return {name: getattr(self, name) for name in FLAGS if name in RECORDED}

    @property
    def way(self) -> dict[str, str]:
        """See `Drive.way`; {} if this process moves the units."""
        return self.drive.way if self.drive is not None else {}

    def sources(self, folder: Path, own: str = "") -> AnswerSources | None:
        """The earlier runs to take answers from, and the run's own directory if it is one of them; their indexes go to
        `folder`. None if there are none."""
        return AnswerSources(self.reuse, str(folder), self.no_reuse, own) if self.reuse or own else None

    @property
    def limits(self) -> Limits:
        return Limits(self.window, self.engine_patience, self.max_reject_rate)


def options_of(keywords: RunKeywords | ResumeKeywords, **more: Any) -> RunOptions:
    """The options for keywords of a call, whose types are wider: `RunSettings` makes one form of them."""
    return RunOptions(**cast("dict[str, Any]", keywords), **more)
