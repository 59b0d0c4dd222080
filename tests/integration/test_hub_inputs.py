"""Data sets of a hub as inputs: `hf:OWNER/NAME/SPLIT`, streamed from a local hub through the real libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainette import Chain, apply, open_run
from chainette.errors import InputError
from chainette.hooks import Hook
from chainette.io.inputs.hub import HubRows, is_hub
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.run.executor import resume
from tests.support.chains import Text
from tests.support.cli import Project
from tests.support.hub import Hub, hub_at

#: More than one block of the hub's files.
ROWS = 600


def same(item: Text) -> Text:
    return item


CHAIN = Chain(name="hub", steps=[apply(same)], batch_size=5)


def lines(word: str, number: int) -> bytes:
    return b"".join(json.dumps({"text": f"{word}{at}", "sku": at}).encode() + b"\n" for at in range(number))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(monkeypatch, tmp_path / "hf") as found:
        found.put("ann/reviews", {"train-00000.jsonl": lines("a", ROWS), "test-00000.jsonl": lines("t", 3)})
        yield found


def texts(directory: Path) -> list[str]:
    rows = open_run(directory).rows("same")
    return [row["text"] for row in sorted(rows, key=lambda row: int(row["row_id"]))]


class _Stop(Hook):
    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.root == 2:
            raise RuntimeError("stopped here")


def test_a_split_is_read_and_the_log_names_its_commit(tmp_path: Path, hub: Hub) -> None:
    result = CHAIN.run("hf:ann/reviews/test", tmp_path / "out")
    assert texts(tmp_path / "out") == ["t0", "t1", "t2"]
    commit = hub.commit("ann/reviews", "main")
    assert result.metadata["input"]["hub"] == f"hf:ann/reviews@{commit}/default/test"
    assert result.metadata["records"] == 3 and result.metadata["balanced"]
    assert b"s3cret" not in b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_only_the_rows_of_the_limit_are_read_and_a_higher_one_reads_on(tmp_path: Path, hub: Hub) -> None:
    CHAIN.run("hf:ann/reviews/train", tmp_path / "out", limit=7)
    assert texts(tmp_path / "out") == [f"a{at}" for at in range(7)]
    assert (tmp_path / "out/inputs/0.jsonl").read_bytes().count(b"\n") < ROWS
    hub.put("ann/reviews", {"train-00000.jsonl": lines("new", ROWS)})
    CHAIN.run("hf:ann/reviews/train", tmp_path / "out", limit=9, resume=True)
    assert texts(tmp_path / "out") == [f"a{at}" for at in range(9)]


def test_a_stopped_run_goes_on_with_the_commit_it_began_with(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(RuntimeError, match="stopped here"):
        CHAIN.run("hf:ann/reviews/train", tmp_path / "out", hooks=(_Stop(),))
    with pytest.raises(InputError, match=r"reads hf:ann/reviews@\w+/default/train, not hf:ann/reviews/test"):
        CHAIN.run("hf:ann/reviews/test", tmp_path / "out", resume=True)
    hub.put("ann/reviews", {"train-00000.jsonl": lines("new", ROWS)})
    result = resume(tmp_path / "out", CHAIN)
    assert texts(tmp_path / "out") == [f"a{at}" for at in range(ROWS)]
    assert result.metadata["balanced"]
    hub.repos.clear()  # a finished run needs no hub
    assert resume(tmp_path / "out", CHAIN).metadata["rows_finished"] == ROWS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:ann/reviews", "it has several splits; write hf:ann/reviews/SPLIT with one of test, train|train, test"),
        ("hf:ann/reviews/trian", "it has no split 'trian'; did you mean 'train'?; write hf:ann/reviews/SPLIT with one of "),
        ("hf:ann/nothing/train", "hf:ann/nothing/train: cannot be read: "),
        ("hf:ann/reviews@v9/train", "hf:ann/reviews@v9/train: cannot be read: "),
        ("hf:ann/reviews/a/b/c", "write hf:OWNER/NAME, hf:OWNER/NAME/SPLIT or hf:OWNER/NAME@REVISION/CONFIG/SPLIT"),
    ],
)
def test_a_wrong_name_is_told_with_what_there_is(tmp_path: Path, hub: Hub, name: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        CHAIN.run(name, tmp_path / "out")
    assert any(form in str(caught.value) for form in words.split("|")) and "s3cret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_columns_are_checked_before_the_first_row(tmp_path: Path, hub: Hub) -> None:
    hub.put("ann/mail", {"train.jsonl": b'{"body": "a"}\n'})
    with pytest.raises(InputError, match="has no column 'bdy'; it has 'body'; did you mean 'body'"):
        CHAIN.run("hf:ann/mail", tmp_path / "out", columns={"text": "bdy"})
    CHAIN.run("hf:ann/mail", tmp_path / "out", columns={"text": "body"})
    assert texts(tmp_path / "out") == ["a"]


def test_names_of_the_hub_are_told_from_urls_and_files() -> None:
    assert [is_hub(name) for name in ("hf:a/b", "hf://datasets/a/b/x.jsonl", "hf.jsonl", Path("hf:a"))] == [
        True,
        False,
        False,
        False,
    ]
    assert HubRows.of("hf:a/b@v1/en/train") == HubRows("a/b", "v1", "en", "train")
    assert HubRows.of("hf:imdb") == HubRows("imdb") and HubRows.of("hf:a/b/en/train") == HubRows("a/b", None, "en", "train")
    assert str(HubRows.of("hf:a/b@v1/en/train")) == "hf:a/b@v1/en/train"


@pytest.mark.long
def test_the_command_line_reads_a_split_here_and_by_workers(tmp_path: Path, hub: Hub) -> None:
    project = Project(tmp_path)
    words = ("run", "chain.py", "hf:ann/reviews/train", "--limit", "12", "--simulate")
    for out, more in (("here", ()), ("fleet", ("--workers", "1"))):
        done = project.chainette(*words, "-o", out, *more)
        assert done.returncode == 0, done.stderr
        assert sorted(project.ids(out, "extract"), key=int) == [str(at) for at in range(12)]
    longer = project.chainette("resume", "here", "--limit", "20")
    assert longer.returncode == 0 and len(project.ids("here", "extract")) == 20, longer.stderr
