"""A plan as text: every node, branch and join is there, and folding names the hidden ones."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from chainette.core.apply import ApplyNode, apply
from chainette.core.branch import Branch
from chainette.core.chain import Chain
from chainette.core.chain_drawing import describe_models, describe_rows, render_ascii, render_mermaid, render_unicode
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.core.step import Step
from chainette.engine.config import EngineRegistry, make_config


class Text(BaseModel):
    text: str


class Fact(BaseModel):
    name: str


class Grade(BaseModel):
    score: int


def split(item: Fact) -> list[Fact]:
    return [item]


def keep(item: Fact) -> Fact | None:
    return item


def step(id: str, takes: type[BaseModel] = Fact, gives: type[BaseModel] = Fact, **keys: object) -> Step[BaseModel, BaseModel]:
    values: dict[str, object] = {"id": id, "input_model": takes, "output_model": gives, "engine_name": "llama"} | keys
    return Step(**values)  # type: ignore[arg-type]


def apply_node(function: object) -> ApplyNode[BaseModel, BaseModel]:
    return apply(function)  # type: ignore[call-overload,no-any-return]


def plan_of(*steps: object, emoji: str = "") -> Plan:
    registry = EngineRegistry()
    registry.add(make_config("llama", "tiny", "simulated"))
    return compile_chain(Chain(name="facts", emoji=emoji, steps=list(steps)), registry=registry)  # type: ignore[arg-type]


@pytest.fixture
def plan() -> Plan:
    return plan_of(
        step("extract", Text, Fact, emoji="🔎", name="Extract facts"),
        apply_node(keep),
        [
            Branch("fr", [step("translate_fr")]).join("french"),
            Branch("parts", [apply_node(split), step("each")]).join("pieces"),
            Branch("audit", [[Branch("inner", [step("grade_inner", Fact, Grade, yield_output=False)])]]),
        ],
        step("last", Fact, Grade),
    )


def test_the_ascii_tree_shows_nested_branches_joins_and_expansion(plan: Plan) -> None:
    assert render_ascii(plan).splitlines() == [
        "facts  Text",
        "+-- extract (Extract facts)  Text -> Fact  [llama]",
        "+-- keep  Fact -> Fact | None  [python, may drop rows]",
        "+-- 3 branches",
        "|   +-- fr  joined as {{ french }}",
        "|   |   `-- translate_fr  Fact -> Fact  [llama]",
        "|   +-- parts  joined as {{ pieces }}, a list",
        "|   |   +-- split  Fact -> list[Fact]  [python, expands rows]",
        "|   |   `-- each  Fact -> Fact  [llama]",
        "|   `-- audit  not joined",
        "|       `-- 1 branch",
        "|           `-- inner  not joined",
        "|               `-- grade_inner  Fact -> Grade  [llama, not written]",
        "`-- last  Fact -> Grade  [llama]",
    ]


def test_the_ascii_tree_is_ascii(plan: Plan) -> None:
    assert render_ascii(plan).isascii()


def test_the_unicode_tree_has_the_same_lines_with_icons(plan: Plan) -> None:
    lines = render_unicode(plan).splitlines()
    plain = [re.sub(r"^[+`|\- ]*", "", line).replace(" -> ", " → ") for line in render_ascii(plan).splitlines()]
    assert [re.sub(r"^[├└│─ ]*\S+ ", "", line) for line in lines] == plain
    assert lines[3] == "├─ 🔀 3 branches"
    assert lines[-1] == "└─ 🤖 last  Fact → Grade  [llama]"


def test_a_nodes_own_emoji_replaces_the_icon() -> None:
    lines = render_unicode(plan_of(step("one", Text, emoji="🔎"), emoji="🛒")).splitlines()
    assert lines == ["🛒 facts  Text", "└─ 🔎 one  Text → Fact  [llama]"]


def test_branches_as_the_first_stage_hang_below_the_input() -> None:
    tree = render_ascii(plan_of([Branch("a", [step("one")]), Branch("b", [step("two")])]))
    assert tree.splitlines()[1:] == [
        "`-- 2 branches",
        "    +-- a  not joined",
        "    |   `-- one  Fact -> Fact  [llama]",
        "    `-- b  not joined",
        "        `-- two  Fact -> Fact  [llama]",
    ]


@pytest.mark.parametrize("most, hidden", [(0, 3), (1, 2), (2, 1)])
def test_folded_branches_are_counted(plan: Plan, most: int, hidden: int) -> None:
    for render in (render_ascii, render_unicode, render_mermaid):
        assert f"+{hidden} more" in render(plan, most)
    assert ("translate_fr" in render_ascii(plan, most)) == (most > 0)
    assert "last" in render_ascii(plan, most)


@pytest.mark.parametrize("most", [None, 3, 99])
def test_nothing_is_folded_where_all_branches_fit(plan: Plan, most: int | None) -> None:
    assert "more" not in render_ascii(plan, most)
    assert "more" not in render_mermaid(plan, most)


def test_mermaid_draws_each_branch_as_a_subgraph_and_each_join_as_a_named_arrow(plan: Plan) -> None:
    lines = [line.strip() for line in render_mermaid(plan).splitlines()]
    assert lines[0] == "flowchart TD"
    assert lines.count("end") == 4 == sum(line.startswith("subgraph") for line in lines)
    for arrow in (
        "input --> n_extract",
        "n_keep --> n_translate_fr",
        "n_keep --> n_split",
        "n_keep --> n_grade_inner",
        'n_translate_fr -- "french" --> n_last',
        'n_each -- "pieces" --> n_last',
        "n_last --> done",
    ):
        assert arrow in lines
    assert "n_grade_inner --> n_last" not in lines


def test_mermaid_says_no_arrow_inside_a_subgraph(plan: Plan) -> None:
    depth = 0
    for line in map(str.strip, render_mermaid(plan).splitlines()):
        depth += line.startswith("subgraph") - (line == "end")
        assert "-->" not in line or depth == 0


def test_mermaid_draws_the_main_flow_around_branches_that_are_not_joined() -> None:
    chart = render_mermaid(plan_of(step("one", Text), [Branch("side", [step("two")])], step("three")))
    assert "n_one --> n_three" in chart
    assert "n_two --> n_three" not in chart


def test_mermaid_says_the_aliases_of_folded_joins(plan: Plan) -> None:
    assert 'more_fr -- "french, pieces" --> n_last' in render_mermaid(plan, 0)


def test_models_and_row_changes_have_words(plan: Plan) -> None:
    assert describe_models(plan.nodes["split"]) == ("Fact", "list[Fact]")
    assert describe_models(plan.nodes["keep"]) == ("Fact", "Fact | None")
    assert [describe_rows(plan.nodes[name]) for name in ("extract", "keep", "split")] == ["", "may drop rows", "expands rows"]


def test_an_apply_that_does_not_say_its_model_gets_a_question_mark() -> None:
    node = apply(lambda item: [item], id="raw", input_model=Fact)
    assert describe_models(plan_of(node).nodes["raw"]) == ("Fact", "list[?]")


def test_mermaid_ids_are_ascii_and_distinct_whatever_the_script() -> None:
    branches = [Branch("ветвь", [step("हिन्दी")]).join("итог"), Branch("side", [step("हिन्दि")])]
    chart = render_mermaid(plan_of(step("步骤", takes=Text), branches))
    assert all(label in chart for label in ("步骤<br/>", "हिन्दी<br/>", "हिन्दि<br/>", '["ветвь"]', '"итог"'))
    bare = re.sub(r'"[^"]*"', "", chart)
    assert bare.isascii()
    assert len(set(re.findall(r"\bnu_[0-9a-f]+", bare))) == 3
