"""Chains with a loop that revises drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import Chain, Loop, RunResult, apply
from chainette.core.branch import Element
from chainette.core.compile import compile_chain
from chainette.errors import PlanError
from chainette.io.rundir.run_state import Status
from tests.support.chains import finished

__all__ = ["Draft", "N", "Verdict", "draft", "ends", "judge", "refusal", "revise", "rounds", "run", "seen"]


class N(BaseModel):
    n: int


class Draft(BaseModel):
    v: int


class Verdict(BaseModel):
    ok: bool
    score: float | None = None


def draft(item: N, history: Mapping[str, Any]) -> Draft:
    """Adds the number once in each round."""
    before = history["previous"].draft
    return Draft(v=(before.v if before else 0) + item.n)


def judge(item: Draft) -> Verdict:
    """From 6 on it is good; before, 4 is the best."""
    return Verdict(ok=item.v >= 6, score=-abs(item.v - 4))


def seen(item: N, history: Mapping[str, Any]) -> Draft:
    return Draft(v=100 * history["final"].v)


def revise(**given: Any) -> Loop:
    settings: dict[str, Any] = {"steps": [apply(draft), apply(judge)], "until": "{{ judge.ok }}", "max_rounds": 4}
    return Loop("revise", **(settings | given))


def run(path: Path, steps: Sequence[Element], numbers: Sequence[int] = (1, 2, 3, 7), **options: Any) -> RunResult:
    """A finished run whose rows are all accounted for, and whose rows `run_iter` gives too."""
    chain = Chain(name="loops", steps=steps, batch_size=3, input_model=N)
    inputs = [N(n=number) for number in numbers]
    result = chain.run(inputs, path / "run", **options)
    assert result.status is Status.FINISHED
    assert result.metadata["balanced"], result.counts
    streamed = {row.row_id for row in finished(chain.run_iter(inputs))}
    assert streamed == {row["row_id"] for row in result.rows("flattened")}
    return result


def rounds(result: RunResult, step: str, column: str) -> dict[str, list[Any]]:
    """Row -> its values in the order of the rounds."""
    rows = sorted(result.rows(step), key=lambda row: int(row["_round"]))
    return {
        row_id: [row[column] for row in rows if row["row_id"] == row_id] for row_id in sorted({row["row_id"] for row in rows})
    }


def ends(result: RunResult) -> dict[str, tuple[int, int]]:
    return {row["row_id"]: (row["revise._round"], row["final.v"]) for row in result.rows("flattened")}


def refusal(*steps: Element) -> str:
    with pytest.raises(PlanError) as refused:
        compile_chain(Chain(name="loops", steps=steps, input_model=N))
    return str(refused.value)
