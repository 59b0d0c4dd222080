"""Every backend passes the cases that the table in docs/engines.md lists for it, with real models and real servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import pytest

from chainette.conformance.case import Case, Verdict
from chainette.conformance.examination import CASES
from tests.conformance.subjects import PAGE, SUBJECTS, cells, judged, rows_of
from tests.support.models import needs_model
from tests.support.tools import ALL, many
from tests.support.vllm import needs_vllm

TABLE = rows_of(PAGE.read_text())

#: The needs of a backend.
NEEDS: Mapping[str, Sequence[pytest.MarkDecorator]] = {
    "simulated": (),
    "llama_cpp": (needs_model,),
    "vllm": needs_vllm,
    "openai": (needs_model,),
    "openai (vLLM)": needs_vllm,
    "ollama": (needs_model,),
}
#: Backends of one library, whose cases take a second each: a case runs on one of them in turn, with `LONG=all` on each.
IN_TURN = ("llama_cpp", "openai", "ollama")

CHOSEN = [
    pytest.param(
        backend, case, id=f"{backend}-{case.name}", marks=[*NEEDS[backend], pytest.mark.xdist_group(f"conform-{backend}")]
    )
    for backend in SUBJECTS
    for number, case in enumerate(CASES)
    if ALL or backend not in IN_TURN or number % many(30, 3, 1) == IN_TURN.index(backend)
]


Judge = Callable[[Case], Verdict]


@pytest.fixture(scope="module")
def judge_of() -> Iterator[Callable[[str], Judge]]:
    """Opens a backend, and closes the previous one. A fixture with parameters would be created anew for every case."""
    opened: dict[str, Judge] = {}
    with ExitStack() as stack:

        def judge_of(backend: str) -> Judge:
            if backend not in opened:
                opened.clear()
                stack.close()
                opened[backend] = stack.enter_context(judged(backend))
            return opened[backend]

        yield judge_of


@pytest.mark.parametrize(("backend", "case"), CHOSEN)
@pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning", "ignore::DeprecationWarning")  # of vLLM's libraries
def test_a_backend_keeps_its_promises(judge_of: Callable[[str], Judge], backend: str, case: Case) -> None:
    verdict = judge_of(backend)(case)
    assert cells(verdict) == TABLE[case.name][backend], f"{verdict.words} (`make conformance` writes the table anew)"


def test_the_table_has_a_row_for_each_case_and_a_verdict_in_each_cell() -> None:
    assert [*TABLE] == [case.name for case in CASES]
    assert all([*row] == [*SUBJECTS] and {*row.values()} <= {"yes", "-"} for row in TABLE.values()), json.dumps(TABLE)
