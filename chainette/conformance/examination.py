"""Runs the cases against one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

import anyio

from chainette.conformance.answer_kinds import ANSWER_KINDS
from chainette.conformance.behaviour import BEHAVIOUR
from chainette.conformance.case import BrokenPromise, Case, CaseOutcome, NotApplicable, Subject, Verdict
from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import Engines, create_engine
from chainette.utils.user_errors import told

__all__ = ["CASES", "Bench", "examine"]

CASES: tuple[Case, ...] = (*ANSWER_KINDS, *BEHAVIOUR)

#: Seconds a case may take.
_PATIENCE = 120.0


class Bench:
    """An async context manager that opens the engine of a configuration and runs cases on it."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        skipped: Mapping[str, str] | None = None,
        create: Callable[[EngineConfig], Engine] = lambda config: create_engine(config, 30.0),
        patience: float = _PATIENCE,
        refused: str = "",
    ) -> None:
        self._config, self._create, self._patience, self._refused = config, create, patience, refused
        #: Name of a case -> the reason not to run it.
        self._skipped = skipped or {}
        self._engines = Engines({config.name: config}, create=create)

    async def __aenter__(self) -> Bench:
        await self._engines.__aenter__()
        try:
            await self._engines.get(self._config.name)
        except BaseException as error:
            await self._engines.__aexit__(type(error), error, None)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self._engines.__aexit__(kind, error, at)

    async def judge(self, case: Case) -> Verdict:
        """The verdict on one case. A case fails if it takes too long or raises any exception."""
        if case.name in self._skipped:
            return Verdict(case.name, CaseOutcome.NOT_APPLICABLE, self._skipped[case.name])
        try:
            with anyio.fail_after(self._patience):
                engine = await self._engines.get(self._config.name)
                await case.check(Subject(self._config, engine, lambda: self._create(self._config), self._refused))
        except NotApplicable as error:
            return Verdict(case.name, CaseOutcome.NOT_APPLICABLE, str(error))
        except TimeoutError:
            return Verdict(case.name, CaseOutcome.FAILED, f"not finished after {self._patience:g} s")
        except Exception as error:  # a plugin may raise anything
            return Verdict(case.name, CaseOutcome.FAILED, str(error) if isinstance(error, BrokenPromise) else told(error))
        return Verdict(case.name, CaseOutcome.PASSED)


async def examine(
    config: EngineConfig,
    tell: Callable[[Verdict], None] = lambda _verdict: None,
    patience: float = _PATIENCE,
    refused: str = "",
) -> list[Verdict]:
    """The verdicts on all cases; each is also passed to `tell` as soon as it is known.

    `patience` is in seconds, for each case. `refused` is a user message that the service declines to answer; without one,
    the cases about refusals do not apply.

    Raises:
        EngineError: the engine does not open.
    """
    verdicts = []
    async with Bench(config, patience=patience, refused=refused) as bench:
        for case in CASES:
            verdicts.append(await bench.judge(case))
            tell(verdicts[-1])
    return verdicts
