"""Runs as data sets of a hub: `chainette export DIR --to hf --push OWNER/NAME`, onto a local hub through the real libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from chainette import Chain, RunResult, apply
from chainette.cli.main import app
from chainette.errors import RunError
from tests.support.chains import Text
from tests.support.cli import Project
from tests.support.hub import Hub, hub_at

#: huggingface_hub hands files to httpx in a way that httpx no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def same(item: Text) -> Text:
    return item


CHAIN = Chain(name="pushed", steps=[apply(same)], batch_size=5)
DATA = [f"data/train-0000{at}-of-00003.parquet" for at in range(3)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(monkeypatch, tmp_path / "hf") as found:
        yield found


def run(folder: Path, number: int = 9) -> RunResult:
    return CHAIN.run([Text(text=f"t{at}") for at in range(number)], folder)


def read(repo: str) -> list[str]:
    """The texts, as anybody reads them from the hub."""
    found = datasets.load_dataset(repo, split="train", streaming=True)
    return [row["same.text"] for row in found]


def test_a_run_is_a_data_set_with_its_card(tmp_path: Path, hub: Hub) -> None:
    result = run(tmp_path / "run")
    address = result.push("ann/rows", ordered=True, rows_per_file=3, private=True)
    assert address == f"{hub.url}/datasets/ann/rows" and hub.private == {"ann/rows"}
    assert sorted(hub.files("ann/rows")) == [".gitattributes", "README.md", *DATA]
    assert result.metadata["run_id"] in hub.files("ann/rows")["README.md"].decode()
    assert read("ann/rows") == [f"t{at}" for at in range(9)]


def test_a_push_that_broke_off_sends_only_the_rest_and_is_seen_whole_or_not_at_all(tmp_path: Path, hub: Hub) -> None:
    result = run(tmp_path / "run")
    hub.takes = 1
    with pytest.raises(RunError, match=r"hf:ann/rows: cannot be written: .*; log in with"):
        result.push("ann/rows", rows_per_file=3)
    assert sorted(hub.files("ann/rows")) == [".gitattributes"]
    assert len(hub.blobs) == 1
    hub.takes, hub.asked = None, []
    result.push("ann/rows", rows_per_file=3)
    assert hub.took("PUT", "/blob/") == 2
    assert sorted(read("ann/rows")) == [f"t{at}" for at in range(9)]


def test_rows_of_the_same_run_are_replaced_and_other_data_is_left_alone(tmp_path: Path, hub: Hub) -> None:
    result = run(tmp_path / "run")
    result.push("ann/rows", rows_per_file=3)
    result.push("ann/rows", rows_per_file=100)
    assert sorted(hub.files("ann/rows")) == [".gitattributes", "README.md", "data/train-00000-of-00001.parquet"]
    before = hub.files("ann/rows")
    with pytest.raises(RunError, match=r"hf:ann/rows holds data that is not from run \S+; name a new data set"):
        run(tmp_path / "other").push("ann/rows")
    assert hub.files("ann/rows") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name the place of the rows: -o FOLDER, or --to hf --push OWNER/NAME"),
        (("--push", "ann/rows"), "--to hf --push OWNER/NAME [--private]"),
        (("-o", "x", "--private"), "--to hf --push OWNER/NAME [--private]"),
    ],
)
def test_the_command_says_what_goes_together(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    run(tmp_path / "out")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "out"), *words], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and said in done.output


@pytest.mark.long
def test_the_command_prints_the_address(tmp_path: Path, hub: Hub) -> None:
    run(tmp_path / "out")
    done = Project(tmp_path).chainette("export", "out", "--to", "hf", "--push", "ann/rows", "--sorted")
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/datasets/ann/rows\n"), done.stderr
    assert "s3cret" not in done.stderr and read("ann/rows") == [f"t{at}" for at in range(9)]
