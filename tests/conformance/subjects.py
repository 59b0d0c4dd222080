"""The backends that the suite runs on, and the table of their verdicts in docs/engines.md."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from chainette.conformance.case import Case, CaseOutcome, Verdict
from chainette.conformance.examination import CASES, Bench
from chainette.engine.config import EngineConfig, make_config
from tests.support.content_filter import FORBIDDEN, ContentFilter
from tests.support.llama_server import CONTEXT, llama_server
from tests.support.models import SMOL
from tests.support.ollama_server import MODEL, ollama_server
from tests.support.vllm import SMOL as SMOL_FOLDER
from tests.support.vllm_server import NAME, vllm_server

__all__ = ["SUBJECTS", "cells", "judged", "rows_of"]

PAGE = Path(__file__).parents[2] / "docs/engines.md"
_BEGIN, _END = "<!-- conformance: written by `make conformance` -->\n", "<!-- end of conformance -->\n"
_CELLS = {CaseOutcome.PASSED: "yes", CaseOutcome.FAILED: "no", CaseOutcome.NOT_APPLICABLE: "-"}

#: llama.cpp's own converter of schemas never ends, and uses up all memory.
_HANGS = {"answers with an integer with a bound of 19 digits": "llama.cpp's server hangs"}


class Subject(NamedTuple):
    config: EngineConfig
    skipped: Mapping[str, str] = {}
    refused: str = ""


@contextmanager
def _simulated() -> Iterator[Subject]:
    yield Subject(make_config("subject", "any", "simulated"))


@contextmanager
def _llama_cpp() -> Iterator[Subject]:
    yield Subject(make_config("subject", SMOL, "llama_cpp", capacity=4, n_ctx=CONTEXT))


@contextmanager
def _vllm() -> Iterator[Subject]:
    yield Subject(make_config("subject", str(SMOL_FOLDER), "vllm", max_model_len=CONTEXT, threads=1))


@contextmanager
def _openai() -> Iterator[Subject]:
    with llama_server() as server, ContentFilter(server.listening_address) as filtering:
        yield Subject(make_config("subject", "smol", "openai", endpoint=filtering.url, capacity=4), _HANGS, FORBIDDEN)


@contextmanager
def _vllm_server() -> Iterator[Subject]:
    with (
        tempfile.TemporaryDirectory() as folder,
        vllm_server(Path(folder) / "log") as address,
        ContentFilter(address) as filtering,
    ):
        yield Subject(make_config("subject", NAME, "openai", endpoint=filtering.url, capacity=4), refused=FORBIDDEN)


@contextmanager
def _ollama() -> Iterator[Subject]:
    with ollama_server() as address:
        yield Subject(make_config("subject", MODEL, "ollama", endpoint=address, capacity=4), _HANGS)


SUBJECTS: Mapping[str, Callable[[], AbstractContextManager[Subject]]] = {
    "simulated": _simulated,
    "llama_cpp": _llama_cpp,
    "vllm": _vllm,
    "openai": _openai,
    "openai (vLLM)": _vllm_server,
    "ollama": _ollama,
}


@contextmanager
def judged(backend: str) -> Iterator[Callable[[Case], Verdict]]:
    """A judge of cases, whose engine stays open until the end of the block."""
    with SUBJECTS[backend]() as subject, asyncio.Runner() as runner:
        bench = Bench(subject.config, skipped=subject.skipped, refused=subject.refused)
        runner.run(bench.__aenter__())
        try:
            yield lambda case: runner.run(bench.judge(case))
        finally:
            runner.run(bench.__aexit__(None, None, None))


def cells(verdict: Verdict) -> str:
    return _CELLS[verdict.outcome]


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """Case -> backend -> cell of the table in the page."""
    table = page.partition(_BEGIN)[2].partition(_END)[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def _written(page: str, found: Mapping[str, Mapping[str, str]]) -> str:
    head = f"| it ... | {' | '.join(SUBJECTS)} |\n|---|{'---|' * len(SUBJECTS)}\n"
    rows = "".join(f"| {case} | {' | '.join(cells[backend] for backend in SUBJECTS)} |\n" for case, cells in found.items())
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + head + rows + _END + rest.partition(_END)[2]


def main(backends: list[str]) -> None:
    """Runs the suite on the named backends, or on all if none is named, and writes their columns."""
    page = PAGE.read_text()
    known = rows_of(page)
    found = {case.name: dict.fromkeys(SUBJECTS, "?") | known.get(case.name, {}) for case in CASES}
    for backend in backends or SUBJECTS:
        with judged(backend) as judge:
            for case in CASES:
                verdict = judge(case)
                found[case.name][backend] = cells(verdict)
                print(f"{backend:10} {cells(verdict):4} {case.name}  {verdict.words}", flush=True)
    PAGE.write_text(_written(PAGE.read_text(), found))


if __name__ == "__main__":
    main(sys.argv[1:])
