"""Loops: the rounds of a row, its view of the round before, and its end (docs/loops.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chainette import Branch, Chain, Loop, Route, apply
from chainette.errors import DeclarationError
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.row_story import story_of
from tests.support.chains import finished
from tests.support.revising import Draft, N, Verdict, draft, ends, judge, refusal, revise, rounds, run, seen


def test_a_row_goes_through_rounds_until_the_condition_holds_and_sees_the_round_before(tmp_path: Path) -> None:
    result = run(tmp_path, [revise(on_exhausted="keep").join("final"), apply(seen)])
    assert rounds(result, "draft", "v") == {"0": [1, 2, 3, 4], "1": [2, 4, 6], "2": [3, 6], "3": [7]}
    assert rounds(result, "revise", "_way") == {
        "0": ["again", "again", "again", "kept"],
        "1": ["again", "again", "ended"],
        "2": ["again", "ended"],
        "3": ["ended"],
    }
    assert ends(result) == {"0": (4, 4), "1": (3, 6), "2": (2, 6), "3": (1, 7)}
    assert {row["row_id"]: row["v"] for row in result.rows("seen")} == {"0": 400, "1": 600, "2": 600, "3": 700}


def test_a_row_that_no_round_satisfies_is_rejected_at_the_loop(tmp_path: Path) -> None:
    result = run(tmp_path, [revise().join("final"), apply(seen)])
    [rejected] = result.rows("rejected")
    assert (rejected["row_id"], rejected["step_id"], rejected["reason"], rejected["_round"]) == ("0", "revise", "exhausted", 4)
    assert rejected["message"] == "loop 'revise', until did not hold after 4 rounds"
    assert sorted(ends(result)) == ["1", "2", "3"]


def test_the_best_round_is_taken_only_if_none_satisfied_the_condition(tmp_path: Path) -> None:
    loop = revise(best="{{ judge.score }}", max_rounds=3, until="{{ judge.ok and draft.v > 8 }}", result="draft")
    result = run(tmp_path, [loop.join("final")], (1, 2, 3))
    assert ends(result) == {"0": (3, 3), "1": (2, 4), "2": (3, 9)}


def test_of_equal_rounds_the_earliest_is_best_and_none_and_nan_come_last(tmp_path: Path) -> None:
    def score(item: Verdict, history: Mapping[str, Any]) -> float | None:
        return {1: None, 2: float("nan"), 3: 5.0, 4: 5.0}[history["round"]]

    result = run(tmp_path, [revise(best=score, until=lambda item: False, result="draft").join("final")], (1,))
    assert ends(result) == {"0": (3, 3)}
    assert rounds(result, "revise", "_taken") == {"0": [1, 1, 3, 3]}


def test_an_infinite_or_huge_number_is_best_and_rejects_no_row(tmp_path: Path) -> None:
    def score(item: Verdict, history: Mapping[str, Any]) -> float:
        return {1: -(10**400), 2: float("-inf"), 3: 10**400, 4: float("inf")}[history["round"]]

    result = run(tmp_path, [revise(best=score, until=lambda item: False, result="draft").join("final")], (1,))
    assert ends(result) == {"0": (3, 3)}
    assert rounds(result, "revise", "_taken") == {"0": [1, 1, 3, 3]}


def test_the_alias_holds_the_last_node_that_the_conditions_do_not_read_or_the_named_one(tmp_path: Path) -> None:
    result = run(tmp_path, [revise(result="judge", on_exhausted="keep").join("final")], (7,))
    assert [row["final.ok"] for row in result.rows("flattened")] == [True]
    assert "result='drift' is not a node of it; did you mean 'draft'?" in refusal(revise(result="drift").join("final"))


def test_a_rejection_in_any_round_rejects_the_row(tmp_path: Path) -> None:
    def strict(item: Draft, history: Mapping[str, Any]) -> Verdict:
        if item.v == 4 and history["round"] == 2:
            raise ValueError("not four")
        return judge(item)

    result = run(tmp_path, [revise(steps=[apply(draft), apply(strict, id="judge")], on_exhausted="keep").join("final")])
    [rejected] = result.rows("rejected")
    assert (rejected["row_id"], rejected["step_id"], rejected["_round"]) == ("1", "judge", 2)
    assert sorted(ends(result)) == ["0", "2", "3"]


def test_a_drop_inside_a_loop_stops_the_row(tmp_path: Path) -> None:
    def odd(item: Draft) -> Draft | None:
        return item if item.v % 2 else None

    result = run(
        tmp_path, [revise(steps=[apply(draft), apply(odd), apply(judge)], on_exhausted="keep").join("final")], (3, 2, 7)
    )
    assert sorted(ends(result)) == ["2"]
    assert result.counts["+revise"]["stopped"] == 2


def test_the_story_of_a_row_goes_round_by_round(tmp_path: Path) -> None:
    def small(item: Draft) -> Draft | None:
        return item if item.v < 6 else None

    result = run(tmp_path, [revise(steps=[apply(draft), apply(small), apply(judge)]).join("final")], (2, 1))
    assert [(outcome.node, outcome.kind) for outcome in story_of(RunDir(result.dir), "0").outcomes] == [
        *((f"{node}{number}", "output") for number in ("", "#2") for node in ("draft", "small", "judge", "revise")),
        ("draft#3", "output"),
        ("small#3", "dropped"),
    ]
    last = story_of(RunDir(result.dir), "1").outcomes[-1]
    assert (last.node, last.step, last.kind) == ("revise#4", "revise", "rejected")


def test_an_unjoined_loop_leaves_the_main_flow_alone(tmp_path: Path) -> None:
    def last(item: N) -> Draft:
        return Draft(v=item.n)

    result = run(tmp_path, [revise(), apply(last)])
    assert sorted(row["v"] for row in result.rows("last")) == [1, 2, 3, 7]
    assert not any(name.startswith("revise.") for row in result.rows("flattened") for name in row)


def test_a_loop_that_ends_the_chain_gives_columns(tmp_path: Path) -> None:
    result = run(tmp_path, [revise()], (1, 3))
    rows = {row["row_id"]: (row["revise._round"], row["revise.v"]) for row in result.rows("flattened")}
    assert rows == {"0": (None, None), "1": (2, 6)}


def test_loops_hold_branches_routes_and_loops(tmp_path: Path) -> None:
    def add(item: Draft, history: Mapping[str, Any]) -> Draft:
        before = history["previous"].add
        return Draft(v=(before.v if before else item.v) + 1)

    def total(item: Draft, history: Mapping[str, Any]) -> Verdict:
        return Verdict(ok=history["added"].v + history["twin"].v >= 14)

    inner = Loop("inner", steps=[apply(add)], until="{{ round == 2 }}", max_rounds=3, result="add").join("added")
    way = Route("big", when="{{ v > 3 }}", then=[apply(lambda item: [item], id="twice", output_model=Draft)]).join("parts")
    fork = Branch("b", [apply(lambda item: item, id="same", input_model=Draft, output_model=Draft)]).join("twins")
    simple = Branch("c", [apply(judge, id="other")]).join("second")

    def twin(item: Draft) -> Draft:
        return item

    steps = [apply(draft), [simple], inner, way, fork, apply(twin), apply(total, id="judge")]
    result = run(tmp_path, [revise(steps=steps, result="added", on_exhausted="keep").join("final")], (2, 5))
    assert ends(result) == {"0": (3, 8), "1": (2, 12)}
    assert {(row["row_id"], row["_round"], row["v"]) for row in result.rows("add")} == {
        ("0", "1~1", 3),
        ("0", "1~2", 4),
        ("0", "2~1", 5),
        ("0", "2~2", 6),
        ("0", "3~1", 7),
        ("0", "3~2", 8),
        ("1", "1~1", 6),
        ("1", "1~2", 7),
        ("1", "2~1", 11),
        ("1", "2~2", 12),
    }


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_rounds_of_rejected_rows_are_text_throughout_if_one_loop_is_in_another(tmp_path: Path, format: str) -> None:
    def strict(item: Draft, history: Mapping[str, Any]) -> Draft:
        if item.v == 4 and history["round"] == 2:
            raise ValueError("not four")
        return item

    inner = Loop("inner", steps=[apply(strict)], until="{{ round == 2 }}", max_rounds=2).join("added")
    result = run(tmp_path, [revise(steps=[apply(draft), inner, apply(judge)]).join("final")], (0, 1, 2), format=format)
    rejected = {(row["row_id"], row["step_id"], row["_round"]) for row in result.rows("rejected")}
    assert rejected == {("0", "revise", "4"), ("1", "strict", "4~2"), ("2", "strict", "2~2")}


def test_a_row_gives_the_value_of_a_loop_and_a_loop_does_not_run_alone() -> None:
    loop = revise(on_exhausted="keep").join("final")
    rows = finished(Chain(name="c", steps=[loop], input_model=N).run_iter([N(n=7)]))
    assert [row[loop] for row in rows] == [{"v": 7}]
    with pytest.raises(DeclarationError, match="'revise' is not a single node; run a Chain"):
        loop.execute([N(n=7)])
