"""Rows of two runs are matched by key, by what a function made of their records, and by id if keys do not distinguish them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from chainette import Chain, RunResult, apply
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.row_comparison import compare
from chainette.io.rundir.row_story import story_of


class Sizes(BaseModel):
    name: str | None = None
    parts: int
    first: int = 0


class Part(BaseModel):
    number: int


@apply
def split(item: Sizes) -> list[Part]:
    return [Part(number=item.first + number) for number in range(item.parts)]


def run(folder: Path, *records: Sizes) -> RunResult:
    return Chain(name="parts", steps=[split]).run([*records], folder, key="name")


@pytest.mark.parametrize("step", ["split", "flattened"])
def test_rows_that_a_function_made_of_one_record_are_matched_each_with_its_own(tmp_path: Path, step: str) -> None:
    a, b = Sizes(name="a", parts=3), Sizes(name="b", parts=2)
    found = compare(run(tmp_path / "1", a, b), run(tmp_path / "2", b, a), step)
    assert (found.by, found.equal, found.changed, found.only_first, found.only_second) == ("_key", 5, [], [], [])
    found = compare(run(tmp_path / "3", a, b), run(tmp_path / "4", Sizes(name="b", parts=3, first=1)), step)
    assert [row.name for row in found.changed] == ["b~0", "b~1"]
    assert (found.only_first, found.only_second) == (["a~0", "a~1", "a~2"], ["b~2"])


@pytest.mark.parametrize("names", [("a", "a"), ("a", None), (None, None)])
def test_rows_whose_keys_do_not_distinguish_them_are_matched_by_id(tmp_path: Path, names: tuple[str | None, ...]) -> None:
    records = [Sizes(name=name, parts=2, first=10 * number) for number, name in enumerate(names)]
    whole, other = run(tmp_path / "1", *records), run(tmp_path / "2", *records)
    assert (compare(whole, other).by, compare(whole, other).equal) == ("row_id", 4)
    alone = run(tmp_path / "3", Sizes(name="b", parts=2))
    assert compare(alone, whole).by == compare(whole, alone).by == "row_id"


def test_the_story_of_a_record_is_that_of_the_rows_made_of_it(tmp_path: Path) -> None:
    run(tmp_path / "out", Sizes(name="a", parts=2))
    story = story_of(RunDir(tmp_path / "out"), "0")
    assert [(outcome.step, outcome.row_id) for outcome in story.outcomes if outcome.kind == "output"] == [
        ("split", "0~0"),
        ("split", "0~1"),
    ]
