"""Every error Chainette raises on purpose.

    ChainetteError
      DeclarationError      a node or a chain was declared with values that cannot work
        WrongArguments      ... or with arguments that do not exist; a TypeError too
      PlanError             the static check found problems; carries all of them
      LoadError             a chain reference or a chain file could not be loaded
        ParameterError      values do not fit the parameters of a chain's factory
      SettingsError         chainette.toml or a CHAINETTE_* variable has a value that cannot be used
      PluginError           a prompt builder or hook of another distribution is missing or broken
      InputError            the input as a whole cannot be read (one bad line is a rejected row)
      TemplateError         a template cannot be compiled or rendered
      EngineError
        EngineConfigError   an engine was declared or loaded with values that cannot work
        EnginesCannotOpen   engines of a run lack something on this machine; carries all obstacles
        Undrawable          a simulated engine finds no answer that the output model accepts
        UnknownEngine       no engine is registered under that name
        EngineUnavailable   the engine does not answer now; the unit is tried again
          RequestsFailed    single requests got no answer; the engine may answer others
          EngineRefused     the engine answers, and will refuse every request (401, 402)
            DeclarationRefused  ... of one step, as the step is declared
      RunError
        RunDirectoryError   the output directory cannot be used
        RunDirectoryInUse   another process writes to it
        DamagedRun          the log or a shard is damaged
        ChainChanged        the chain is not the one the directory was made with
        DiskError           the disk is full, or a write failed
        RedisUnavailable    Redis does not answer now
        RunStopped          a run stopped itself; the directory is resumable
          BudgetSpent       at its budget
          NotFinished       its log does not have every record of the input; carries the gaps
        RunCancelled        the run was cancelled
      RowsRejected          `Node.execute` had to reject rows; carries the rejections

`exit_code` is the exit code of the command line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chainette.utils.plurals import counted

if TYPE_CHECKING:
    from chainette.records import Rejection

__all__ = [
    "BudgetSpent",
    "ChainChanged",
    "ChainetteError",
    "DamagedRun",
    "DeclarationError",
    "DeclarationRefused",
    "DiskError",
    "EngineConfigError",
    "EngineError",
    "EngineRefused",
    "EngineUnavailable",
    "EnginesCannotOpen",
    "InputError",
    "LoadError",
    "NotFinished",
    "ParameterError",
    "Place",
    "PlanError",
    "PluginError",
    "Problem",
    "RedisUnavailable",
    "RequestsFailed",
    "RowsRejected",
    "RunCancelled",
    "RunDirectoryError",
    "RunDirectoryInUse",
    "RunError",
    "RunStopped",
    "SettingsError",
    "TemplateError",
    "Undrawable",
    "UnknownEngine",
    "WrongArguments",
]


@dataclass(frozen=True)
class Place:
    """A line of the user's own file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One finding of the static check."""

    #: The finding and its remedy, as one sentence without the place.
    message: str
    #: The line the user wrote.
    place: Place | None
    #: A warning does not stop the chain.
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class ChainetteError(Exception):
    """The root of the tree; its message gives the finding, the place and the remedy."""

    exit_code: ClassVar[int] = 1


class DeclarationError(ChainetteError):
    exit_code = 2


class WrongArguments(DeclarationError, TypeError):
    pass


class PlanError(ChainetteError):
    """Raised with every problem at once."""

    exit_code = 2

    def __init__(self, chain: str, problems: Sequence[Problem]) -> None:
        self.chain = chain
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{self.headline}\n{lines}")

    @property
    def headline(self) -> str:
        """The message without the problems."""
        return f"chain {self.chain!r} cannot run: {counted(len(self.problems), 'problem')}"


class LoadError(ChainetteError):
    exit_code = 2


class LoadErrors(LoadError):
    """Raised with every problem of a chain file at once."""

    def __init__(self, problems: Sequence[LoadError]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"the chain file has {counted(len(self.problems), 'problem')}\n{lines}")


class ParameterError(LoadError):
    pass


class SettingsError(ChainetteError):
    exit_code = 2


class PluginError(ChainetteError):
    exit_code = 2


class InputError(ChainetteError):
    pass


class TemplateError(ChainetteError):
    pass


class EngineError(ChainetteError):
    pass


class EngineConfigError(EngineError):
    exit_code = 2


class EnginesCannotOpen(EngineError):
    """Raised with every obstacle at once, before a run begins or goes on."""

    def __init__(self, obstacles: Sequence[str]) -> None:
        self.obstacles = tuple(obstacles)
        lines = "\n".join(f"  {words}" for words in self.obstacles)
        super().__init__(f"the run cannot start: engines it needs cannot open here\n{lines}")


class Undrawable(EngineError):
    exit_code = 2


class UnknownEngine(EngineError):
    exit_code = 2


class EngineUnavailable(EngineError):
    """The engine did not answer; nothing is known about the rows, so none is rejected."""


class RequestsFailed(EngineUnavailable):
    """Requests of some rows got no answer. That may be the rows' own fault, or the engine's."""

    def __init__(self, words: str, rows: Collection[str], *, denied: bool) -> None:
        self.rows = rows
        #: Whether the engine answered that it will not, as it may to every request.
        self.denied = denied
        super().__init__(words)


class EngineRefused(EngineUnavailable):
    """The endpoint refuses every request (bad key, unknown model). Waiting may help once someone
    fixes it; no row is rejected."""


class DeclarationRefused(EngineRefused):
    """The endpoint refuses every request of a step, for a setting in its declaration. Waiting does not help."""


class RunError(ChainetteError):
    pass


class RunDirectoryError(RunError):
    pass


class RunDirectoryInUse(RunError):
    pass


class DamagedRun(RunError):
    pass


class ChainChanged(RunError):
    pass


class DiskError(RunError):
    pass


class RedisUnavailable(RunError):
    """Redis does not answer now, but may later."""


class RunStopped(RunError):
    """The run stopped before its end and can be resumed."""


class BudgetExhausted(RunError):
    """The next request of a run does not fit its budget, or that of its engine, and nothing is in flight."""


class BudgetSpent(RunStopped):
    """The run stopped at its budget."""

    def __init__(self, message: str, flags: tuple[str, ...]) -> None:
        super().__init__(message)
        #: The flags with which `chainette resume` goes on.
        self.flags = flags


class NotFinished(RunStopped):
    """According to its log, the run is not finished: rows are missing, or a step does not balance."""

    def __init__(self, directory: object, gaps: Sequence[str]) -> None:
        self.gaps = tuple(gaps)
        super().__init__(
            f"{directory} is not finished: {'; '.join(gaps)}. `chainette resume {directory}` computes the rows that are missing"
        )


class RunCancelled(RunError):
    """The run was cancelled with `chainette cancel`."""


class RowsRejected(ChainetteError):
    def __init__(self, rejections: Sequence[Rejection]) -> None:
        self.rejections = tuple(rejections)
        first = self.rejections[0]
        super().__init__(
            f"{counted(len(self.rejections), 'rejected row')}; the first is row {first.row_id} "
            f"at {first.step_id!r}: {first.reason}: {first.message}"
        )
