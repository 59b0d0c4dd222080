"""The check of a chain: ids, models along the edges, the public names, and one node alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, RootModel

import chainette
from chainette import Branch, Chain, Step, apply, register_engine
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainetteError, DeclarationError, PlanError, RowsRejected
from chainette.records import Row
from tests.support.declared import Text, Word, keep, plan, problems, split, step, touch

# -- ids


@pytest.mark.parametrize("id", ["chain_input", "input", "row_id", "flattened", "rejected", "inputs", "python"])
def test_reserved_ids_are_refused(id: str) -> None:
    assert repr(id) in problems([apply(touch, id=id)])
    assert repr(id) in problems([Branch("b", [apply(touch)]).join(id)])


def test_ids_branch_names_and_aliases_must_differ() -> None:
    assert "'touch' is used twice" in problems([apply(touch), apply(touch)])
    assert "'touch' is used twice" in problems([apply(touch), Branch("touch", [apply(keep)])])
    assert "'touch' is used twice" in problems([apply(touch), Branch("b", [apply(keep)]).join("touch")])
    assert plan([Branch("words", [apply(split)]).join("words")]).columns == ("chain_input", "words")


def test_two_ids_with_one_folder_are_refused() -> None:
    assert "would share the folder 'my_step'" in problems([apply(touch, id="MyStep"), apply(touch, id="my_step")])
    assert "would be written to the folder 'flattened'" in problems([apply(touch, id="Flattened")])


@pytest.mark.parametrize(("one", "other"), [("Straße", "strasse"), ("ﬁeld", "field"), ("résumé", "re\u0301sume\u0301")])
def test_two_ids_whose_folders_some_file_system_takes_for_one_are_refused(one: str, other: str) -> None:
    assert "would share the folder" in problems([apply(touch, id=one), apply(touch, id=other)])
    assert "which Chainette uses itself" in problems([apply(touch, id="ｆlattened")])


def test_a_step_whose_id_has_no_latin_letter_has_a_folder_of_its_own(tmp_path: Path) -> None:
    ids = ["步骤", "Ответ", "ответ2", "हिन्दी", "résumé", "con"]
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        steps = [step(name, input_model=None, output_model=Text) for name in ids[:-1]]
        last = step(ids[-1], input_model=None, user_prompt="{{ 步骤.text }} {{ हिन्दी.text }} {{ résumé_reasoning }}")
        result = Chain(name="declared", steps=[*steps, last], input_model=Text).run([{"text": "a"}], tmp_path / "run")
    folders = {path.parent.name for path in (tmp_path / "run").glob("*/*.jsonl")} - {"inputs"}
    assert folders == {"步骤", "ответ", "ответ2", "हिन्दी", "résumé", "con_", "flattened"}
    assert all(len(list(result.rows(name))) == 1 for name in ids)


def test_a_function_without_letters_in_its_name_must_be_given_an_id() -> None:
    def _(item: Text) -> Text:
        return item

    def import_(item: Text) -> Text:
        return item

    with pytest.raises(
        DeclarationError, match=r"declare\.py:\d+: the function's name '_' cannot be an id; give the node an id"
    ):
        apply(_)
    with pytest.raises(DeclarationError, match=r"declare\.py:\d+: a lambda has no name; give the node an id"):
        apply(lambda item: [item])
    assert apply(_, id="named").id == "named"
    assert apply(import_).id == "import_"


def test_an_id_must_not_be_the_name_of_another_steps_reasoning() -> None:
    found = problems([step("ask"), step("ask_reasoning", input_model=Word)])
    assert "'ask_reasoning' holds the reasoning of step 'ask'" in found


def test_an_output_model_with_a_field_row_id_is_refused() -> None:
    class Numbered(BaseModel):
        row_id: str

    class Aliased(BaseModel):
        number: str = Field(alias="row_id")

    assert "row_id" in problems([step(output_model=Numbered)])
    assert "row_id" in problems([step(output_model=Aliased)])


def test_an_output_model_that_is_no_json_object_is_refused() -> None:
    class Words(RootModel[list[str]]):
        pass

    class Prices(RootModel[dict[str, int]]):
        pass

    assert "is a JSON array, and a row is an object" in problems([step(output_model=Words)])
    assert plan([step(output_model=Prices)])


def test_a_field_that_is_excluded_from_dumps_is_refused() -> None:
    class Partial(BaseModel):
        kept: str
        lost: str = Field(exclude=True)

    assert "'lost' has exclude=True" in problems([step(output_model=Partial)])


# -- models along the edges


def test_input_models_are_inferred_from_what_comes_before() -> None:
    made = plan([apply(touch), Step(id="ask", output_model=Word, engine_name="llm")])
    assert made.input_model is Text
    assert made.nodes["ask"].input_type is Text


def test_the_input_model_of_a_chain_may_be_given_instead() -> None:
    made = plan([apply(lambda item: [item], id="loose", output_model=Text)], input_model=Text)
    assert made.input_model is Text


def test_a_chain_without_any_input_model_is_refused_once() -> None:
    found = problems([apply(lambda item: [item], id="loose")])
    assert found == "chain 'declared': the first node must declare its input_model"


def test_first_nodes_must_agree_on_one_model() -> None:
    def of_word(item: Word) -> Word:
        return item

    branches = [Branch("a", [apply(touch)]), Branch("b", [apply(of_word)])]
    assert "the first nodes must agree on one input model: 'touch' takes Text, 'of_word' takes Word" in problems([branches])
    assert "must agree" in problems([Branch("a", [apply(touch)]), apply(of_word)])
    assert plan([[Branch("a", [apply(touch)]), Branch("b", [apply(keep)])], apply(split)]).input_model is Text


def test_each_branch_and_the_node_after_it_must_take_the_row_before() -> None:
    after_words = [apply(split), [Branch("b", [apply(touch)])]]
    assert "apply 'touch' takes Text, but 'split' gives Word: field 'text' is missing" in problems(after_words)
    assert "'touch' takes Text" in problems([apply(split), Branch("b", [apply(lambda w: [w], id="w")]), apply(touch)])


def test_every_problem_is_reported_at_once_with_its_line() -> None:
    with pytest.raises(PlanError) as caught:
        plan([step("rejected", engine_name="nope"), apply(touch)])
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert all(word in text for word in ("'rejected' is a name", "no engine 'nope'", "'touch' takes Text"))
    assert text.count("test_semantics_declare.py:") == 3


# -- the surface


def test_the_public_names_are_these() -> None:
    promised = (
        "ApplyNode, AsyncExecutor, BatchApply, Branch, Chain, ChainetteError, Engine, EngineConfig, Executor, JoinBranch, "
        "Loop, Message, Node, Route, Row, RunOptions, RunResult, SamplingParams, Step, apply, get_engine_config, load_engines, "
        "open_run, register_engine, release_engine"
    )
    assert ", ".join(chainette.__all__) == promised
    assert all(hasattr(chainette, name) for name in chainette.__all__)


def test_importing_chainette_configures_nothing_and_leaves_heavy_packages_alone() -> None:
    heavy = ("pyarrow", "aiohttp", "yaml", "rich", "datasets", "xllamacpp", "torch", "vllm")
    shown = f"[name for name in {heavy} if name in sys.modules], logging.getLogger().handlers"
    code = f"import sys, logging, chainette; print({shown})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(chainette.__file__).parents[1]
    )
    assert done.stdout.strip() == "[] []"


def test_every_error_says_its_exit_code() -> None:
    assert (ChainetteError.exit_code, PlanError.exit_code, DeclarationError.exit_code) == (1, 2, 2)


def test_every_line_of_the_page_names_a_test_that_exists() -> None:
    tests = Path(__file__).parents[1]
    page = (tests.parent / "docs" / "semantics.md").read_text()
    defined = {name for file in tests.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)]
    lines = [line for head, _, *rows in tables if head.endswith("| test |") for line in rows]
    assert len(lines) > 100
    for line in lines:
        named = set(re.findall(r"`(test_\w+)`", line))
        assert named <= defined and (named or "tests/typing/" in line), line


# -- one node alone


def rows_of(items: Sequence[BaseModel]) -> list[Row]:
    return [Row(str(index), {"chain_input": item.model_dump_json().encode()}) for index, item in enumerate(items)]


def test_a_step_executed_alone_keeps_the_length() -> None:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        ask = step()
        inputs = [Text(text="a"), Text(text="b"), Text(text="c")]
        outputs, histories = ask.execute(inputs, rows_of(inputs), batch_size=2)
    assert len(outputs) == len(histories) == 3 and all(isinstance(output, Word) for output in outputs)
    assert [history[ask] for history in histories] == outputs
    assert [history.row_id for history in histories] == ["0", "1", "2"]


def test_an_apply_executed_alone_may_expand_and_contract() -> None:
    outputs, histories = apply(split).execute([Text(text="a b"), Text(text=""), Text(text="c")])
    assert outputs == [Word(word="a"), Word(word="b"), Word(word="c")]
    assert [history.row_id for history in histories] == ["0~0", "0~1", "2~0"]


def test_a_branch_executed_alone_keeps_the_length_and_the_histories() -> None:
    inputs = [Text(text="a b"), Text(text="")]
    before = rows_of(inputs)
    outputs, histories = Branch("b", [apply(split)]).execute(inputs, before)
    assert outputs == [[Word(word="a"), Word(word="b")], []]
    assert histories == before
    joined = Branch("b", [apply(touch)]).join("same")
    outputs, histories = joined.execute(inputs, before)
    assert outputs == inputs and [history[joined] for history in histories] == inputs


def test_a_node_executed_alone_that_rejects_raises_with_every_rejection() -> None:
    def refuse(item: Text) -> Text:
        raise ValueError(item.text)

    with pytest.raises(RowsRejected) as caught:
        apply(refuse).execute([Text(text="a"), Text(text="b")])
    assert [(rejection.row_id, rejection.step_id) for rejection in caught.value.rejections] == [
        ("0", "refuse"),
        ("1", "refuse"),
    ]
    with pytest.raises(RowsRejected, match="the branch dropped the row"):
        Branch("b", [apply(keep)]).execute([Text(text="a"), Text(text="")])


def test_nothing_executed_alone_gives_nothing() -> None:
    assert apply(split).execute([]) == ([], [])
    with pytest.raises(DeclarationError, match="1 inputs but 0 histories"):
        apply(split).execute([Text(text="a")], [])
