"""Routes: every row takes one way, and all that were not rejected go on together (docs/routes.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from chainette import Branch, Chain, Route, RunResult, Step, apply
from chainette.core.branch import Element
from chainette.core.compile import compile_chain
from chainette.errors import DeclarationError, PlanError
from chainette.io.rundir.run_state import Status
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import finished
from tests.support.scripted import scripted, user_text


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Ticket(BaseModel):
    kind: Literal["refund", "bug", "praise"]
    amount: int = 0
    color: Color = Color.RED
    urgent: bool = False
    note: str = ""


class Offer(BaseModel):
    kind: Literal["offer"] = "offer"
    money: int


class Report(BaseModel):
    kind: Literal["report"] = "report"
    title: str


class Seen(BaseModel):
    words: str


def offer(ticket: Ticket) -> Offer:
    return Offer(money=ticket.amount)


def report(ticket: Ticket) -> Report:
    return Report(title=ticket.note)


def picky(ticket: Ticket) -> Report:
    if ticket.note == "bad":
        raise ValueError("no")
    return Report(title=ticket.note)


def each_letter(ticket: Ticket) -> list[Report]:
    return [Report(title=letter) for letter in ticket.note]


def if_noted(ticket: Ticket) -> Report | None:
    return Report(title=ticket.note) if ticket.note else None


def seen(name: str) -> Any:
    """A node after the route that writes the value under a name."""

    def look(ticket: Ticket, history: Mapping[str, Any]) -> Seen:
        return Seen(words=f"{ticket.kind} {history[name]!r}")

    return apply(look, id="look")


TICKETS = (
    Ticket(kind="refund", amount=7, note="ab"),
    Ticket(kind="bug", note="crash", color=Color.BLUE),
    Ticket(kind="praise", urgent=True),
    Ticket(kind="bug", note="bad"),
)


def run(path: Path, steps: Sequence[Element], tickets: Sequence[Ticket] = TICKETS, **options: Any) -> RunResult:
    """A finished run whose rows are all accounted for, and whose rows `run_iter` gives too."""
    chain = Chain(name="tickets", steps=steps, batch_size=3, input_model=Ticket)
    result = chain.run(list(tickets), path / "run", **options)
    assert result.status is Status.FINISHED
    assert result.metadata["balanced"], result.counts
    assert {row.row_id for row in finished(chain.run_iter(list(tickets)))} == {
        row["row_id"] for row in result.rows("flattened")
    }
    return result


def by_id(result: RunResult, step: str, column: str) -> dict[str, Any]:
    return {row["row_id"]: row[column] for row in result.rows(step)}


def refusal(*steps: Element) -> str:
    """Why a chain with these steps cannot be compiled."""
    with pytest.raises(PlanError) as refused:
        compile_chain(Chain(name="tickets", steps=steps, input_model=Ticket))
    return str(refused.value)


def warnings(*steps: Element) -> str:
    return "\n".join(map(str, compile_chain(Chain(name="tickets", steps=steps, input_model=Ticket)).warnings))


BY_KIND: dict[Any, Sequence[Element]] = {"refund": [apply(offer)], "bug": [apply(picky)]}


# -- the way of a row


def test_a_row_takes_the_way_of_its_case_and_all_that_were_not_rejected_go_on(tmp_path: Path) -> None:
    route = Route("handle", on="{{ kind }}", cases=BY_KIND, default=[apply(report)]).join("handled")
    result = run(tmp_path, [route, seen("handled")])
    assert by_id(result, "handle", "_way") == {"0": "refund", "1": "bug", "2": "default", "3": "bug"}
    assert by_id(result, "look", "words") == {
        "0": "refund Offer(kind='offer', money=7)",
        "1": "bug Report(kind='report', title='crash')",
        "2": "praise Report(kind='report', title='')",
    }
    assert [(row["step_id"], row["row_id"]) for row in result.rows("rejected")] == [("picky", "3")]


def test_a_lone_expression_gives_the_value_itself_and_an_enum_counts_by_its_value(tmp_path: Path) -> None:
    def way(on: str, keys: Sequence[object]) -> dict[str, Any]:
        route = Route("r", on=on, cases={key: [] for key in keys}).join("j")
        return by_id(run(tmp_path / str(len(on)), [route], TICKETS[:3]), "r", "_way")

    assert way("{{ color }}", ["red", Color.BLUE]) == {"0": "red", "1": "blue", "2": "red"}
    assert way("{{ urgent }}", [True, False]) == {"0": "false", "1": "false", "2": "true"}
    assert way("{{ amount > 5 and not urgent }}", [True, False]) == {"0": "true", "1": "false", "2": "false"}


def test_true_is_not_the_text_true() -> None:
    assert 'the case "True" cannot occur' in refusal(Route("r", on="{{ urgent }}", cases={"True": [], True: [], False: []}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_the_case_none(tmp_path: Path, value: float) -> None:
    def amount(ticket: Ticket) -> float | None:
        return value

    route = Route("kind", on=amount, cases={None: [apply(offer)]}, default=[apply(report)])
    result = run(tmp_path, [route.join("done")], TICKETS[:1])
    assert by_id(result, "kind", "_way") == {"0": "default"}


def test_several_conditions_are_tried_in_the_written_order(tmp_path: Path) -> None:
    when: dict[str, Any] = {"some": lambda ticket: ticket.amount > 0, "noted": "{{ note != '' }}", "all": lambda _: True}
    route = Route("size", when=when, cases={key: [] for key in when}).join("j")
    assert by_id(run(tmp_path, [route]), "size", "_way") == {"0": "some", "1": "noted", "2": "all", "3": "noted"}


def test_a_route_with_one_arm_lets_other_rows_pass(tmp_path: Path) -> None:
    route = Route("big_only", when=lambda ticket: ticket.amount > 5, then=[apply(offer)]).join("big")
    result = run(tmp_path, [route, seen("big")])
    assert by_id(result, "big_only", "_way") == {"0": "then", "1": None, "2": None, "3": None}
    assert by_id(result, "look", "words")["1"] == "bug None"
    assert (result.counts["big_only"]["ways"], result.counts["big_only"]["passed"]) == ({"then": 1}, 3)


def test_a_function_may_use_the_history(tmp_path: Path) -> None:
    def on(ticket: Ticket, history: Mapping[str, Any]) -> Literal["many", "few"]:
        return "many" if len(history["report"].title) > 2 else "few"

    route = Route("r", on=on, cases={"many": [], "few": []})
    result = run(tmp_path, [[Branch("b", [apply(report, id="reported")]).join("report")], route])
    assert by_id(result, "r", "_way") == {"0": "few", "1": "many", "2": "few", "3": "many"}


def test_a_value_outside_the_cases_rejects_its_row_only(tmp_path: Path) -> None:
    def lies(ticket: Ticket) -> Literal["refund", "bug"]:
        return ticket.kind  # type: ignore[return-value]

    result = run(tmp_path, [Route("r", on=lies, cases={"refund": [], "bug": []}).join("j")])
    [rejected] = result.rows("rejected")
    assert (rejected["row_id"], rejected["step_id"], rejected["reason"]) == ("2", "r", "no_case")
    assert rejected["message"] == "route 'r': 'praise' is none of the cases \"refund\", \"bug\""
    counts = result.counts["r"]
    assert counts["in"] == sum(counts["ways"].values()) + counts["passed"] + counts["rejected"] == 4


def test_a_function_that_raises_rejects_its_row_at_the_route(tmp_path: Path) -> None:
    def raises(ticket: Ticket) -> bool:
        return 10 // ticket.amount > 1

    result = run(tmp_path, [Route("r", when=raises, then=[]).join("j")])
    assert {(row["row_id"], row["step_id"], row["reason"]) for row in result.rows("rejected")} == {
        (row_id, "r", "apply_error") for row_id in "123"
    }
    assert "ZeroDivisionError" in next(iter(result.rows("rejected")))["message"]


def test_a_condition_that_is_neither_true_nor_false_rejects_its_row(tmp_path: Path) -> None:
    result = run(tmp_path, [Route("r", when=lambda ticket: ticket.amount, then=[]).join("j")])
    assert {row["message"] for row in result.rows("rejected")} == {
        "route 'r', when 'then' gave 7, neither True nor False",
        "route 'r', when 'then' gave 0, neither True nor False",
    }


# -- on a way


def test_an_alias_is_a_list_for_every_way_if_one_expands(tmp_path: Path) -> None:
    cases: dict[Any, Sequence[Element]] = {"refund": [apply(each_letter)], "bug": [apply(if_noted)], "praise": []}
    tickets = [*TICKETS[:3], Ticket(kind="refund"), Ticket(kind="bug")]
    result = run(tmp_path, [Route("r", on="{{ kind }}", cases=cases).join("j")], tickets)
    titles = {row_id: [part["title"] for part in value] for row_id, value in by_id(result, "flattened", "j").items()}
    assert titles == {"0": ["a", "b"], "1": ["crash"], "2": [], "3": [], "4": []}
    assert by_id(result, "flattened", "r._way") == {"0": "refund", "1": "bug", "2": "praise", "3": "refund", "4": "bug"}


def test_a_drop_on_a_joined_way_stops_its_row(tmp_path: Path) -> None:
    cases: dict[Any, Sequence[Element]] = {"refund": [], "bug": [apply(if_noted)], "praise": [apply(if_noted, id="too")]}
    result = run(tmp_path, [Route("r", on="{{ kind }}", cases=cases).join("j")])
    assert sorted(by_id(result, "flattened", "r._way")) == ["0", "1", "3"]
    assert result.counts["+r"]["stopped"] == 1
    assert by_id(result, "flattened", "j.title") == {"0": None, "1": "crash", "3": "bad"}


def test_a_way_may_fork_and_route(tmp_path: Path) -> None:
    inner = Route("inner", on="{{ color }}", cases={"red": [apply(report)], "blue": []}).join("shade")
    fork = Branch("b", [apply(picky)]).join("also")
    route = Route("outer", on="{{ kind }}", cases={"bug": [inner, fork, apply(offer)]}, default=[]).join("j")
    result = run(tmp_path, [route, seen("j")])
    assert by_id(result, "inner", "_way") == {"1": "blue", "3": "red"}
    assert sorted(by_id(result, "look", "words")) == ["0", "1", "2"]
    assert "inner._way" not in next(iter(result.rows("flattened")))


def test_a_route_stands_in_a_branch(tmp_path: Path) -> None:
    route = Route("r", on="{{ kind }}", cases=BY_KIND, default=[]).join("j")
    result = run(tmp_path, [[Branch("left", [route, seen("j")]).join("l"), Branch("right", [apply(report)]).join("m")]])
    assert by_id(result, "flattened", "l.words")["2"] == "praise None"


def test_after_a_route_the_input_is_the_row_before_it(tmp_path: Path) -> None:
    def titled(item: Report) -> Seen:
        return Seen(words=item.title)

    route = Route("r", when="{{ title == 'ab' }}", then=[apply(lambda item: [item], id="other", output_model=Report)]).join("j")
    result = run(tmp_path, [apply(report), route, apply(titled)])
    assert by_id(result, "titled", "words") == {"0": "ab", "1": "crash", "2": "", "3": "bad"}


# -- unjoined


def test_an_unjoined_route_leaves_the_main_flow_alone(tmp_path: Path) -> None:
    cases: dict[Any, Sequence[Element]] = {"refund": [apply(each_letter)], "bug": [apply(picky)], "praise": [apply(if_noted)]}
    result = run(tmp_path, [Route("r", on="{{ kind }}", cases=cases), apply(report)])
    assert sorted(by_id(result, "report", "title")) == ["0", "1", "2", "3"]
    assert [row["row_id"] for row in result.rows("rejected")] == ["3"]
    assert not any(column.startswith("r.") for row in result.rows("flattened") for column in row)


def test_a_route_that_ends_the_chain_gives_columns(tmp_path: Path) -> None:
    cases: dict[Any, Sequence[Element]] = {"refund": [apply(offer)], "bug": [apply(picky)], "praise": [apply(if_noted)]}
    result = run(tmp_path, [Route("r", on="{{ kind }}", cases=cases)])
    rows = {row["row_id"]: [row["r._way"], row["r.money"], row["r.title"]] for row in result.rows("flattened")}
    assert rows == {
        "0": ["refund", 7, None],
        "1": ["bug", None, "crash"],
        "2": ["praise", None, None],
        "3": ["bug", None, None],
    }


# -- the check


def test_a_literal_an_enum_and_a_bool_must_be_covered() -> None:
    assert "route 'r' has no case for \"praise\"" in refusal(Route("r", on="{{ kind }}", cases={"refund": [], "bug": []}))
    assert "route 'r' has no case for \"blue\"" in refusal(Route("r", on="{{ color }}", cases={Color.RED: []}))
    assert "route 'r' has no case for false" in refusal(Route("r", on="{{ urgent }}", cases={True: []}))


def test_a_case_that_cannot_occur_is_an_error_with_a_suggestion() -> None:
    said = refusal(Route("r", on="{{ kind }}", cases={"refunds": []}, default=[]))
    assert 'the case "refunds" cannot occur; did you mean "refund"?' in said
    assert "the case 3 cannot occur, since on= is str" in refusal(Route("r", on="{{ note }}", cases={3: []}, default=[]))


def test_a_value_that_cannot_be_listed_needs_a_default() -> None:
    assert "on= is str, so values other than the cases may occur" in refusal(Route("r", on="{{ note }}", cases={"x": []}))
    assert "on= is of an unknown type" in refusal(Route("r", on=lambda ticket: 1, cases={1: []}))


def test_a_condition_must_be_true_or_false() -> None:
    assert "route 'r', when 'then' must be true or false, but it is int" in refusal(Route("r", when="{{ amount }}", then=[]))

    def text(ticket: Ticket) -> str:
        return ""

    assert "must be true or false, but it is str" in refusal(Route("r", when=text, then=[]))


def test_names_in_conditions_are_checked_against_the_models() -> None:
    assert "route 'r', on: 'kynd' is not in scope; did you mean 'kind'?" in refusal(Route("r", on="{{ kynd }}", cases={1: []}))

    def other(item: Offer) -> bool:
        return True

    assert "route 'r', when 'then' takes Offer, but 'chain_input' gives Ticket" in refusal(Route("r", when=other, then=[]))


def test_a_way_takes_the_row_before_the_route() -> None:
    def wrong(item: Offer) -> Offer:
        return item

    assert "'wrong' takes Offer, but 'chain_input' gives Ticket" in refusal(
        Route("r", on="{{ urgent }}", cases={True: [apply(wrong)], False: []})
    )


def ask(id: str, prompt: str) -> Step[Any, Any]:
    return Step(id=id, output_model=Seen, engine_name="m", user_prompt=prompt)


def test_templates_are_checked_against_the_union_of_the_ways(tmp_path: Path) -> None:
    route = Route("r", on="{{ kind }}", cases={"refund": [apply(offer)]}, default=[apply(report)]).join("j")
    with scripted(m=lambda request: '{"words": "x"}'):
        assert "'j' has no field 'mony'" in refusal(route, ask("a", "{{ j.mony }}")).replace(" (Offer)", "")
        assert "'j' may be Report, which has no field 'money'" in warnings(route, ask("a", "{{ j.money }}"))
        assert not warnings(route, ask("a", "{% if j.kind == 'offer' %}{{ j.money }}{% else %}{{ j.title }}{% endif %}"))


def test_what_happens_on_a_way_is_out_of_scope_afterwards() -> None:
    with scripted(m=lambda request: '{"words": "x"}'):
        said = refusal(Route("r", on="{{ kind }}", cases=BY_KIND, default=[]).join("j"), ask("a", "{{ offer.money }}"))
    assert "'offer' is not in scope here: it is inside route 'r'; Route(...).join('alias')" in said


def test_declarations_that_cannot_work_name_the_line_and_the_way_out() -> None:
    wrong: dict[str, Callable[[], object]] = {
        "give either on= with cases=": lambda: Route("r", cases={"a": []}),
        "cases= must map each case to its steps": lambda: Route("r", on="{{ x }}"),
        "one when= goes with then=": lambda: Route("r", when="{{ x }}", cases={"a": []}),
        "only one has 'b'": lambda: Route("r", when={"a": "{{ x }}", "b": "{{ y }}"}, cases={"a": []}),
        "two ways would be called 'true'": lambda: Route("r", on="{{ x }}", cases={True: [], "true": []}),
        "two ways would be called 'default'": lambda: Route("r", on="{{ x }}", cases={"default": []}, default=[]),
        "must take (item) or (item, history)": lambda: Route("r", when=lambda: True, then=[]),
        "no parameter 'else_'; write default=": lambda: Route("r", when="{{ x }}", then=[], else_=[]),  # type: ignore[call-arg]
    }
    for words, declare in wrong.items():
        with pytest.raises(DeclarationError, match=r"test_routes\.py") as refused:
            declare()
        assert words in str(refused.value)


# -- files, formats, resume


def test_a_field_with_two_types_is_refused_for_parquet_and_csv_before_the_first_row(tmp_path: Path) -> None:
    class Money(BaseModel):
        money: str

    def say(ticket: Ticket) -> Money:
        return Money(money="much")

    steps = [Route("r", on="{{ kind }}", cases={"refund": [apply(offer)]}, default=[apply(say)]).join("j")]
    for columnar in ("parquet", "csv"):
        with pytest.raises(
            DeclarationError, match=r"column j\.money would have two types: integer from Offer, string from Money"
        ):
            run(tmp_path, steps, format=columnar)
    assert by_id(run(tmp_path, steps), "flattened", "j.money") == {"0": 7, "1": "much", "2": "much", "3": "much"}


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_the_columns_of_a_joined_route_are_the_union_over_its_ways(tmp_path: Path, format: str) -> None:
    cases: dict[Any, Sequence[Element]] = {"refund": [apply(offer)], "bug": [apply(report)], "praise": []}
    result = run(tmp_path, [Route("r", on="{{ kind }}", cases=cases).join("j")], format=format)
    rows = {
        row["row_id"]: [row[column] or None for column in ("r._way", "j.money", "j.title")] for row in result.rows("flattened")
    }
    assert rows == {
        "0": ["refund", 7, None],
        "1": ["bug", None, "crash"],
        "2": ["praise", None, None],
        "3": ["bug", None, "bad"],
    }


def test_a_decision_is_made_once_whatever_dies(tmp_path: Path) -> None:
    calls: list[int] = []

    def decides(ticket: Ticket) -> bool:
        calls.append(ticket.amount)
        return ticket.amount % 2 == 0

    fail = True

    def answer(request: Any) -> str:
        if fail and user_text(request) == "5":
            raise KeyError("the process dies here")
        return '{"words": "x"}'

    with scripted(m=answer):
        steps = [Route("r", when=decides, then=[], default=[ask("a", "{{ amount }}")]).join("j")]
        chain = Chain(name="c", steps=steps, input_model=Ticket, batch_size=2)
        tickets = [Ticket(kind="bug", amount=number) for number in range(8)]
        with pytest.raises(KeyError):
            chain.run(tickets, tmp_path / "run", window=2)
        decided = len(calls)
        fail = False
        result = resume(tmp_path / "run", chain)
    assert sorted(by_id(result, "r", "_way").items()) == [(str(n), "default" if n % 2 else "then") for n in range(8)]
    assert decided >= 6 and len(calls) <= 10  # only decisions of the unit at the crash may be made again
    assert result.metadata["balanced"]


def test_from_a_route_ways_are_decided_anew_and_from_a_way_only_its_rows(tmp_path: Path) -> None:
    calls: list[str] = []

    def noted(ticket: Ticket) -> Report:
        calls.append(ticket.kind)
        return Report(title=ticket.note)

    route = Route("r", on="{{ kind }}", cases={"bug": [apply(noted)]}, default=[apply(report)]).join("j")
    chain = Chain(name="c", steps=[route, seen("j")], input_model=Ticket, batch_size=2)
    words = by_id(chain.run(list(TICKETS), tmp_path / "run"), "look", "words")
    again = resume(tmp_path / "run", chain, from_step=["noted"])
    assert calls == ["bug"] * 4 and by_id(again, "look", "words") == words
    changed = Route("r", on="{{ kind }}", cases={"praise": [apply(noted)]}, default=[apply(report)]).join("j")
    other = Chain(name="c", steps=[changed, seen("j")], input_model=Ticket, batch_size=2)
    result = resume(tmp_path / "run", other, from_step=["r"])
    assert by_id(result, "r", "_way") == {"0": "default", "1": "default", "2": "praise", "3": "default"}
    assert calls == ["bug"] * 4 + ["praise"]


def test_ways_are_counted_in_the_metadata_and_drawn_in_the_report(tmp_path: Path) -> None:
    from chainette.cli.screen.summary import way_lines
    from chainette.io.rundir.run_state import RunState
    from chainette.report.drawing import draw

    result = run(tmp_path, [Route("r", on="{{ kind }}", cases=BY_KIND, default=[]).join("j"), apply(report)])
    metadata = json.loads((result.dir / "metadata.json").read_text())
    assert metadata["steps"]["r"]["ways"] == {"bug": 2, "default": 1, "refund": 1}
    assert [*way_lines(metadata)] == ["r: bug 2, default 1, refund 1"]
    state: RunState = result._state
    assert {words.text for words in draw(state, 0.5).words} == {"refund: 1", "bug: 2", "default: 1"}


def test_a_retry_goes_on_at_the_node_of_the_way_that_rejected_the_row(tmp_path: Path) -> None:
    fails, decided = [True], list[str]()

    def on(ticket: Ticket) -> Literal["bug", "other"]:
        decided.append(ticket.note)
        return "bug" if ticket.kind == "bug" else "other"

    def strict(ticket: Ticket) -> Report:
        if fails[0] and ticket.note == "bad":
            raise ValueError("no")
        return Report(title=ticket.note)

    route = Route("r", on=on, cases={"bug": [apply(strict)], "other": []}).join("j")
    chain = Chain(name="c", steps=[route, seen("j")], input_model=Ticket)
    chain.run(list(TICKETS), tmp_path / "run")
    fails[0] = False
    result = retry_rejected(tmp_path / "run", chain)
    assert len(decided) == 4
    assert by_id(result, "look", "words")["3"] == "bug Report(kind='report', title='bad')"
    assert result.metadata["balanced"] and not [*result.rows("rejected")]
