"""How rows flow: branches, joins, expansion, drops, and their rows in `flattened/` (docs/semantics.md)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import ApplyNode, Branch, Chain, RunResult, Step, apply
from chainette.core.apply import Cardinality
from chainette.core.branch import Element
from chainette.core.run_settings import Format
from chainette.io.rundir.run_state import Status
from chainette.records import row_order
from tests.support.chains import finished
from tests.support.scripted import scripted, user_text


class N(BaseModel):
    n: int


class Listed(BaseModel):
    values: list[int]


class Said(BaseModel):
    text: str


def double(item: N) -> N:
    return N(n=2 * item.n)


def same(item: N) -> N:
    return item


def up_to(item: N) -> list[N]:
    """As many rows as the number says."""
    return [N(n=index) for index in range(item.n)]


def odd_only(item: N) -> N | None:
    return item if item.n % 2 else None


def none_at_all(item: N) -> list[N]:
    return []


def refuse_two(item: N) -> N:
    if item.n == 2:
        raise ValueError("two is refused")
    return item


def node(fn: Any, id: str) -> ApplyNode[Any, Any]:
    made: ApplyNode[Any, Any] = apply(fn, id=id)
    return made


def run(path: Path, steps: Sequence[Element], numbers: Sequence[int], **options: Any) -> RunResult:
    """A finished run in which every row is accounted for, and which `run_iter` gives the same rows of."""
    chain = Chain(name="flow", steps=steps, batch_size=2, input_model=N)
    inputs = [N(n=number) for number in numbers]
    result = chain.run(inputs, path / "run", **options)
    assert result.status is Status.FINISHED
    assert result.metadata["balanced"], result.counts
    assert {row.row_id for row in finished(chain.run_iter(inputs))} == set(ids(result, "flattened"))
    return result


def ids(result: RunResult, step: str) -> list[str]:
    """Sorted: roots may end in any order."""
    return sorted((row["row_id"] for row in result.rows(step)), key=row_order)


def values(result: RunResult, step: str) -> list[int]:
    return sorted(row["n"] for row in result.rows(step))


def column(result: RunResult, name: str) -> dict[str, Any]:
    """row id -> value of a flattened column."""
    return {row["row_id"]: row[name] for row in result.rows("flattened")}


def columns(result: RunResult) -> list[str]:
    return list(next(result.rows("flattened")))


def test_the_main_flow_goes_on_from_the_row_before_the_branches(tmp_path: Path) -> None:
    result = run(tmp_path, [node(double, "a"), Branch("side", [node(double, "b")]), node(same, "c")], [1, 2, 3])
    assert column(result, "c.n") == {"0": 2, "1": 4, "2": 6}
    assert values(result, "b") == [4, 8, 12]


def test_a_join_adds_the_final_output_of_its_branch_under_the_alias(tmp_path: Path) -> None:
    def total(item: N, history: Mapping[str, Any]) -> N:
        return N(n=item.n + history["doubled"].n)

    result = run(tmp_path, [Branch("b", [node(same, "s"), node(double, "d")]).join("doubled"), node(total, "total")], [1, 2, 3])
    assert column(result, "total.n") == {"0": 3, "1": 6, "2": 9}
    assert column(result, "doubled.n") == {"0": 2, "1": 4, "2": 6}


def test_a_branch_does_not_see_its_siblings(tmp_path: Path) -> None:
    def names(item: N, history: Mapping[str, Any]) -> Listed:
        return Listed(values=sorted(len(name) for name in history))

    first = Branch("first", [node(double, "x")]).join("xx")
    second = Branch("second", [node(same, "yyy"), node(names, "names")]).join("seen")
    result = run(tmp_path, [[first, second], node(names, "after")], [5])
    assert column(result, "seen.values") == {"0": [len("yyy"), len("chain_input")]}
    assert column(result, "after.values") == {"0": [len("xx"), len("seen"), len("chain_input")]}


def test_a_branch_inside_a_branch_leaves_that_branch_as_it_was(tmp_path: Path) -> None:
    inner = Branch("inner", [node(double, "in_inner")])
    outer = Branch("outer", [node(same, "before"), inner, node(same, "after")]).join("outcome")
    result = run(tmp_path, [outer], [3, 4])
    assert column(result, "outcome.n") == {"0": 3, "1": 4}
    assert values(result, "in_inner") == [6, 8]


def test_a_join_inside_a_branch_is_seen_in_that_branch_only(tmp_path: Path) -> None:
    def add(item: N, history: Mapping[str, Any]) -> N:
        return N(n=item.n + history["inner_value"].n)

    def seen(item: N, history: Mapping[str, Any]) -> Said:
        return Said(text=" ".join(sorted(history)))

    inner = Branch("inner", [node(double, "in_inner")]).join("inner_value")
    outer = Branch("outer", [node(same, "before"), inner, node(add, "sum")]).join("outcome")
    result = run(tmp_path, [outer, node(seen, "names")], [3, 4])
    assert column(result, "outcome.n") == {"0": 9, "1": 12}
    assert column(result, "names.text") == dict.fromkeys("01", "chain_input outcome")


def test_forks_may_be_nested_three_deep_and_expand_at_each_level(tmp_path: Path) -> None:
    def tally(item: N, history: Mapping[str, Any]) -> N:
        return N(n=len(history["third"]))

    third = Branch("b3", [node(up_to, "e3")]).join("third")
    second = Branch("b2", [node(up_to, "e2"), third, node(tally, "t2")]).join("second")
    first = Branch("b1", [node(up_to, "e1"), second, node(same, "t1")]).join("first")
    result = run(tmp_path, [first], [0, 4])
    assert [item["n"] for item in column(result, "first")["1"]] == [0, 1, 2, 3]
    assert column(result, "first")["0"] == []
    assert ids(result, "t2") == ["1~1~0", "1~2~0", "1~2~1", "1~3~0", "1~3~1", "1~3~2"]
    assert {row["row_id"]: row["n"] for row in result.rows("t2")}["1~3~2"] == 2


def test_a_branch_that_expands_joins_as_a_list_in_id_order_also_of_one_and_of_none(tmp_path: Path) -> None:
    result = run(tmp_path, [Branch("b", [node(up_to, "parts")]).join("all")], [12, 1, 0])
    assert [item["n"] for item in column(result, "all")["0"]] == list(range(12))
    assert column(result, "all")["1"] == [{"n": 0}]
    assert column(result, "all")["2"] == []


def test_an_expanding_branch_whose_rows_are_all_dropped_joins_as_an_empty_list(tmp_path: Path) -> None:
    branch = Branch("b", [node(up_to, "parts"), node(none_at_all, "gone")]).join("all")
    result = run(tmp_path, [branch, node(same, "after")], [3, 1])
    assert column(result, "all") == {"0": [], "1": []}
    assert ids(result, "after") == ["0", "1"]


def test_rows_become_numbered_children_even_where_there_is_one(tmp_path: Path) -> None:
    result = run(tmp_path, [node(up_to, "parts"), node(up_to, "again")], [1, 0, 3])
    assert ids(result, "parts") == ["0~0", "2~0", "2~1", "2~2"]
    assert ids(result, "again") == ["2~1~0", "2~2~0", "2~2~1"]


def test_descendants_repeat_their_parents_columns(tmp_path: Path) -> None:
    result = run(tmp_path, [node(double, "d"), node(up_to, "parts")], [1, 2])
    assert column(result, "d.n") == {"0~0": 2, "0~1": 2, "1~0": 4, "1~1": 4, "1~2": 4, "1~3": 4}
    assert column(result, "chain_input.n")["1~3"] == 2


def test_an_optional_apply_drops_rows_and_keeps_ids(tmp_path: Path) -> None:
    result = run(tmp_path, [node(odd_only, "odd")], [1, 2, 3, 4])
    assert ids(result, "flattened") == ["0", "2"]
    assert result.counts["odd"]["dropped"] == 2
    assert ids(result, "rejected") == []


def test_a_chain_may_drop_every_row(tmp_path: Path) -> None:
    result = run(tmp_path, [node(none_at_all, "gone"), node(same, "after")], [1, 2, 3])
    assert ids(result, "flattened") == ids(result, "after") == []
    assert result.counts["gone"]["dropped"] == 3


def test_a_row_that_an_unjoined_branch_rejects_stays_on_the_main_flow(tmp_path: Path) -> None:
    result = run(tmp_path, [Branch("side", [node(refuse_two, "r")]), node(same, "after")], [1, 2, 3])
    assert ids(result, "after") == ["0", "1", "2"]
    assert [(row["row_id"], row["step_id"]) for row in result.rows("rejected")] == [("1", "r")]


def test_a_row_that_an_unjoined_branch_drops_stays_on_the_main_flow(tmp_path: Path) -> None:
    result = run(tmp_path, [Branch("side", [node(odd_only, "odd")]), node(same, "after")], [1, 2])
    assert ids(result, "after") == ["0", "1"]
    assert ids(result, "odd") == ["0"]


def test_a_row_that_a_joined_branch_rejects_leaves_the_main_flow_with_one_record(tmp_path: Path) -> None:
    result = run(tmp_path, [Branch("b", [node(refuse_two, "r")]).join("got"), node(same, "after")], [1, 2, 3])
    assert ids(result, "after") == ids(result, "flattened") == ["0", "2"]
    assert [(row["row_id"], row["step_id"]) for row in result.rows("rejected")] == [("1", "r")]
    assert result.counts["+b"]["stopped"] == 1


def test_a_joined_branch_that_gives_one_value_and_drops_it_stops_the_row_without_a_rejection(tmp_path: Path) -> None:
    result = run(tmp_path, [Branch("b", [node(odd_only, "odd")]).join("got"), node(same, "after")], [1, 2, 3])
    assert ids(result, "after") == ["0", "2"]
    assert ids(result, "rejected") == []
    assert (result.counts["odd"]["dropped"], result.counts["+b"]["stopped"]) == (1, 1)


def test_one_rejected_child_of_an_expanded_joined_branch_stops_its_parent(tmp_path: Path) -> None:
    branch = Branch("b", [node(up_to, "parts"), node(refuse_two, "r")]).join("all")
    result = run(tmp_path, [branch, node(same, "after")], [2, 3, 5])
    assert ids(result, "after") == ["0"]
    assert ids(result, "rejected") == ["1~2", "2~2"]
    assert ids(result, "r") == ["0~0", "0~1", "1~0", "1~1", "2~0", "2~1", "2~3", "2~4"]
    assert result.counts["+b"]["stopped"] == 2


def test_a_row_that_two_branches_reject_is_recorded_at_both_and_stops_once(tmp_path: Path) -> None:
    branches = [Branch(name, [node(refuse_two, f"at_{name}")]).join(f"got_{name}") for name in ("x", "y")]
    result = run(tmp_path, [branches, node(same, "after")], [1, 2])
    assert sorted(row["step_id"] for row in result.rows("rejected")) == ["at_x", "at_y"]
    assert result.counts["x+y"] | {"stopped": 1} == result.counts["x+y"]
    assert ids(result, "after") == ["0"]


def test_a_rejection_in_a_nested_joined_branch_reaches_every_join_above(tmp_path: Path) -> None:
    inner = Branch("inner", [node(refuse_two, "r")]).join("got")
    outer = Branch("outer", [node(up_to, "parts"), inner]).join("all")
    result = run(tmp_path, [outer, node(same, "after")], [2, 3, 1])
    assert ids(result, "after") == ["0", "2"]
    assert ids(result, "rejected") == ["1~2"]
    assert (result.counts["+inner"]["stopped"], result.counts["+outer"]["stopped"]) == (1, 1)


def test_a_rejection_in_a_side_branch_of_a_joined_branch_stops_nothing(tmp_path: Path) -> None:
    outer = Branch("outer", [node(same, "s"), [Branch("side", [node(refuse_two, "r")])]]).join("got")
    result = run(tmp_path, [outer, node(same, "after")], [2, 3])
    assert ids(result, "after") == ["0", "1"]
    assert ids(result, "rejected") == ["0"]


def test_branches_may_be_the_first_stage(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        [[Branch("x", [node(double, "d")]).join("twice"), Branch("y", [node(same, "s")])], node(same, "after")],
        [1, 2],
    )
    assert column(result, "twice.n") == {"0": 2, "1": 4}
    assert ids(result, "s") == ids(result, "after") == ["0", "1"]


def test_a_chain_may_be_nothing_but_branches(tmp_path: Path) -> None:
    result = run(tmp_path, [[Branch("x", [node(double, "d")]), Branch("y", [node(up_to, "u")])]], [1, 2])
    assert columns(result) == ["row_id", "chain_input.n", "x.n", "y"]
    assert column(result, "x.n") == {"0": 2, "1": 4}
    assert column(result, "y") == {"0": [{"n": 0}], "1": [{"n": 0}, {"n": 1}]}


def test_branches_that_end_a_chain_are_columns_null_where_rejected_or_dropped(tmp_path: Path) -> None:
    ends = [
        Branch("x", [node(refuse_two, "r")]),
        Branch("y", [node(odd_only, "odd")]),
        Branch("z", [node(up_to, "u"), node(odd_only, "o")]),
    ]
    result = run(tmp_path, [node(same, "s"), ends], [1, 2, 4])
    assert columns(result) == ["row_id", "chain_input.n", "s.n", "x.n", "y.n", "z"]
    assert column(result, "x.n") == {"0": 1, "1": None, "2": 4}
    assert column(result, "y.n") == {"0": 1, "1": None, "2": None}
    assert column(result, "z") == {"0": [], "1": [{"n": 1}], "2": [{"n": 1}, {"n": 3}]}


def test_unjoined_branches_in_the_middle_are_not_columns(tmp_path: Path) -> None:
    result = run(tmp_path, [Branch("side", [node(same, "s")]), node(same, "after")], [1])
    assert columns(result) == ["row_id", "chain_input.n", "after.n"]


def test_joined_and_unjoined_branches_may_end_a_chain_together(tmp_path: Path) -> None:
    ends = [Branch("x", [node(refuse_two, "r")]).join("kept"), Branch("y", [node(double, "d")])]
    result = run(tmp_path, [ends], [1, 2])
    assert list(result.rows("flattened")) == [{"row_id": "0", "chain_input.n": 1, "kept.n": 1, "y.n": 2}]
    assert values(result, "d") == [2, 4]


def test_the_main_flow_may_expand_before_it_forks(tmp_path: Path) -> None:
    def total(item: N, history: Mapping[str, Any]) -> N:
        return N(n=sum(part.n for part in history["all"]))

    result = run(tmp_path, [node(up_to, "rows"), Branch("b", [node(up_to, "parts")]).join("all"), node(total, "total")], [4])
    assert column(result, "total.n") == {"0~0": 0, "0~1": 0, "0~2": 1, "0~3": 3}


def test_flattened_is_in_id_order_within_a_root_and_by_number(tmp_path: Path) -> None:
    chain = Chain(name="order", steps=[node(up_to, "rows")], batch_size=64, input_model=N)
    result = chain.run([N(n=12)] + [N(n=1)] * 11, tmp_path / "run")
    found = [row["row_id"] for row in result.rows("flattened")]
    assert found == [f"0~{index}" for index in range(12)] + [f"{index}~0" for index in range(1, 12)]


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_an_empty_input_finishes_with_no_rows(tmp_path: Path, format: Format) -> None:
    result = run(tmp_path, [node(same, "s"), Branch("b", [node(same, "t")]).join("u")], [], format=format)
    assert ids(result, "s") == ids(result, "flattened") == ids(result, "rejected") == []
    assert result.metadata["records"] == 0


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_an_input_of_bad_lines_alone_finishes_with_all_of_them_rejected(tmp_path: Path, format: Format) -> None:
    chain = Chain(name="bad", steps=[node(same, "s")], batch_size=2, input_model=N)
    result = chain.run([{"n": "x"}] * 5, tmp_path / "run", format=format)
    assert result.status is Status.FINISHED and result.metadata["balanced"]
    assert ids(result, "rejected") == ["0", "1", "2", "3", "4"]
    assert ids(result, "flattened") == []
    assert result.counts["chain_input"]["rejected"] == 5


def test_steps_and_functions_may_follow_each_other_in_any_order(tmp_path: Path) -> None:
    with scripted(llm=lambda request: Said(text=user_text(request).upper())) as scripts:
        say = Step(
            id="say", output_model=Said, engine_name="llm", user_prompt="row {{ row_id }} of {{ chain_input.n }}: {{ n }}"
        )
        branch = Branch("b", [node(up_to, "parts"), say]).join("told")
        result = Chain(name="mix", steps=[branch], batch_size=2, input_model=N).run([N(n=2), N(n=1)], tmp_path / "run")
        assert column(result, "told")["0"] == [{"text": "ROW 0~0 OF 2: 0"}, {"text": "ROW 0~1 OF 2: 1"}]
        assert len(scripts["llm"].requests) == 3


@pytest.mark.parametrize("limit", [None, 2])
def test_a_function_that_yields_expands_as_a_list_does(
    tmp_path: Path, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listed(item: N) -> list[N]:  # type: ignore[misc]
        yield N(n=item.n + 1)
        yield N(n=item.n + 2)

    async def streamed(item: N) -> AsyncIterator[N]:
        for number in count(1) if limit else (1, 2):
            yield N(n=item.n + number)

    async def generated(item: N, history: Any) -> AsyncGenerator[N, None]:
        yield N(n=history["chain_input"].n + 1)
        yield N(n=item.n + 2)

    def plain(item: N) -> Iterator[N]:
        yield from (N(n=item.n + number) for number in (1, 2))

    def generator(item: N) -> Generator[N, None, None]:
        yield N(n=item.n + 1)
        yield N(n=item.n + 2)

    def iterable(item: N) -> Iterable[N]:
        return (N(n=item.n + number) for number in (1, 2))

    def wrapped(item: N) -> AsyncIterator[N]:
        return streamed(item)

    if limit:
        monkeypatch.setattr("chainette.run.functions.MAX_FAN_OUT", limit)
    for index, fn in enumerate((listed, streamed, generated, plain, generator, iterable, wrapped)):
        made = node(fn, "made")
        assert (made.cardinality, made.output_model, made.annotated) == (Cardinality.MANY, N, True)
        rows = column(run(tmp_path / str(index), [made], [0]), "made.n")
        endless = limit is not None and fn in (streamed, wrapped)
        assert rows == ({} if endless else {"0~0": 1, "0~1": 2})


def test_a_function_that_yields_may_yield_nothing_or_raise(tmp_path: Path) -> None:
    async def some(item: N) -> AsyncIterator[N]:
        if item.n == 1:
            return
        yield item
        if item.n == 2:
            raise ValueError("no more")

    result = run(tmp_path, [node(some, "some")], [0, 1, 2])
    assert ids(result, "flattened") == ["0~0"]
    [rejection] = result.rows("rejected")
    assert rejection["row_id"] == "2" and "no more" in rejection["message"]


def test_a_plain_function_may_return_a_coroutine(tmp_path: Path) -> None:
    async def add(item: N) -> N:
        return N(n=item.n + 1)

    def around(item: N) -> Awaitable[N]:
        return add(item)

    assert column(run(tmp_path, [node(around, "around")], [0, 1]), "around.n") == {"0": 1, "1": 2}


def test_an_apply_may_be_a_coroutine_a_method_or_an_object(tmp_path: Path) -> None:
    class Adder:
        def __init__(self, by: int) -> None:
            self.by = by

        def add(self, item: N) -> N:
            return N(n=item.n + self.by)

        async def __call__(self, item: N) -> N:
            return N(n=item.n + self.by)

    async def add_one(item: N) -> N:
        return N(n=item.n + 1)

    steps = [node(add_one, "one"), node(Adder(10).add, "ten"), node(Adder(100), "hundred")]
    assert column(run(tmp_path, steps, [0]), "hundred.n") == {"0": 111}
