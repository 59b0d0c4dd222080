"""Runs without a directory: `run_iter`, `stream` and `execute` give the rows of a run with one, each of them once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from chainette import Branch, Chain, Route, Step, apply
from chainette.core.streaming import Finished, StreamEvent
from chainette.errors import RowsRejected
from chainette.hooks import Hook
from chainette.records import Rejection
from tests.simulation.engines import answer_to
from tests.support.chains import finished
from tests.support.drawn import Drawing, Element, Item, Node, built
from tests.support.scripted import scripted
from tests.support.tools import many

#: Whether the two engines of a chain share a device, so that a run goes in phases.
SHARED = [False, True]

#: Records of an input; one of them cannot be read.
RECORDS: list[Any] = [{"v": index * 7} if index != 4 else {"v": "four"} for index in range(10)]


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


class Work(NamedTuple):
    """The rows of a run, its rows and rejections as a hook is told of them, its requests, and the calls of its functions."""

    rows: list[str]
    ended: list[str]
    asked: list[tuple[str, str]]
    called: list[tuple[str, int]]


class Ends(Hook):
    """Keeps the ends of rows."""

    streams = True

    def __init__(self) -> None:
        self.found: list[StreamEvent] = []

    def on_stream(self, event: StreamEvent) -> None:
        self.found += [event] if isinstance(event, Finished | Rejection) else []


def words(things: Sequence[Any]) -> list[str]:
    return sorted(map(str, things))


def drawn(seed: int) -> list[Element]:
    return Drawing(seed, asks=True, routes=True, votes=True).elements(0, 4)


def worked(seed: int, directory: Path | None, *, shared: bool, accept: int | None = None) -> Work:
    hook, called = Ends(), list[tuple[str, int]]()

    def call(node: Node, item: Item) -> None:
        called.append((node.id, item.v))

    with scripted({"exclusive": shared}, a=answer_to, b=answer_to) as scripts:
        chain = Chain(name="drawn", steps=built(drawn(seed), ["a", "b"], call), input_model=Item, batch_size=3)
        rows = finished(chain.run_iter(RECORDS, directory, accept=accept, hooks=(hook,)))
    asked = sorted((name, request.label) for name, script in scripts.items() for request in script.requests)
    return Work(words(rows), words(hook.found), asked, sorted(called))


def streamed(seed: int, *, shared: bool) -> list[list[str]]:
    with scripted({"exclusive": shared}, a=answer_to, b=answer_to):
        chain = Chain(name="drawn", steps=built(drawn(seed), ["a", "b"]), input_model=Item)
        found = [[*chain.stream(record)] for record in RECORDS[:3]]
    return [words([event for event in events if isinstance(event, Finished | Rejection)]) for events in found]


def executed(seed: int, *, shared: bool) -> list[str]:
    """The outputs of a branch with the elements of a chain, or else its rejections."""
    with scripted({"exclusive": shared}, a=answer_to, b=answer_to):
        try:
            outputs, histories = Branch("all", built(drawn(seed), ["a", "b"])).execute(
                [Item(v=v) for v in (1, 2, 8)], batch_size=1
            )
        except RowsRejected as refused:
            return words(refused.rejections)
    return words([*outputs, *histories])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "seeds", [[39], pytest.param([*range(many(20, 60, 300))], marks=pytest.mark.long)], ids=["one", "many"]
)
def test_the_rows_are_those_of_a_run_with_a_directory_for_the_same_work(tmp_path: Path, seeds: list[int]) -> None:
    for seed in seeds:
        known = worked(seed, tmp_path / f"{seed}", shared=False)
        assert worked(seed, tmp_path / f"{seed} in phases", shared=True) == known, seed
        for shared in SHARED:
            assert worked(seed, None, shared=shared) == known, (seed, shared)
            accepted = [worked(seed, place, shared=shared, accept=5).rows for place in (tmp_path / f"{seed} {shared}", None)]
            assert accepted[0] == accepted[1], (seed, shared)
        assert streamed(seed, shared=True) == streamed(seed, shared=False), seed
        assert executed(seed, shared=True) == executed(seed, shared=False), seed


def ways() -> Chain:
    """A function, and then two engines on one device for the rows that go on."""
    rest = [Step(id="first", output_model=Word, engine_name="a"), Step(id="second", output_model=Word, engine_name="b")]
    route = Route("more", when="{{ clean.word == 'go' }}", then=rest).join("rest")
    return Chain(name="ways", steps=[apply(clean), route], batch_size=3)


cleaned: list[str] = []


def clean(item: Text) -> Word:
    cleaned.append(item.text)
    return Word(word=item.text)


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    cleaned.clear()
    with scripted({"exclusive": True}, a=lambda _request: Word(word="a"), b=lambda _request: Word(word="b")):
        yield


def test_rows_that_end_in_the_first_phase_are_given_once_by_run_iter() -> None:
    texts = [Text(text="skip")] * 3 + [Text(text="go")] * 3
    assert sorted(row.row_id for row in finished(ways().run_iter(texts))) == ["0", "1", "2", "3", "4", "5"]
    assert len(cleaned) == 6


def test_a_row_that_ends_in_the_first_phase_is_told_once_by_stream() -> None:
    assert [type(event).__name__ for event in ways().stream(Text(text="skip"))] == ["Passed", "Passed", "Joined", "Finished"]


def test_rows_that_end_in_the_first_phase_are_given_once_by_execute() -> None:
    outputs, _ = Branch("all", ways().steps).execute([Text(text="skip"), Text(text="go")], batch_size=1)
    assert len(outputs) == len(cleaned) == 2


def test_bad_lines_are_told_once_although_phases_read_the_input_again() -> None:
    hook = Ends()
    assert finished(ways().run_iter([{"text": 1}, {"text": 2}], hooks=(hook,))) == []
    assert [event.row_id for event in hook.found if isinstance(event, Rejection)] == ["0", "1"]
