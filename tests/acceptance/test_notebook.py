"""docs/notebook.ipynb, executed by a real kernel: the outputs its reader sees."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import nbclient
import nbformat
import pytest

from tests.support.cli import REPOSITORY
from tests.support.patience import LONG

#: Cells that no reader needs, behind those of the page; each ends with an error, unless its name says otherwise.
ERRORS = {
    "misfit": """
        bad = Step(id="judge", input_model=Review, output_model=Verdict, engine_name="llm", user_prompt="{{ txt }}")
        Chain(name="misfit", steps=[bad]).run(frame)
    """,
    "misspelt": "chain.run(frame, limt=3)",
    "edited_prompt": """
        judge = Step(id="judge", input_model=Review, output_model=Verdict, engine_name="llm", user_prompt="Be fair: {{ text }}")
        edited = Chain(name="reviews", steps=[judge])
        edited.run(frame, "out", resume=True)
    """,
    "edited_whole": "edited.run(frame, 'out', resume=True, select=['judge+'])",
    "taken": "chain.run(frame, 'out')",
    "stopped": """
        import asyncio, os, signal
        from chainette import apply

        @apply
        async def wait(review: Review) -> Review:
            if review.text == "review 7" and not os.path.exists("again"):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(3600)
            return review

        waiting = Chain(name="waiting", steps=[wait])
        waiting.run(frame, "stopped")
    """,
    "resumed_whole": """
        open("again", "w").close()
        waiting.run(frame, "stopped", resume=True)
    """,
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cells of the executed notebook, by id; an error in one of them fails here."""
    notebook = nbformat.reads((REPOSITORY / "docs/notebook.ipynb").read_text(), as_version=4)  # type: ignore[no-untyped-call]
    for name, source in ERRORS.items():
        cell = nbformat.v4.new_code_cell(dedent(source).strip(), id=name)  # type: ignore[no-untyped-call]
        cell.metadata.tags = [] if name.endswith("whole") else ["raises-exception"]
        notebook.cells.append(cell)
    folder: Path = tmp_path_factory.mktemp("notebook")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), before)))
    try:
        nbclient.NotebookClient(notebook, timeout=LONG, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return {cell.id: cell for cell in notebook.cells}


def output(cell: Any, kind: str, of: str = "execute_result") -> str:
    [found] = [output.data[kind] for output in cell.outputs if output.output_type == of]
    return str(found)


def test_a_chain_is_its_drawing_and_an_edited_engine_takes_its_place(cells: dict[str, Any]) -> None:
    for name in ("engine", "again"):
        assert output(cells[name], "text/html").startswith("<pre>") and "judge" in output(cells[name], "text/html")
        assert output(cells[name], "text/plain").startswith("Chain('reviews', 1 element, ")


def test_a_result_shows_counts_and_first_rows(cells: dict[str, Any]) -> None:
    html = output(cells["run"], "text/html")
    assert (
        "finished, 15 rows from 20 records, 5 rejected" in html
        and "<td>truncated</td>" in html
        and "<th>judge.mood</th>" in html
        and "review 0" in html
    )
    assert "judge.reason" in output(cells["frame"], "text/html")
    assert output(cells["models"], "text/plain").endswith("<Status.FINISHED: 'finished'>)")


def test_a_run_shows_its_progress_in_one_output_that_keeps_the_last_state(cells: dict[str, Any]) -> None:
    for kind in ("text/html", "text/plain"):
        assert re.search(r"20 of 20 rows done · \d+:\d\d", output(cells["run"], kind, "display_data"))
    assert len(cells["run"].outputs) == 2
    assert len(cells["silent"].outputs) == 1  # progress=False
    assert all(cell.outputs == [] or len(cell.outputs) == 1 for name, cell in cells.items() if name in ("rows", "stream"))


def test_rows_and_events_are_readable(cells: dict[str, Any]) -> None:
    assert output(cells["rows"], "text/plain").startswith("""[Row('0', chain_input={"text":"review 0"}, judge={"mood":""")
    assert output(cells["stream"], "text/plain") == "'Finished'"


def error_of(cell: Any) -> list[str]:
    """The lines of a cell's error, without colours."""
    [found] = [output for output in cell.outputs if output.output_type == "error"]
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(found.traceback)).splitlines()


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("misfit", "step 'judge', user_prompt: 'txt' is not in scope; did you mean 'text'?"),
        ("misspelt", "run options: no parameter 'limt'; did you mean 'limit'?"),
        ("stopped", "KeyboardInterrupt: "),
        ("edited_prompt", ", for a chain in Python chain.run(inputs, 'out', resume=True, select=['judge+'])"),
        ("taken", ", for a chain in Python chain.run(inputs, 'out', resume=True), or name another directory"),
    ],
)
def test_an_error_is_the_line_of_the_cell_and_the_message(cells: dict[str, Any], name: str, last: str) -> None:
    lines = error_of(cells[name])
    assert lines[-1].endswith(last)
    assert len(lines) < 30 and any(line.startswith(("---->", "--->")) for line in lines)


def test_a_stopped_run_says_how_to_go_on_and_does(cells: dict[str, Any]) -> None:
    [said] = [output.text for output in cells["stopped"].outputs if output.output_type == "stream" and output.name == "stderr"]
    assert "Go on in Python, where its chain is: chain.run(inputs, 'stopped', resume=True)" in said
    assert "finished, 20 rows from 20 records" in output(cells["resumed_whole"], "text/plain")
    assert "finished, " in output(cells["edited_whole"], "text/plain")
