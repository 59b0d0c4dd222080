"""Loops: the check of their declaration, their plan and files, and how their runs go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chainette import Branch, Chain, Loop, Route, Step, apply
from chainette.core.compile import compile_chain
from chainette.errors import ChainChanged, DeclarationError, RunDirectoryError
from chainette.io.rundir.chain_changes import changes_between
from chainette.io.rundir.graph import Graph
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.run.executor import resume, retry_rejected
from chainette.run.steps import row_seed
from tests.support.revising import Draft, N, Verdict, draft, ends, judge, refusal, revise, rounds, run, seen
from tests.support.scripted import scripted, user_text

# -- the check


def ask(prompt: str, id: str = "draft") -> Step[Any, Any]:
    return Step(id=id, input_model=N, output_model=Draft, engine_name="m", user_prompt=prompt)


def test_the_round_before_is_none_in_round_1_and_must_be_tested() -> None:
    with scripted(m=lambda request: '{"v": 1}'):
        last = apply(judge)
        said = refusal(revise(steps=[ask("{{ n }} {{ previous.judge.score }}"), last]))
        assert "'previous.judge' may be None, which has no 'score'; test it first: {% if previous.judge %}" in said
        guarded = "{{ n }}{% if previous.judge %} {{ previous.judge.score }}{% endif %}, round {{ round }}"
        compile_chain(Chain(name="c", steps=[revise(steps=[ask(guarded), last])], input_model=N))
        assert "has no field 'juge'" in refusal(revise(steps=[ask("{{ previous.juge.ok }}"), last]))
        assert "'judge' is not in scope here: it runs later; previous.judge is its value" in refusal(
            revise(steps=[ask("{{ judge.ok }}"), last])
        )
        outside = refusal(revise().join("final"), ask("{{ judge.ok }}", "after"))
        assert "it is inside loop 'revise'; Loop(...).join('alias')" in outside


def test_conditions_are_checked_against_the_models() -> None:
    assert "loop 'revise', until must be true or false, but it is float | None" in refusal(revise(until="{{ judge.score }}"))
    assert "loop 'revise', best must be a number, but it is bool" in refusal(revise(best="{{ judge.ok }}"))
    assert "'juge' is not in scope" in refusal(revise(until="{{ juge.ok }}"))


def test_a_node_that_expands_on_the_loops_own_line_is_refused() -> None:
    def many(item: N) -> list[Draft]:
        return []

    assert "loop 'revise': a node of it expands rows" in refusal(revise(steps=[apply(many), apply(judge)]))


def test_a_loop_has_at_most_a_thousand_nodes_after_unrolling() -> None:
    assert "the chain has more than 1,000 nodes; lower max_rounds" in refusal(revise(max_rounds=10**9))


def test_declarations_that_cannot_work_name_the_line_and_the_way_out() -> None:
    wrong: dict[str, Callable[[], object]] = {
        "max_rounds is 0, it must be 1 or more": lambda: revise(max_rounds=0),
        "it is 'reject', 'keep' or 'best'": lambda: revise(on_exhausted="forget"),
        "give both or none": lambda: revise(on_exhausted="keep", best="{{ judge.score }}"),
        "no parameter 'rounds'; write max_rounds=3": lambda: revise(rounds=3),
    }
    for words, declare in wrong.items():
        with pytest.raises(DeclarationError, match=r"revising\.py") as refused:
            declare()
        assert words in str(refused.value)


# -- plan, files, going on


def test_a_round_is_a_node_of_the_plan_and_one_line_of_counts_outside(tmp_path: Path) -> None:
    result = run(tmp_path, [revise(on_exhausted="keep").join("final")])
    nodes = [node.id for node in result._state.graph.nodes]
    assert nodes[:6] == ["draft", "judge", "revise", "draft#2", "judge#2", "revise#2"]
    assert [*result.counts][:4] == ["chain_input", "draft", "judge", "revise"]
    counts = result.counts["revise"]
    assert (counts["in"], counts["ways"]) == (10, {"again": 6, "ended": 3, "kept": 1})
    assert not [path for path in (result.dir).iterdir() if "#" in path.name]


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_rounds_are_a_column_in_every_format(tmp_path: Path, format: str) -> None:
    result = run(tmp_path, [revise().join("final")], format=format)
    assert {(row["row_id"], int(row["_round"])) for row in result.rows("draft")} >= {("0", 4), ("1", 3), ("3", 1)}
    assert [int(row["_round"]) for row in result.rows("rejected")] == [4]


def test_seeds_differ_by_round_and_those_of_round_1_are_as_without_a_loop(tmp_path: Path) -> None:
    def answer(request: Any) -> str:
        return '{"v": 3}' if "round 1" in user_text(request) else '{"v": 6}'

    with scripted(m=answer) as scripts:
        result = run(tmp_path, [revise(steps=[ask("{{ n }} round {{ round }}"), apply(judge)]).join("final")], (1,))
    assert (result.dir / "graph.json").read_text().count("round {{ round }}") == 1  # whatever the number of rounds
    seeds = [request.seed for request in scripts["m"].requests]
    assert seeds[:2] == [row_seed(0, "draft", "0", 1), row_seed(0, "draft", "0", 1, "2")]


def test_engines_that_share_a_device_take_turns_in_every_round(tmp_path: Path) -> None:
    asked: list[str] = []

    def answering(key: str) -> Callable[[Any], str]:
        def answer(request: Any) -> str:
            asked.append(f"{key}{user_text(request)[-1]}")
            return '{"v": 1, "ok": false}'

        return answer

    with scripted({"exclusive": True}, a=answering("a"), b=answering("b")):
        steps = [
            Step(id="draft", input_model=N, output_model=Draft, engine_name="a", user_prompt="round {{ round }}"),
            Step(id="judge", output_model=Verdict, engine_name="b", user_prompt="round {{ round }}"),
        ]
        loop = revise(steps=steps, on_exhausted="keep", max_rounds=3).join("final")
        chain = Chain(name="c", steps=[loop], input_model=N, batch_size=2)
        assert compile_chain(chain).phases == ("a", "b") * 3
        result = chain.run([N(n=number) for number in range(5)], tmp_path / "run")
    assert asked == [f"{key}{number}" for number in (1, 2, 3) for key in "ab" for _ in range(5)]
    assert [row["revise._round"] for row in result.rows("flattened")] == [3] * 5 and result.metadata["balanced"]


def dying_once(question: str, asked: list[str]) -> Callable[[Any], str]:
    """A model that notes every question, and ends the run at this one if it is asked for the first time."""

    def answer(request: Any) -> str:
        asked.append(user_text(request))
        if user_text(request) == question and asked.count(question) == 1:
            raise KeyError("the process dies here")
        return f'{{"v": {user_text(request)[-1]}}}'

    return answer


def test_a_run_that_dies_in_round_3_goes_on_in_round_3(tmp_path: Path) -> None:
    asked: list[str] = []
    with scripted(m=dying_once("1 in round 3", asked)):
        steps = [ask("{{ n }} in round {{ round }}"), apply(fourth, id="judge")]
        chain = Chain(name="c", steps=[revise(steps=steps).join("final")], input_model=N)
        with pytest.raises(KeyError):
            chain.run([N(n=1)], tmp_path / "run")
        result = resume(tmp_path / "run", chain)
    assert asked == [f"1 in round {number}" for number in (1, 2, 3, 3, 4)]
    assert ends(result) == {"0": (4, 4)}
    assert result.metadata["balanced"]


def counted(calls: list[tuple[int, int]], **given: Any) -> Chain:
    """A loop that notes (number, round) of every call."""

    def noted(item: N, history: Mapping[str, Any]) -> Draft:
        calls.append((item.n, history["round"]))
        return draft(item, history)

    loop = revise(steps=[apply(noted, id="draft"), apply(judge)], **given).join("final")
    return Chain(name="c", steps=[loop, apply(seen)], input_model=N, batch_size=3)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_more_rounds_cost_no_row_and_rows_that_were_exhausted_go_on_by_retry(
    tmp_path: Path, format: Any, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, calls = [N(n=number) for number in (1, 2, 3, 7)], list[tuple[int, int]]()
    counted([], max_rounds=2).run(inputs, tmp_path / "run", format=format)
    more = counted(calls, max_rounds=6)
    result = resume(tmp_path / "run", more)
    assert "revise has max_rounds=6 under reject now (was 2 under reject)" in caplog.text
    assert "2 rejected rows wait for" in caplog.text
    assert not calls and sorted(ends(result)) == ["2", "3"]
    result = retry_rejected(tmp_path / "run", more)
    assert sorted(calls) == [(1, 3), (1, 4), (1, 5), (1, 6), (2, 3)]
    assert ends(result) == {"0": (6, 6), "1": (3, 6), "2": (2, 6), "3": (1, 7)}
    assert result.metadata["balanced"] and not [*result.rows("rejected")]


def test_more_rounds_of_loops_in_loops_change_nothing_else() -> None:
    def same(item: Draft) -> Draft:
        return item

    def graph(outer: int, inner: int) -> Graph:
        loop = Loop("inner", steps=[apply(same)], until="{{ round == 2 }}", max_rounds=inner).join("added")
        way = Route("big", when="{{ v > 3 }}", then=[apply(judge, id="other")]).join("part")
        fork = Branch("b", [apply(judge, id="third")]).join("twin")
        steps = [apply(draft), loop, [fork], way, apply(judge)]
        chain = Chain(name="c", steps=[revise(steps=steps, max_rounds=outer).join("final"), apply(seen)], input_model=N)
        return graph_of(compile_chain(chain))

    assert changes_between(graph(2, 2), graph(3, 4)) is None
    changes = changes_between(graph(2, 4), graph(3, 3))
    assert changes is not None and "inner has max_rounds=3 under reject now" in changes.sentences[0]
    assert {name.partition("#")[0] for name in changes.stale} == {"inner"}


def test_rows_that_were_exhausted_are_kept_by_retry_once_the_loop_keeps_them(tmp_path: Path) -> None:
    inputs, calls = [N(n=number) for number in (1, 2, 7)], list[tuple[int, int]]()
    counted([], max_rounds=2).run(inputs, tmp_path / "run")
    result = retry_rejected(tmp_path / "run", counted(calls, max_rounds=2, on_exhausted="keep"))
    assert not calls and ends(result) == {"0": (2, 2), "1": (2, 4), "2": (1, 7)}
    assert rounds(result, "revise", "_way")["0"] == ["again", "kept"]
    assert result.metadata["balanced"] and not [*result.rows("rejected")]


def test_a_retry_leaves_exhausted_rows_for_which_no_round_is_left(tmp_path: Path) -> None:
    fails = [True]

    def strict(item: Draft) -> Verdict:
        if fails[0] and item.v == 3:
            raise ValueError("not three")
        return judge(item)

    loop = revise(steps=[apply(draft), apply(strict, id="judge")], max_rounds=2)
    chain = Chain(name="c", steps=[loop.join("final")], input_model=N)
    chain.run([N(n=1), N(n=3)], tmp_path / "run")
    fails[0] = False
    result = retry_rejected(tmp_path / "run", chain)
    assert ends(result) == {"1": (2, 6)}
    assert [(row["row_id"], row["reason"]) for row in result.rows("rejected")] == [("0", "exhausted")]
    log = (tmp_path / "run/events.jsonl").read_bytes()
    with pytest.raises(RunDirectoryError, match="for which no round is left; raise max_rounds of revise, or set on_exhausted"):
        retry_rejected(tmp_path / "run", chain)
    assert (tmp_path / "run/events.jsonl").read_bytes() == log


def test_fewer_rounds_and_other_endings_are_refused_with_the_loop_to_recompute(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"max_rounds": 4, "on_exhausted": "keep"}
    refused: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"max_rounds": 4}, {"max_rounds": 3}, "max_rounds=3 under reject now (was 4 under reject, with which"),
        (kept, kept | {"max_rounds": 5}, "max_rounds=5 under keep now (was 4 under keep, with which"),
        (kept, {"max_rounds": 4}, "on_exhausted=reject now (was keep, with which"),
        ({"max_rounds": 4}, kept | {"max_rounds": 3}, "max_rounds=3 under keep now (was 4 under reject, with which"),
    ]
    for number, (before, now, words) in enumerate(refused):
        counted([], **before).run([N(n=1), N(n=3)], tmp_path / str(number))
        with pytest.raises(ChainChanged) as error:
            resume(tmp_path / str(number), counted([], **now))
        assert words in str(error.value) and "--from revise`" in str(error.value)
        assert ends(resume(tmp_path / str(number), counted([], **now), from_step=["revise"]))["1"] == (2, 6)


def test_an_interrupted_run_goes_on_with_more_rounds(tmp_path: Path) -> None:
    asked: list[str] = []
    with scripted(m=dying_once("1 in round 2", asked)):
        steps = [ask("{{ n }} in round {{ round }}"), apply(fourth, id="judge")]
        chains = [Chain(name="c", steps=[revise(steps=steps, max_rounds=most).join("final")], input_model=N) for most in (2, 5)]
        with pytest.raises(KeyError):
            chains[0].run([N(n=1)], tmp_path / "run")
        result = resume(tmp_path / "run", chains[1])
    assert asked == [f"1 in round {number}" for number in (1, 2, 2, 3, 4)]
    assert ends(result) == {"0": (4, 4)}


def fourth(item: Draft) -> Verdict:
    return Verdict(ok=item.v == 4)


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_from_a_node_of_a_loop_round_1_of_it_and_all_that_follows_is_recomputed(tmp_path: Path, format: Any) -> None:
    inputs, calls = [N(n=number) for number in (1, 2, 3, 7)], list[tuple[int, int]]()
    chain = counted(calls)
    first = chain.run(inputs, tmp_path / "run", format=format, max_rows_per_file=3)
    before = {name: sorted(map(str, first.rows(name))) for name in ("draft", "judge", "revise", "rejected", "flattened")}
    calls.clear()
    result = resume(tmp_path / "run", chain, from_step=["judge"])
    assert sorted(calls) == [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (3, 2)]
    assert {name: sorted(map(str, result.rows(name))) for name in before} == before
    assert result.counts["draft"]["in"] == 10 and result.metadata["balanced"]


def test_from_a_later_round_of_a_node_the_rounds_before_it_are_kept(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    chain = counted(calls)
    first = [*chain.run([N(n=1), N(n=3)], tmp_path / "run").rows("flattened")]
    calls.clear()
    result = resume(tmp_path / "run", chain, from_step=["draft#3"])
    assert sorted(calls) == [(1, 3), (1, 4)]
    assert [*result.rows("flattened")] == first and result.metadata["balanced"]


def test_a_retry_goes_on_in_the_round_that_rejected_the_row(tmp_path: Path) -> None:
    fails, calls = [True], list[tuple[int, int]]()

    def strict(item: Draft, history: Mapping[str, Any]) -> Verdict:
        calls.append((item.v, history["round"]))
        if fails[0] and item.v == 4:
            raise ValueError("not four")
        return judge(item)

    loop = revise(steps=[apply(draft), apply(strict, id="judge")])
    chain = Chain(name="c", steps=[loop.join("final")], input_model=N)
    chain.run([N(n=2), N(n=3)], tmp_path / "run")
    fails[0] = False
    before = len(calls)
    result = retry_rejected(tmp_path / "run", chain)
    assert calls[before:] == [(4, 2), (6, 3)]
    assert ends(result) == {"0": (3, 6), "1": (2, 6)}
    assert result.metadata["balanced"] and not [*result.rows("rejected")]
