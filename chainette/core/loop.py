"""Loop: steps that are repeated for each row until a condition holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal

from chainette.core.branch import Element, checked_elements
from chainette.core.condition import Condition, Given
from chainette.core.decision import RoundEnd, Undecided, round_end_of
from chainette.core.node import Joinable, check_name
from chainette.errors import DeclarationError
from chainette.records import Reason
from chainette.utils.argument_advice import explained
from chainette.utils.call_site import caller_place
from chainette.utils.plurals import counted

__all__ = ["Judge", "Loop", "Outcome"]

#: The fate of a row whose last round did not satisfy `until`.
Outcome = Literal["reject", "keep", "best"]

_HINTS = {
    "id": "name={value}",
    "max_iterations": "max_rounds={value}",
    "nodes": "steps={value}",
    "rounds": "max_rounds={value}",
    "score": "best={value}",
    "while_": "until=..., the opposite condition",
}


@explained(_HINTS)
@dataclass(frozen=True, eq=False, init=False)
class Loop(Joinable):
    """Repeats its steps for every row until a condition holds, at most `max_rounds` times.

        Loop("revise", steps=[draft, judge], until="{{ judge.ok }}", max_rounds=4, on_exhausted="keep").join("final")

    Every round begins with the row before the loop. Inside, `round` counts from 1, and `previous.<id>` is the value of the
    round before, None in round 1. `until` is a template, whose lone `{{ x }}` gives the value itself, or a function of (item)
    or (item, history), read at the end of a round. A row that no round satisfied is rejected (`exhausted`), or keeps its
    last round (`on_exhausted="keep"`), or the round with the largest number that `best` gives, the earliest of equals.
    `result` names the node whose value the alias holds; by default the last one that `until` and `best` do not read.

    Decisions are durable before anything follows from them, and are written to `<name>/`. Like a branch, a loop works on a
    copy of the row: only the alias of `.join(alias)` is visible afterwards.

    Raises:
        DeclarationError: arguments that do not fit together, at the line that declares the loop.
    """

    steps: tuple[Element, ...]
    until: Condition
    max_rounds: int
    on_exhausted: Outcome
    best: Condition | None
    result: str | None

    def __init__(
        self,
        name: str,
        *,
        steps: Sequence[Element],
        until: Given,
        max_rounds: int,
        on_exhausted: Outcome | None = None,
        best: Given | None = None,
        result: str | None = None,
        emoji: str = "",
    ) -> None:
        place = caller_place()
        check_name("loop name", name)
        label = f"loop {name!r}"
        ending = on_exhausted or ("best" if best is not None else "reject")
        problem = ""
        if not isinstance(max_rounds, int) or isinstance(max_rounds, bool) or max_rounds < 1:
            problem = f"max_rounds is {max_rounds!r}, it must be 1 or more"
        elif ending not in ("reject", "keep", "best"):
            problem = f"on_exhausted is {on_exhausted!r}; it is 'reject', 'keep' or 'best'"
        elif (best is None) == (ending == "best"):
            problem = "best= gives the number by which on_exhausted='best' chooses a round; give both or none"
        if problem:
            raise DeclarationError(f"{place}: {label}: {problem}")
        self._set(
            id=name,
            name=name,
            emoji=emoji,
            place=place,
            steps=checked_elements(name, steps, place),
            until=Condition.of(f"{label}, until", until, place),
            max_rounds=max_rounds,
            on_exhausted=ending,
            best=None if best is None else Condition.of(f"{label}, best", best, place),
            result=result,
            alias="",
        )


@dataclass(frozen=True, eq=False)
class Judge:
    """The function that decides at the end of a round whether a row goes on with the next one."""

    loop: Loop
    round: int

    def __call__(self, item: Any, history: Mapping[str, Any]) -> RoundEnd:
        """The decision for one row.

        Raises:
            Undecided: no decision is possible, or the row is exhausted.
        """
        if self.loop.until.holds(item, history):
            return RoundEnd(way="ended", taken=self.round, score=None)
        taken, score = self._best(item, history)
        if self.round < self.loop.max_rounds:
            return RoundEnd(way="again", taken=taken, score=score)
        if self.loop.on_exhausted == "reject":
            words = f"{self.loop.until.label} did not hold after {counted(self.round, 'round')}"
            raise Undecided(Reason.EXHAUSTED, words)
        return RoundEnd(way="kept", taken=taken, score=score)

    def _best(self, item: Any, history: Mapping[str, Any]) -> tuple[int, float | None]:
        """The best round so far, and its number; without `best`, this one."""
        if self.loop.best is None:
            return self.round, None
        score = self._number(self.loop.best.value(item, history))
        before: bytes | None = getattr(history, "decision", None)
        if before is None:
            return self.round, score
        taken, known = round_end_of(before)
        if score is None or (known is not None and known >= score):
            return taken, known
        return self.round, score

    def _number(self, value: Any) -> float | None:
        """The number, at most the largest float, since JSON has no infinity; None if it is missing or NaN."""
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Undecided(Reason.APPLY_ERROR, f"loop {self.loop.id!r}, best gave {value!r:.200}, which is not a number")
        return (
            None
            if isinstance(value, float) and isnan(value)
            else float(max(-sys.float_info.max, min(sys.float_info.max, value)))
        )
