"""Every backend keeps the promises that the table in docs/engines.md says it keeps, on real models and real servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from chainette.conformance.case import Case, Verdict
from chainette.conformance.examination import CASES
from tests.conformance.subjects import PAGE, SUBJECTS, cells, judged, rows_of
from tests.support.models import needs_model
from tests.support.tools import some
from tests.support.vllm import needs_vllm

TABLE = rows_of(PAGE.read_text())

#: The needs of a backend, and the number of its cases that run outside CI: those of real models take a second each.
NEEDS: Mapping[str, Sequence[pytest.MarkDecorator]] = {
    "simulated": (),
    "llama_cpp": (needs_model,),
    "vllm": needs_vllm,
    "openai": (needs_model,),
    "openai (vLLM)": needs_vllm,
    "ollama": (needs_model,),
}
SHARE = {"simulated": 1, "vllm": 1, "llama_cpp": 30, "openai": 30, "openai (vLLM)": 1, "ollama": 30}

CHOSEN = [
    pytest.param(
        backend, case, id=f"{backend}-{case.name}", marks=[*NEEDS[backend], pytest.mark.xdist_group(f"conform-{backend}")]
    )
    for backend in SUBJECTS
    for case in some(CASES, SHARE[backend])
]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[[Case], Verdict]]]:
    """A backend's name and its judge; pytest closes one backend before it opens the next."""
    with judged(request.param) as judge:
        yield request.param, judge


@pytest.mark.parametrize(("subject", "case"), CHOSEN, indirect=["subject"])
@pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning", "ignore::DeprecationWarning")  # of vLLM's libraries
def test_a_backend_keeps_its_promises(subject: tuple[str, Callable[[Case], Verdict]], case: Case) -> None:
    backend, judge = subject
    verdict = judge(case)
    assert cells(verdict) == TABLE[case.name][backend], f"{verdict.words} (`make conformance` writes the table anew)"


def test_the_table_has_a_row_for_each_case_and_a_verdict_in_each_cell() -> None:
    assert [*TABLE] == [case.name for case in CASES]
    assert all([*row] == [*SUBJECTS] and {*row.values()} <= {"yes", "-"} for row in TABLE.values()), json.dumps(TABLE)
