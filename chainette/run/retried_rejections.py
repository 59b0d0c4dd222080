"""The rejections of a run that a retry takes back."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from chainette.core.plan import Plan
from chainette.errors import RunDirectoryError
from chainette.io.rundir.input_records import kind_of_records
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import RunState
from chainette.records import CHAIN_INPUT, Reason
from chainette.utils.plurals import counted

__all__ = ["Rejections"]


@dataclass(frozen=True)
class Rejections:
    """Rejections that are taken back: those of some steps and with some reasons, or all."""

    steps: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    #: Loops that have no further round for their exhausted rows, and do not keep them either.
    final: frozenset[str] = frozenset()

    def without_final(self, directory: RunDir, plan: Plan, state: RunState) -> Rejections:
        """Without exhausted rows that would only be rejected again."""
        exhausted = {step for step, counts in state.nodes.items() if counts.reasons.get(Reason.EXHAUSTED)}
        if not exhausted:
            return self
        rows = (row for row in RunResult(directory, state).rows("rejected") if row["reason"] == Reason.EXHAUSTED)
        going_on = {row["step_id"] for row in rows if plan.goes_on(row["step_id"], str(row["_round"]))}
        return replace(self, final=frozenset(exhausted - going_on))

    def includes(self, step: str, reason: str) -> bool:
        return self._matches(step, reason) and not (reason == Reason.EXHAUSTED and step in self.final)

    def _matches(self, step: str, reason: str) -> bool:
        return (not self.steps or step in self.steps) and (not self.reasons or reason in self.reasons)

    def asked_alone(self, directory: RunDir, state: RunState) -> str:
        """Says why a changed chain cannot ask for these rows alone, and how it can in another directory."""
        reasons = [(step, *found) for step, counts in state.nodes.items() for found in counts.reasons.items()]
        rows = sum(count for step, reason, count in reasons if step != CHAIN_INPUT and self.includes(step, reason))
        chosen = [("--step", step) for step in sorted(self.steps)] + [("--reason", name) for name in sorted(self.reasons)]
        words = shlex.join(["chainette", "rejected", str(directory), *(word for pair in chosen for word in pair), "--records"])
        return (
            "All rows of a directory come from one chain, so its rejected rows cannot be asked alone with another. "
            f"To ask for them in a separate directory ({counted(rows, 'row')}): "
            f"`{words} > rejected.{kind_of_records(state)}`, which prints the command to ask for them. "
        )

    def require_some(self, directory: RunDir, plan: Plan, state: RunState) -> None:
        """Raises RunDirectoryError if a run has no such rejections."""
        counted = {step: counts.reasons for step, counts in state.nodes.items() if step in plan.nodes}
        if any(self.includes(step, reason) for step, reasons in counted.items() for reason in reasons):
            return
        if not any(counted.values()) and state.node(CHAIN_INPUT).rejected:
            raise RunDirectoryError(
                f"{directory}: only lines of the input were rejected; mend them there, and ask only for those: "
                f"`chainette run {state.run.chain_ref or 'CHAIN'} INPUTS --reuse {directory} -o NEW`"
            )
        if not any(counted.values()):
            raise RunDirectoryError(f"{directory} has no rejected rows")
        if left := sorted(loop for loop in self.final if self._matches(loop, Reason.EXHAUSTED)):
            raise RunDirectoryError(
                f"{directory} has no rejected rows that match, except those that are exhausted, for which no round is left; "
                f"raise max_rounds of {' and '.join(left)}, or set on_exhausted='keep'"
            )
        raise RunDirectoryError(f"{directory} has no rejected rows that match; `chainette rejected {directory}` lists them")
