"""docs/notebook.ipynb, executed by a real kernel: the outputs that its reader sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.support.cli import REPOSITORY
from tests.support.patience import LONG


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cells of the executed notebook, by id; an error in one of them fails here."""
    notebook = nbformat.reads((REPOSITORY / "docs/notebook.ipynb").read_text(), as_version=4)  # type: ignore[no-untyped-call]
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
        assert "20 of 20 rows done · 0:0" in output(cells["run"], kind, "display_data")
    assert len(cells["run"].outputs) == 2
    assert len(cells["silent"].outputs) == 1  # progress=False
    assert all(cell.outputs == [] or len(cell.outputs) == 1 for name, cell in cells.items() if name in ("rows", "stream"))


def test_rows_and_events_are_readable(cells: dict[str, Any]) -> None:
    assert output(cells["rows"], "text/plain").startswith("""[Row('0', chain_input={"text":"review 0"}, judge={"mood":""")
    assert output(cells["stream"], "text/plain") == "'Finished'"
