"""Chains with a step that asks for several candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chainette import Chain, RunResult, SamplingParams, Step
from chainette.core.branch import Element
from chainette.engine.base import Request
from chainette.io.rundir.run_state import Status
from tests.support.chains import Text, Word, finished, texts
from tests.support.scripted import ask_of, row_of

__all__ = ["WARM", "WORDS", "chain", "picked", "run", "vars_of", "vote", "words"]

WARM = SamplingParams(temperature=0.8)


#: Row -> the words of its five candidates; "" is no JSON.
WORDS = {
    "0": ["a", "b", "b", "a", "c"],
    "1": ["", "x", "", "x", "y"],
    "2": ["", "", "q", "", ""],
    "3": ["", "", "", "", ""],
}


def words(request: Request) -> str:
    row, _, sample = row_of(request).partition("~")
    word = WORDS[row][int(sample or 0)]
    return f'{{"word": "{word}"}}' if word else f"nothing in ask {ask_of(request)}"


def vote(n: int = 5, pick: Any = "majority", **keys: Any) -> Step[Any, Any]:
    given: dict[str, Any] = {
        "input_model": Text,
        "output_model": Word,
        "engine_name": "llm",
        "max_attempts": 1,
        "sampling": WARM,
    } | keys
    return Step(id="vote", n=n, pick=pick, **given)


def chain(*steps: Element, **keys: Any) -> Chain:
    return Chain(name="samples", batch_size=3, input_model=Text, steps=steps or [vote(**keys)])


def run(path: Path, *steps: Element, rows: int = 4, **keys: Any) -> RunResult:
    """A finished run whose rows are all accounted for, and whose rows `run_iter` gives too."""
    declared = chain(*steps, **keys)
    result = declared.run(texts(rows), path / "run")
    assert result.status is Status.FINISHED
    assert result.metadata["balanced"], result.counts
    streamed = {row.row_id for row in finished(declared.run_iter(texts(rows)))}
    assert streamed == {row["row_id"] for row in result.rows("flattened")}
    return result


def picked(result: RunResult) -> dict[str, str]:
    return {row["row_id"]: row["word"] for row in result.rows("vote")}


def vars_of(step: Step[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in vars(step).items() if name not in ("place", "name")}
