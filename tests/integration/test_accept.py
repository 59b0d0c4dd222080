"""`accept`: exactly the first N rows, in the order of the input, that reach the end (docs/accept.md)."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from chainette import Branch, Chain, RunResult, Step, apply, open_run
from chainette.cli.main import app
from chainette.errors import DeclarationError, InputError, RunDirectoryError, RunStopped
from chainette.hooks import Hook
from chainette.io.rundir.accepted_rows import AcceptedRows
from chainette.io.rundir.event_types import RootDone
from chainette.run.executor import resume, retry_rejected
from tests.support.crash import copies
from tests.support.drawn import Drawing, Element, Item, built, nodes_of
from tests.support.meaning import Accepted, Meaning
from tests.support.scripted import scripted
from tests.support.tools import some

Rows = list[dict[str, Any]]


class Number(BaseModel):
    v: int


def small(number: Number) -> Number | None:
    """Rejects every eleventh number, and drops every third."""
    if number.v % 11 == 10:
        raise ValueError("no")
    return number if number.v % 3 else None


def twice(number: Number) -> list[Number]:
    return [number, number]


def up_to_four(number: Number) -> list[Number]:
    return [Number(v=number.v * 10 + index) for index in range(number.v % 5)]


def odd(number: Number) -> Number | None:
    return number if number.v % 2 else None


def chain(batch_size: int = 4, accept: int | None = None) -> Chain:
    """Rows are rejected, dropped, joined with two rows that are made of each, and expanded."""
    pair = Branch("pair", [apply(twice, id="twice")]).join("both")
    steps = [apply(small, id="small"), pair, apply(up_to_four, id="many"), apply(odd, id="odd")]
    return Chain(name="numbers", steps=steps, batch_size=batch_size, accept=accept)


def numbers(count: int = 60) -> list[dict[str, Any]]:
    """Records, each seventh of which is no number."""
    return [{"v": number} if number % 7 else {"v": "seven"} for number in range(count)]


def endless(taken: list[int], first: int = 0) -> Iterator[dict[str, Any]]:
    for number in itertools.count(first):
        taken.append(number)
        yield {"v": number} if number % 7 else {"v": "seven"}


def order(row: dict[str, Any]) -> list[int]:
    return [int(part) for part in row["row_id"].split("~")]


@pytest.fixture(scope="module")
def all_rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What reaches the end of 60 records."""
    rows = chain().run(numbers(), tmp_path_factory.mktemp("all") / "run").rows("flattened")
    return sorted(rows, key=order)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_exactly_the_first_rows_in_the_order_of_the_input_are_accepted(all_rows: Rows, tmp_path: Path, batch_size: int) -> None:
    for wanted in (1, 2, 7, len(all_rows)):
        result = chain(batch_size).run(numbers(), tmp_path / str(wanted), accept=wanted)
        assert list(result.rows("flattened")) == all_rows[:wanted]
        assert result.status == "finished" and result.metadata["balanced"]
        last = all_rows[wanted - 1]["row_id"]
        assert result.metadata["accept"] == {"wanted": wanted, "certain": wanted, "last": last}


def test_the_cut_may_fall_between_the_rows_of_one_record(all_rows: Rows, tmp_path: Path) -> None:
    cut = next(
        place for place, row in enumerate(all_rows[1:], 1) if order(row)[0] == order(all_rows[place - 1])[0]
    )  # the row before it is of the same record
    result = chain().run(numbers(), tmp_path / "run", accept=cut)
    assert list(result.rows("flattened")) == all_rows[:cut]
    of_cut = [row["row_id"] for row in result.rows("many") if order(row)[0] == order(all_rows[cut])[0]]
    assert all_rows[cut]["row_id"] not in of_cut and all_rows[cut - 1]["row_id"] in of_cut


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_readers_leave_the_surplus_out_unless_asked_and_counts_have_it_apart(
    all_rows: Rows, tmp_path: Path, format: Literal["jsonl", "parquet", "csv"]
) -> None:
    out = tmp_path / "run"
    result = chain(64).run(numbers(), out, accept=7, format=format)  # one root has all
    files = sorted((out / "flattened").iterdir())
    assert [path.name for path in files] == [f"0.{format}"]
    assert [row["row_id"] for row in open_run(out).rows("flattened")] == [row["row_id"] for row in all_rows[:7]]
    assert len(result.to_pandas()) == 7 and result.to_arrow("many").num_rows == result.counts["many"]["out"]
    boundary = order(all_rows[6])
    for step in ("small", "twice", "many", "odd"):
        counts, kept = result.counts[step], list(result.rows(step))
        everything = list(result.rows(step, surplus=True))
        assert all(order(row)[:1] <= boundary[:1] for row in kept)
        assert counts["out"] == len(kept) and counts["surplus"]["out"] == len(everything) - len(kept) > 0
        assert counts["balanced"]
    assert result.counts["small"]["rejected"] == sum(row["step_id"] == "small" for row in result.rejected)
    assert result.metadata["rows_rejected"] == len(list(result.rejected)) < len(list(result.rows("rejected", surplus=True)))


def test_the_report_and_an_export_have_the_accepted_rows(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    out = tmp_path / "run"
    result = chain(64).run(numbers(), out, accept=7)
    done = CliRunner().invoke(app, ["report", str(out)])
    assert done.exit_code == 0, done.output
    page = (out / "report.html").read_text()
    assert f"7 of 7 wanted rows accepted; rows after {result.metadata['accept']['last']} are surplus" in page
    assert "surplus" in page.partition("<table")[2]
    assert sum(1 for _ in result.rows("many")) == len(result.to_arrow("many"))
    files = result.export(tmp_path / "exported", "jsonl", "many")
    assert sum(len(file.read_text().splitlines()) for file in files) == result.counts["many"]["out"]


def test_fewer_rows_than_wanted_end_the_run_when_the_input_ends(all_rows: Rows, tmp_path: Path) -> None:
    result = chain().run(numbers(), tmp_path / "run", accept=1000)
    assert list(result.rows("flattened")) == all_rows
    assert result.status == "finished"
    assert result.metadata["accept"] == {"wanted": 1000, "certain": len(all_rows), "last": None}


def test_the_chain_says_how_many_rows_it_accepts_unless_the_run_does(all_rows: Rows, tmp_path: Path) -> None:
    for given, wanted in ((None, 5), (3, 3)):
        result = chain(accept=5).run(numbers(), tmp_path / str(wanted), accept=given)
        assert list(result.rows("flattened")) == all_rows[:wanted]


@pytest.mark.parametrize("wanted", [0, -1, "ten"])
def test_a_chain_that_accepts_less_than_a_row_is_refused(wanted: Any) -> None:
    with pytest.raises(DeclarationError, match=r"chain 'numbers': accept is .*, it must be 1 or more"):
        chain(accept=wanted)


def test_accepted_rows_come_in_order_from_run_iter(all_rows: Rows) -> None:
    found = [row.row_id for rows in chain().run_iter(numbers(), accept=7) for row in rows]
    assert found == [row["row_id"] for row in all_rows[:7]]


# -- how much is computed


def test_a_root_may_begin_if_the_rows_of_those_before_it_may_be_too_few() -> None:
    accepted = AcceptedRows(100)
    assert [accepted.admits(root, 10) for root in (0, 9, 10)] == [True, True, False]  # nothing is known: each gives one
    assert not accepted.admits(5, 10, window=50)
    accepted.take(RootDone(records=10, bad=0, finished=5))
    assert [accepted.admits(root, 10) for root in (1, 19, 20)] == [
        True,
        True,
        False,
    ]  # 95 are missing, half of them get through
    assert AcceptedRows(1).admits(0, 64)  # one may always be open


def test_no_row_behind_the_last_one_begins_once_that_is_certain(tmp_path: Path) -> None:
    asked: list[int] = []

    def seen(number: Number) -> Number:
        asked.append(number.v)
        return number

    def slow_first(number: Number) -> Number:
        time.sleep(0.2 if number.v == 0 else 0)
        return number

    steps = [apply(seen, id="seen"), apply(slow_first, id="slow")]
    result = Chain(name="c", steps=steps, batch_size=2).run(
        [{"v": number} for number in range(1000)], tmp_path / "o", accept=20
    )
    assert [row["row_id"] for row in result.rows("flattened")] == [str(number) for number in range(20)]
    assert len(asked) == 20  # every record gives a row: none is needed in reserve


# -- more rows


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_more_rows_can_be_accepted_later_and_surplus_is_not_computed_again(
    all_rows: Rows, tmp_path: Path, format: Literal["jsonl", "parquet", "csv"]
) -> None:
    out = tmp_path / "run"
    result = chain(8).run(numbers(), out, accept=3, format=format)
    for wanted in (4, 5, 12, 1000):
        result = resume(out, chain(8), accept=wanted)
        found = [row["row_id"] for row in result.rows("flattened")]
        assert found == [row["row_id"] for row in all_rows[:wanted]]
    whole = chain(8).run(numbers(), tmp_path / "whole", format=format)
    for step in ("small", "twice", "many", "odd"):
        assert result.counts[step] == whole.counts[step]
        assert sorted(map(order, result.rows(step))) == sorted(map(order, whole.rows(step)))


def test_fewer_rows_cannot_be_accepted_later_and_a_run_of_all_rows_stays_one(tmp_path: Path) -> None:
    chain().run(numbers(), tmp_path / "ten", accept=10)
    log = (tmp_path / "ten/events.jsonl").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"the run accepts 10 rows, .* can be raised, not lowered to 9"):
        resume(tmp_path / "ten", chain(), accept=9)
    assert resume(tmp_path / "ten", chain(), accept=10).status == "finished"
    assert (tmp_path / "ten/events.jsonl").read_bytes() == log
    chain().run(numbers(), tmp_path / "all")
    with pytest.raises(RunDirectoryError, match="the run takes all rows; it cannot stop after 10 now"):
        resume(tmp_path / "all", chain(), accept=10)


def test_the_number_in_the_log_counts_and_not_the_one_in_the_chain(tmp_path: Path) -> None:
    chain(accept=4).run(numbers(), tmp_path / "run")
    assert resume(tmp_path / "run", chain(accept=9)).metadata["rows_finished"] == 4
    assert resume(tmp_path / "run", chain(), accept=9).metadata["rows_finished"] == 9


def test_a_retry_and_a_step_recomputed_accept_the_first_rows_as_they_are_then(tmp_path: Path) -> None:
    broken = {3}

    def fragile(number: Number) -> Number:
        if number.v in broken:
            raise ValueError("not yet")
        return number

    def made() -> Chain:
        return Chain(name="c", steps=[apply(fragile, id="fragile"), apply(odd, id="odd")], batch_size=2)

    inputs, out = [{"v": number} for number in range(40)], tmp_path / "run"
    result = made().run(inputs, out, accept=4)
    assert [row["row_id"] for row in result.rows("flattened")] == ["1", "5", "7", "9"]
    broken.clear()
    result = retry_rejected(out, made())
    assert [row["row_id"] for row in result.rows("flattened")] == ["1", "3", "5", "7"]
    result = resume(out, made(), from_step="odd")
    assert [row["row_id"] for row in result.rows("flattened")] == ["1", "3", "5", "7"]
    assert result.metadata["balanced"] and result.status == "finished"


# -- endless inputs


def test_a_source_that_never_ends_is_read_only_as_far_as_it_is_needed(all_rows: Rows, tmp_path: Path) -> None:
    taken: list[int] = []
    result = chain().run(endless(taken), tmp_path / "run", accept=20)
    assert list(result.rows("flattened")) == all_rows[:20]
    needed = order(all_rows[19])[0] + 1
    assert needed <= len(taken) <= needed + 20 * 4
    spooled = (tmp_path / "run/inputs/0.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in spooled] == list(itertools.islice(endless([]), len(spooled)))


def test_a_source_that_takes_its_time_holds_up_no_row_that_it_gave(tmp_path: Path) -> None:
    finished: list[str] = []

    def slow() -> Iterator[dict[str, int]]:
        yield {"v": 1}
        while "0" not in finished:  # row 0 goes on while the next one is awaited
            time.sleep(0.01)
        yield {"v": 1}

    def note(number: Number) -> Number:
        finished.append(str(len(finished)))
        return number

    made = Chain(name="c", steps=[apply(note, id="note")], batch_size=1)
    assert made.run(slow(), tmp_path / "run", accept=2).metadata["rows_finished"] == 2


class Stop(Hook):
    """Ends the run after a number of events."""

    def __init__(self, events: int) -> None:
        self.left = events

    def on_event(self, event: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise RunStopped("enough")


def test_a_source_is_given_again_from_its_start_and_must_be_the_same(all_rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunStopped):
        chain().run(endless([]), out, accept=20, hooks=(Stop(15),))
    with pytest.raises(InputError, match="the source gives different rows than when the run began"):
        chain().run(endless([], first=1), out, resume=True)
    with pytest.raises(RunStopped, match=r"of 20 rows accepted, .* Give the source again, from its first row"):
        resume(out, chain())
    again: list[int] = []
    assert list(chain().run(endless(again), out, resume=True).rows("flattened")) == all_rows[:20]
    assert again[0] == 0


def test_a_source_that_ends_too_early_ends_the_run(all_rows: Rows, tmp_path: Path) -> None:
    taken = itertools.islice(endless([]), 60)
    result = chain(7).run(taken, tmp_path / "run", accept=1000)
    assert list(result.rows("flattened")) == all_rows
    assert result.status == "finished" and not list((tmp_path / "run/inputs").glob("*.open"))
    assert resume(tmp_path / "run", chain(7), accept=2000).metadata["accept"]["certain"] == len(all_rows)


def test_what_a_source_raises_ends_the_run(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, int]]:
        yield from ({"v": 1} for _ in range(10))
        raise LookupError("the database is gone")

    with pytest.raises(LookupError, match="the database is gone"):
        chain().run(broken(), tmp_path / "run", accept=100)


# -- engines, crashes


def test_engines_that_share_a_device_go_round_until_enough_rows_are_accepted(tmp_path: Path) -> None:
    def answer(request: Any) -> str:
        return json.dumps({"v": int(request.messages[-1].content)})

    with scripted({"exclusive": True}, a=answer, b=answer) as scripts:
        steps: Sequence[Any] = [
            Step(id="ask", input_model=Number, output_model=Number, engine_name="a", user_prompt="{{ input.v }}"),
            apply(small, id="small"),
            Step(id="again", output_model=Number, engine_name="b", user_prompt="{{ input.v }}"),
        ]
        made = Chain(name="c", steps=steps, batch_size=2)
        result = made.run([{"v": number} for number in range(200)], tmp_path / "run", accept=40)
        loads = {name: script.calls.count("open") for name, script in scripts.items()}
    accepted = [number for number in range(200) if number % 3 and number % 11 != 10][:40]
    assert [row["ask.v"] for row in result.rows("flattened")] == accepted
    assert loads["a"] == loads["b"] > 1 and result.metadata["balanced"]


ROWS = 12


def drawn(seed: int) -> tuple[Callable[[], Chain], list[Element], Meaning]:
    elements, read = Drawing(seed, routes=True).elements(0, 4), Meaning()
    for index in range(ROWS):
        read.read(elements, str(index), index * 13)
    size = (1, 2, 3, 64)[seed % 4]
    return lambda: Chain(name="drawn", steps=built(elements), input_model=Item, batch_size=size), elements, read


def require_accepted(result: RunResult, elements: list[Element], read: Meaning, wanted: int, context: object) -> None:
    """The directory has the first rows of a plain reading of the chain, and readers no row behind the last of them."""
    accepted = Accepted.of(read, elements, wanted)
    assert [row["row_id"] for row in result.rows("flattened")] == accepted.ids, context
    for node in nodes_of(elements):
        expected = sorted((row_id, v) for row_id, v, *_ in read.outputs.get(node.id, []) if accepted.has(node.id, row_id))
        assert sorted((row["row_id"], row["v"]) for row in result.rows(node.id)) == expected, (context, node.id)
        assert node.id not in result.counts or result.counts[node.id]["out"] == len(expected), (context, node.id)
    rejected = sorted((step, row_id) for step, row_id, *_ in read.rejected if accepted.has(step, row_id))
    assert sorted((row["step_id"], row["row_id"]) for row in result.rejected) == rejected, context
    assert result.metadata["balanced"], (context, result.metadata.get("imbalances"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", some(range(80), 20, 8))
def test_random_chains_accept_the_first_rows_of_a_plain_reading(tmp_path: Path, seed: int) -> None:
    made, elements, read = drawn(seed)
    ends = len(read.finished)
    for wanted in sorted({1, max(1, ends // 2), max(1, ends), ends + 3}):
        inputs = [Item(v=index * 13) for index in range(ROWS)]
        require_accepted(made().run(inputs, tmp_path / str(wanted), accept=wanted), elements, read, wanted, (seed, wanted))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", some(range(8), 8, 4))
def test_random_chains_that_crashed_accept_the_same_rows(tmp_path: Path, block: int) -> None:
    for seed in range(block * 4, block * 4 + 4):
        made, elements, read = drawn(seed)
        wanted, more = max(1, len(read.finished) // 3), max(2, len(read.finished) * 2 // 3)
        inputs = [Item(v=index * 13) for index in range(ROWS)]
        with copies(tmp_path / f"run{seed}", tmp_path / f"copies{seed}", every=5) as taken:
            made().run(inputs, tmp_path / f"run{seed}", accept=wanted)
            resume(tmp_path / f"run{seed}", made(), accept=more)
        for copy in random.Random(seed).sample(taken, min(6, len(taken))):
            if (copy / "events.jsonl").stat().st_size:
                require_accepted(resume(copy, made(), accept=more), elements, read, more, (seed, copy.name))
