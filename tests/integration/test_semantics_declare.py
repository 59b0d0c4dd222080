"""The meaning of declarations, and the ones that are refused (docs/semantics.md)."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, RootModel

import chainette
from chainette import ApplyNode, Branch, Chain, JoinBranch, Message, SamplingParams, Step, apply, register_engine
from chainette.core.apply import Cardinality
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, make_config, using_registry
from chainette.errors import ChainetteError, DeclarationError, PlanError, RowsRejected
from chainette.records import Row
from chainette.run.executor import RunOptions


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


def split(item: Text) -> list[Word]:
    return [Word(word=word) for word in item.text.split()]


def keep(item: Text) -> Text | None:
    return item if item.text else None


def touch(item: Text) -> Text:
    return item


def step(id: str = "ask", **keys: Any) -> Step[Any, Any]:
    values: dict[str, Any] = {"id": id, "input_model": Text, "output_model": Word, "engine_name": "llm"}
    return Step(**values | keys)


def plan(steps: Sequence[Any], **keys: Any) -> Plan:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        return compile_chain(Chain(name="declared", steps=steps, **keys))


def problems(steps: Sequence[Any], **keys: Any) -> str:
    """The check's messages, without the places."""
    with pytest.raises(PlanError) as caught:
        plan(steps, **keys)
    assert all(problem.place is not None for problem in caught.value.problems)
    return "\n".join(problem.message for problem in caught.value.problems)


# -- defaults and forms


def test_defaults_are_as_documented() -> None:
    ask, options = step(), RunOptions()
    assert (ask.name, ask.max_attempts, ask.yield_output, ask.user_prompt) == ("ask", 3, True, "{{ input }}")
    assert (ask.sampling, SamplingParams().temperature, SamplingParams().max_tokens) == (SamplingParams(), 0, 1024)
    assert Chain(name="c", steps=[ask]).batch_size == 64
    assert (options.seed, options.format, options.max_rows_per_file, options.engine_patience) == (0, "jsonl", 100_000, 600)


def test_the_backend_is_vllm_or_llama_cpp_for_a_gguf_and_never_chosen_by_hardware() -> None:
    with using_registry(EngineRegistry()):
        assert register_engine("a", "org/model").backend == "vllm"
        gguf = register_engine("b", "models/small.gguf")
        assert (gguf.backend, gguf.startup_timeout) == ("llama_cpp", 600)


def test_a_name_defaults_to_the_id() -> None:
    assert apply(split).name == "split"
    assert step(name="Ask it").name == "Ask it"


@pytest.mark.parametrize("kind", [Step, ApplyNode, Chain])
def test_nodes_and_chains_take_keywords_only(kind: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind("ask")


def test_a_branch_takes_its_name_and_steps_by_position() -> None:
    branch = Branch("b", [apply(split)])
    assert (branch.id, branch.name, len(branch.steps)) == ("b", "b", 1)
    assert Branch(name="b", steps=[apply(split)]).id == "b"
    joined = branch.join("words")
    assert isinstance(joined, JoinBranch) and (joined.id, joined.alias, joined.steps) == ("b", "words", branch.steps)


def test_a_join_branch_takes_the_positions_of_the_original_too() -> None:
    ours, original = JoinBranch("b", [apply(split)], "words"), JoinBranch("words", "b", [apply(split)])
    for joined in (ours, original, JoinBranch(name="b", steps=[apply(split)], alias="words")):
        assert (joined.id, joined.alias, len(joined.steps)) == ("b", "words", 1)


def test_a_prompt_may_be_a_file_beside_the_one_that_declares_it(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "ask.txt").write_text("\ufeffFrage: {{ text }} \u2013 \u6b65", encoding="utf-8")
    (tmp_path / "chain.py").write_text(
        "from pathlib import Path\n"
        "from chainette import Step\n"
        "from tests.support.chains import Text, Word\n"
        "ask = Step(id='ask', input_model=Text, output_model=Word, engine_name='llm',\n"
        "           user_prompt=Path('prompts/ask.txt'), system_prompt=Path(__file__).parent / 'prompts' / 'ask.txt')\n"
    )
    names: dict[str, Any] = {"__file__": str(tmp_path / "chain.py")}
    exec(compile((tmp_path / "chain.py").read_text(), tmp_path / "chain.py", "exec"), names)
    assert names["ask"].user_prompt == names["ask"].system_prompt == "Frage: {{ text }} \u2013 \u6b65"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Path("absent.txt"), r"user_prompt: .*integration/absent\.txt cannot be read: No such file"),
        (Path(), r"cannot be read: Is a directory"),
        (None, "user_prompt is None, neither text nor a Path; leave it out"),
        (split, "a function goes into prompt_builder"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_where_it_is_declared(prompt: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=rf"test_semantics_declare\.py:\d+: step 'ask': .*{words}"):
        step(user_prompt=prompt)


def test_a_prompt_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("résumé".encode("latin-1"))
    with pytest.raises(DeclarationError, match=r"latin\.txt is not UTF-8: .* at byte 1"):
        step(system_prompt=tmp_path / "latin.txt")


def of_the_row(item: Text) -> list[Message]:
    return [Message("user", item.text)]


def in_dicts(step: Any, item: Text, history: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": item.text}]


def as_text(step: Any, item: Text, history: Any) -> str:
    return item.text


async def awaited(step: Any, item: Text, history: Any) -> list[Message]:
    return [Message("user", item.text)]


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (of_the_row, "prompt_builder=of_the_row takes (item); give a function (step, row, history) -> list[Message]"),
        (in_dicts, "prompt_builder=in_dicts gives list[dict[str, str]]; give a function"),
        (as_text, "prompt_builder=as_text gives str; give a function"),
        (awaited, "prompt_builder=awaited is async; look things up in an apply(...) before the step"),
        ([Message("user", "Hi")], "prompt_builder is [Message(role='user', content='Hi')]; give a function"),
    ],
)
def test_a_prompt_builder_that_cannot_give_messages_is_refused_where_it_is_declared(builder: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=rf"test_semantics_declare\.py:\d+: step 'ask': {re.escape(words)}"):
        step(prompt_builder=builder)


def test_a_prompt_builder_may_leave_its_types_away_and_give_any_sequence() -> None:
    def tuples(step: Any, row: Any, history: Any) -> tuple[Message, ...]:
        return (Message("user", row.text),)

    builders: list[Any] = [lambda step, row, history: [], lambda *everything: [], tuples]
    for builder in builders:
        assert step(prompt_builder=builder).prompt_builder is builder


def test_nodes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        step().max_attempts = 5  # type: ignore[misc]


def test_apply_works_as_a_decorator_with_and_without_keywords_and_as_a_call() -> None:
    @apply
    def bare(item: Text) -> list[Word]:
        return []

    @apply(id="named", emoji="!")
    def other(item: Text) -> list[Word]:
        return []

    called = apply(split, id="called")
    assert [made.id for made in (bare, other, called)] == ["bare", "named", "called"]
    assert all(
        isinstance(made, ApplyNode) and made.input_model is Text and made.output_model is Word for made in (bare, called)
    )
    assert other.emoji == "!"


def test_the_return_annotation_says_what_becomes_of_a_row() -> None:
    assert [apply(fn).cardinality for fn in (split, keep, touch)] == [Cardinality.MANY, Cardinality.OPTIONAL, Cardinality.ONE]


def test_a_function_without_annotations_counts_as_a_list_with_a_warning() -> None:
    made = plan([apply(lambda item: [item], id="loose")], input_model=Text)
    assert made.nodes["loose"].cardinality is Cardinality.MANY
    assert any("no return annotation" in problem.message for problem in made.warnings)


def test_an_apply_node_reads_the_annotations_of_its_function_as_apply_does() -> None:
    forms: list[ApplyNode[Any, Any]] = [ApplyNode(split), ApplyNode(fn=split), ApplyNode(split, id="split"), apply(split)]
    for made in forms:
        assert (made.id, made.name, made.cardinality, made.annotated) == ("split", "split", Cardinality.MANY, True)
        assert (made.input_model, made.output_model) == (Text, Word)
    named = ApplyNode(lambda item: [item], id="loose", name="Loose", input_model=Text, output_model=Word)
    assert (named.name, named.input_model, named.output_model, named.annotated) == ("Loose", Text, Word, False)
    partly = apply(functools.partial(lambda by, item: [item], 1), id="partly")
    assert partly.input_model is None and not partly.annotated


def test_a_node_can_be_copied_with_another_id(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("{{ text }}")
    ask = dataclasses.replace(step(user_prompt=tmp_path / "ask.txt"), id="again")
    cut = dataclasses.replace(apply(split), id="again")
    assert (ask.id, ask.user_prompt, ask.system_prompt) == ("again", "{{ text }}", "")
    assert (cut.id, cut.fn, cut.cardinality, cut.output_model) == ("again", split, Cardinality.MANY, Word)


def test_one_annotation_that_does_not_resolve_leaves_the_others() -> None:
    def hidden(item: "Elsewhere", history: "Any") -> "list[Word]":  # type: ignore[name-defined]  # noqa: F821, UP037
        return []

    made = apply(hidden)
    assert (made.input_model, made.output_model, made.annotated) == (None, Word, True)


def test_a_function_that_yields_although_it_declares_one_row_is_refused() -> None:
    def one(item: Text) -> Word:  # type: ignore[misc]
        yield Word(word="a")

    async def maybe(item: Text) -> Word | None:  # type: ignore[misc]
        yield Word(word="a")

    with pytest.raises(
        DeclarationError, match=r"declare\.py:\d+: one yields rows; declare it `-> Iterator\[Word\]`, or return"
    ):
        apply(one)
    with pytest.raises(DeclarationError, match=r"maybe yields rows; declare it `-> AsyncIterator\[Word\]`"):
        ApplyNode(maybe)


def test_models_of_the_calling_function_are_found_in_annotations() -> None:
    class Inner(BaseModel):
        word: str

    def shorten(item: Inner) -> Inner:
        return item

    made = apply(shorten)
    assert (made.input_model, made.output_model, made.cardinality) == (Inner, Inner, Cardinality.ONE)


def test_a_function_must_take_an_item_or_an_item_and_the_history() -> None:
    with pytest.raises(DeclarationError, match="takes 3 parameters"):
        apply(lambda one, two, three: [], id="wrong")
    assert apply(lambda item, history: [], id="both").wants_history
    assert not apply(lambda item, extra=1: [], id="one").wants_history


def test_a_bare_branch_in_steps_is_a_list_of_one() -> None:
    branch = Branch("b", [apply(split)])
    assert Chain(name="c", steps=[branch]).steps == ((branch,),)


@pytest.mark.parametrize("wrong", [[[apply(split)]], [[Branch("b", [apply(split)]), apply(keep)]]])
def test_a_list_inside_steps_holds_branches_only(wrong: Any) -> None:
    with pytest.raises(DeclarationError, match="a list inside steps may hold branches only"):
        Chain(name="c", steps=wrong)


def test_an_empty_list_inside_steps_is_called_empty() -> None:
    with pytest.raises(DeclarationError, match="a list of branches inside steps is empty; leave it out"):
        Chain(name="c", steps=[apply(split), []])


def test_a_function_in_steps_is_refused_with_what_to_write() -> None:
    with pytest.raises(DeclarationError, match=r"wrap a function in apply\(\.\.\.\)"):
        Chain(name="c", steps=[split])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([[apply(split), apply(touch)]], r"write Branch\('name', \[\.\.\.\]\) around each sequence"),
        ([Chain(name="inner", steps=[apply(split)])], r"a Chain is not a node; write \*chain\.steps"),
        ([Step], "the class Step is not a node; give an instance"),
        (["split"], "'split' is not a node"),
        (apply(split), r"found one ApplyNode; write \[\.\.\.\] around it"),
    ],
)
def test_what_is_no_node_is_refused_with_what_to_write(steps: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=rf"test_semantics_declare\.py:\d+: 'c': .*{words}"):
        Chain(name="c", steps=steps)


def test_arrows_put_nodes_in_order_as_lists_do() -> None:
    a, b, c, d = (apply(touch, id=name) for name in "abcd")
    left, right = Branch("left", b >> c), Branch("right", [d]).join("x")
    nested = Chain(name="c", steps=a >> [left, right] >> step("ask", user_prompt="{{ x.text }}"))
    assert [*nested.steps][:2] == [a, (left, right)] and left.steps == (b, c)
    assert (a >> (b >> c)) == ((a >> b) >> c) == (a, b, c)
    assert (a >> left >> d) == (a, left, d)
    assert ([left] >> d) == ([left], d) and ([left] >> (c >> d)) == ([left], c, d)
    assert list(plan(a >> [left, right] >> d.__class__(touch, id="e")).nodes) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(split, r"is not a node; wrap a function in apply\(\.\.\.\)"), ([apply(touch)], "may hold branches only")],
)
def test_what_is_no_node_beside_an_arrow_is_refused_as_in_a_list(wrong: Any, words: str) -> None:
    for steps in (apply(keep) >> wrong, wrong >> apply(keep)):
        with pytest.raises(DeclarationError, match=words):
            Chain(name="c", steps=steps)


@pytest.mark.parametrize("run_id", ["../up", "a/b", "a.b", "a b", "步骤", "-a", "x" * 65])
def test_a_run_id_that_no_queue_could_hold_is_refused(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(ChainetteError, match="run_id is "):
        Chain(name="c", steps=[apply(touch)]).run([{"text": "a"}], tmp_path / "run", run_id=run_id)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [[], [[]], "text", None])
def test_empty_steps_are_refused(steps: Any) -> None:
    with pytest.raises(DeclarationError, match=r"test_semantics_declare\.py:\d+"):
        Chain(name="c", steps=steps)


@pytest.mark.parametrize("id", ["my step", "2nd", "class", "_hidden", "a-b", "", "_", "__", "🙂", "a🙂", "·"])
def test_an_id_that_templates_could_not_say_is_refused(id: str) -> None:
    with pytest.raises(DeclarationError, match="must be letters, digits and '_'"):
        step(id)


@pytest.mark.parametrize("id", ["true", "false", "none", "self"])
def test_an_id_that_means_something_else_in_templates_is_refused(id: str) -> None:
    with pytest.raises(DeclarationError, match="means something else in templates"):
        step(id)
    with pytest.raises(DeclarationError, match="means something else in templates"):
        Branch("b", [apply(touch)]).join(id)


@pytest.mark.parametrize("name", ["RAG Demo", "gpt-4.1", "问答", "class", "_", "a/b: c"])
def test_the_name_of_a_chain_is_any_text(name: str) -> None:
    assert plan([apply(touch)]).chain == "declared"
    assert Chain(name=name, steps=[apply(touch)]).name == name


@pytest.mark.parametrize(
    ("name", "words"), [("", "is empty"), ("\t", "is empty"), ("a\x07", "control characters"), (3, "put it in quotes")]
)
def test_a_name_that_nobody_could_read_is_refused(name: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=rf"test_semantics_declare\.py:\d+: chain name .*{words}"):
        Chain(name=name, steps=[apply(touch)])
    if name:
        for keys in ({"name": name}, {"emoji": name}):
            with pytest.raises(DeclarationError, match=words):
                apply(touch, **keys)


def test_a_better_id_is_suggested() -> None:
    with pytest.raises(DeclarationError, match="'my_step' would do"):
        step("My Step")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"output_model": dict}, "not a pydantic model; put it into a field of a BaseModel"),
        ({"output_model": list[Word]}, "not a pydantic model; put it into a field of a BaseModel"),
        ({"output_model": Word(word="a")}, "not a pydantic model; give the class Word"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"max_attempts": "3"}, "max_attempts is '3'"),
        ({"engine_name": 3}, "engine_name must be text, not int"),
        ({"engine_name": make_config("llm", "m", "simulated")}, "write engine_name='llm'"),
        ({"sampling": {"temperature": 1}}, r"write SamplingParams\(\.\.\.\)"),
    ],
)
def test_values_that_cannot_work_are_refused_where_they_are_written(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=rf"test_semantics_declare\.py:\d+: .*{words}"):
        step(**keys)


def test_a_step_declared_before_any_engine_imports_fine() -> None:
    assert step(engine_name="not_there_yet").engine_name == "not_there_yet"
    assert "no engine 'elsewhere'" in problems([step(engine_name="elsewhere")])


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
    with pytest.raises(DeclarationError, match="1 input, but histories for 0"):
        apply(split).execute([Text(text="a")], [])
