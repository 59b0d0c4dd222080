"""Chains in YAML: the same chain as in Python, errors with lines, and no code but that of modules below the chain root."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainette.core.compile import compile_chain
from chainette.core.document.chain_writer import as_yaml
from chainette.core.document.editor_schema import editor_schema
from chainette.core.document.yaml_parts import parts_of
from chainette.core.loop import Loop
from chainette.core.plan import Plan
from chainette.core.route import Route
from chainette.core.usercode.confined import ClaimRefused
from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.errors import ChainetteError, LoadError, PlanError
from chainette.io.rundir.chain_marks import marks_of
from tests.support.cli import REPOSITORY, Project
from tests.support.tools import many

CHAIN = """\
name: shop
batch_size: 4
models:
  Text: functions:Text
  Product:
    name: str
    price: {type: float | null, ge: 0}
  Verdict:
    json_schema: {file: schemas/verdict.json}
engines:
  llm: {model: any, backend: simulated}
steps:
  - apply: functions:clean
  - step: extract
    output_model: Product
    engine_name: llm
    system_prompt: {file: prompts/system.md}
    user_prompt: "Product in: {{ text }}"
    sampling: {temperature: 0.5, max_tokens: 99}
  - branches:
      - branch: words
        steps: [{batch_apply: functions:lengths}]
      - branch: judged
        join: verdict
        steps:
          - step: judge
            output_model: Verdict
            engine_name: llm
            user_prompt: "Good? {{ name }}"
            yield_output: false
  - step: reply
    output_model: functions:Text
    engine_name: llm
    max_attempts: 2
    user_prompt: "{{ extract.name }} is {{ verdict.ok }}"
"""

FUNCTIONS = """
from os import system
from pydantic import BaseModel
from chainette import BatchApply, apply

class Text(BaseModel):
    text: str

class Named(BaseModel):
    name: str

@apply
def clean(item: Text) -> Text | None:
    return item if item.text else None

@BatchApply
def lengths(items: list[Named]) -> list[Text]:
    return [Text(text=item.name) for item in items]

def build(step, row, history):
    return []

def long(item, history):
    return len(item.text) > 3

def shortest(candidates):
    return min(candidates, key=lambda candidate: len(candidate.word))

NUMBER = 3
"""

#: More steps of the same chain.
ROUTES = """\
  - step: sort
    output_model: Sorted
    engine_name: llm
  - route: handle
    on: "{{ sort.kind }}"
    cases:
      no: [{apply: functions:clean, id: first}]
      true: []
      2: [{apply: functions:clean, id: second}]
    default: [{apply: functions:clean, id: third}]
    join: handled
  - route: long_only
    when: functions:long
    then: [{apply: functions:clean, id: fourth}]
  - route: by_length
    when: {short: "{{ sort.n < 3 }}", middle: "{{ sort.n < 9 }}"}
    cases: {short: [], middle: [{apply: functions:clean, id: fifth}]}
"""

SORTED = "models:\n  Sorted: {kind: [no, true, 2, other], n: int, text: str}\n"

#: The same chain in Python.
TWIN = """
from pathlib import Path
from pydantic import BaseModel, Field
from chainette import Branch, Chain, SamplingParams, Step, register_engine
from functions import Text, clean, lengths

class Product(BaseModel):
    name: str
    price: float | None = Field(ge=0)

class Verdict(BaseModel):
    ok: bool

register_engine("llm", "any", "simulated")
extract = Step(
    id="extract", output_model=Product, engine_name="llm", system_prompt=Path("prompts/system.md"),
    user_prompt="Product in: {{ text }}", sampling=SamplingParams(temperature=0.5, max_tokens=99),
)
judge = Step(id="judge", output_model=Verdict, engine_name="llm", user_prompt="Good? {{ name }}", yield_output=False)
reply = Step(
    id="reply", output_model=Text, engine_name="llm", max_attempts=2, user_prompt="{{ extract.name }} is {{ verdict.ok }}"
)
steps = clean >> extract >> [Branch("words", [lengths]), Branch("judged", [judge]).join("verdict")] >> reply
chain = Chain(name="shop", batch_size=4, steps=steps)
"""

VERDICT = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


def write(folder: Path, chain: str = CHAIN) -> Path:
    files = {"chain.yml": chain, "functions.py": FUNCTIONS, "twin.py": TWIN, "prompts/system.md": "Be brief.\n"}
    files |= {"schemas/verdict.json": json.dumps(VERDICT), "rows.jsonl": "".join(f'{{"text": "row {n}"}}\n' for n in range(9))}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def load(folder: Path, name: str = "chain.yml", **keys: Any) -> LoadedChain:
    return load_chain(name, folder, **keys)


def compiled(folder: Path, name: str = "chain.yml") -> Plan:
    return compile_chain(load(folder, name).chain)


def fault(folder: Path, old: str, new: str) -> str:
    """The fault of the chain after one change, with its line."""
    assert old in CHAIN
    write(folder, CHAIN.replace(old, new, 1))
    with pytest.raises((LoadError, PlanError)) as caught:
        compiled(folder)
    return str(caught.value)


def test_a_chain_in_yaml_is_the_chain_in_python(tmp_path: Path) -> None:
    yaml, python = compiled(write(tmp_path)), compiled(tmp_path, "twin.py")
    assert list(yaml.nodes) == list(python.nodes) == ["clean", "extract", "lengths", "judge", "reply"]
    assert list(yaml.forks) == list(python.forks) and yaml.columns == python.columns and yaml.batch_size == 4
    for name, node in python.nodes.items():
        same = yaml.nodes[name]
        assert (same.next, same.source, same.scope, same.cardinality, same.path) == (
            node.next, node.source, node.scope, node.cardinality, node.path,
        )  # fmt: skip
        assert same.output_model is not None and node.output_model is not None
        assert same.output_model.model_json_schema() == node.output_model.model_json_schema()
    assert yaml.nodes["clean"].fingerprint == python.nodes["clean"].fingerprint
    assert [config.digest for config in yaml.engines.values()] == [config.digest for config in python.engines.values()]


def test_a_second_load_has_the_same_digest_and_fingerprints(tmp_path: Path) -> None:
    first, second = load(write(tmp_path)), load(tmp_path)
    assert first.digest == second.digest and first.reference == "chain.yml:chain"
    assert marks_of(compile_chain(first.chain)) == marks_of(compile_chain(second.chain))


@pytest.mark.parametrize("name", ["chain.yml", "functions.py", "prompts/system.md", "schemas/verdict.json"])
def test_every_file_of_a_chain_in_yaml_counts_for_its_digest(tmp_path: Path, name: str) -> None:
    before = load(write(tmp_path))
    assert name in before.names
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
    assert load(tmp_path).digest != before.digest
    with pytest.raises(ClaimRefused):
        load(tmp_path, claim=before.claim)


def test_a_chain_that_others_named_is_loaded_from_the_files_they_named(tmp_path: Path) -> None:
    loaded = load(write(tmp_path))
    assert load(tmp_path, loaded.reference, claim=loaded.claim).digest == loaded.digest


def test_only_the_steps_that_a_change_concerns_get_another_fingerprint(tmp_path: Path) -> None:
    before = compiled(write(tmp_path))
    (tmp_path / "prompts/system.md").write_text("Be long.\n")
    (tmp_path / "schemas/verdict.json").write_text(json.dumps(VERDICT | {"description": "Is it good?"}))
    after = compiled(tmp_path)
    changed = {name for name in before.nodes if before.nodes[name].fingerprint != after.nodes[name].fingerprint}
    assert changed == {"extract", "judge"}


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("name: shop", "nam: shop", 1, "a chain has no key 'nam'; did you mean 'name'?"),
        ("batch_size: 4", "batch_size: no", 2, "the chain: batch_size is 'no': Input should be a valid integer"),
        ("batch_size: 4", "batch_size: 0", 1, "batch_size is 0, it must be 1 or more"),
        ("functions:Text\n  Product", "functions:Txt\n  Product", 4, "module 'functions' has no 'Txt'; did you mean 'Text'?"),
        ("name: str", "name: strr", 6, "there is no type or model 'strr'"),
        ("schemas/verdict.json", "schemas/none.json", 9, "does not exist below"),
        ("backend: simulated", "backend: simulted", 11, "engine 'llm'"),
        ("backend: simulated", "backend: []", 11, "engine 'llm': backend is text, found a list without items"),
        ("backend: simulated", "backend: simulated, capcity: 3", 11, "did you mean 'capacity'?"),
        ("model: any, ", "", 11, "engine 'llm' needs the key 'model'"),
        ("functions:clean", "functions:clear", 13, "module 'functions' has no 'clear'; did you mean 'clean'?"),
        ("functions:clean", "function:clean", 13, "there is no module 'function' beside chain.yml or in the chain root"),
        ("functions:clean", "functions:NUMBER", 13, "is not defined below the chain root"),
        ("functions:clean", "functions:lengths", 13, "'functions:lengths' is a BatchApply; write batch_apply: ..."),
        ("functions:clean", "clean", 13, "apply is module:name, such as functions:split, found 'clean'"),
        ("- apply: functions:clean", "- applying: functions:clean", 13, "an entry of steps has one of the keys step, apply,"),
        ("output_model: Product", "output_model: Produkt", 15, "there is no model 'Produkt'; did you mean 'Product'?"),
        ("output_model: Product", "output: Product", 15, "step 'extract': no key 'output'; write output_model"),
        ("engine_name: llm\n    system", "engine_name: lm\n    system", 14, "no engine 'lm'; did you mean 'llm'?"),
        ("prompts/system.md", "prompts/sys.md", 17, "does not exist below"),
        ("{{ text }}", "{{ txt }}", 14, "'txt'"),
        ("{{ text }}", "{{ text.__class__ }}", 14, "__class__"),
        ("{{ text }}", "{% include 'functions.py' %}", 14, "include %} is not available"),
        ("temperature: 0.5", "temperatur: 0.5", 19, "sampling has no key 'temperatur'; did you mean 'temperature'?"),
        ("temperature: 0.5", "temperature: hot", 19, "sampling: "),
        ("temperature: 0.5", "temperature: -1", 19, "SamplingParams.temperature is -1.0; it must be 0 or more"),
        ("- branch: words", "- branch: 2nd words", 21, "branch name '2nd words' must be letters"),
        ("        join: verdict\n", "        join: verdict\n        jon: x\n", 25, "branch 'judged': no key 'jon'"),
        ("yield_output: false", "yield_output: no", 30, "step 'judge': yield_output is 'no': Input should be a valid boolean"),
        ("max_attempts: 2", "max_attempts: 0", 31, "max_attempts is 0, it must be 1 or more"),
        ("step: reply", "step: extract", 31, "'extract'"),
        ("verdict.ok", "verdict.okay", 31, "'okay'"),
        ("output_model: functions:Text", "output_model: functions:build", 32, "'functions:build' is not a pydantic model"),
    ],
)
def test_an_error_names_the_line_of_the_file(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    found = fault(tmp_path, old, new)
    assert f"{tmp_path / 'chain.yml'}:{line}: " in found and said in found, found


def test_a_file_with_several_errors_is_told_all_of_them(tmp_path: Path) -> None:
    wrong = CHAIN.replace("batch_size: 4", "batch_size: no").replace("output_model: Product", "output_model: Produkt")
    wrong = wrong.replace("max_attempts: 2", "max_attempts: 0").replace("functions:clean", "functions:clear")
    with pytest.raises(LoadError, match="the chain file has 5 problems") as error:
        compiled(write(tmp_path, wrong.replace("backend: simulated", "backend: simulted")))
    assert re.findall(r"chain\.yml:(\d+): ", str(error.value)) == ["11", "2", "13", "15", "31"]


_ELSEWHERE = "os:system subprocess:run builtins:exec chainette.utils.terminal_text:visible functions:system json.tool:main"


@pytest.mark.parametrize("name", _ELSEWHERE.split())
def test_code_from_elsewhere_is_not_run(tmp_path: Path, name: str) -> None:
    found = fault(tmp_path, "functions:clean", name)
    assert "chain.yml:13: " in found and ("there is no module" in found or "is not defined below the chain root" in found)


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", ".env", "link.txt", "prompts", "a\\0b", ""])
def test_a_file_outside_of_the_chain_root_is_no_prompt(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for file in (tmp_path / "secret.txt", root / ".env"):
        file.write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "chain.yml:17: " in fault(root, "{file: prompts/system.md}", f'{{file: "{name}"}}')


def test_an_engine_with_settings_that_can_name_code_is_refused(tmp_path: Path) -> None:
    for keys in ("backend: vllm, trust_remote_code: true", "backend: vllm, extra: {worker_cls: x.y}"):
        assert "can name code" in fault(tmp_path, "backend: simulated", keys)
    (tmp_path / "engines.yml").write_text("engines: {llm: {model: any, backend: vllm, trust_remote_code: true}}")
    assert "can name code" in fault(tmp_path, "  llm: {model: any, backend: simulated}", "  file: engines.yml")


def test_engines_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, CHAIN.replace("  llm: {model: any, backend: simulated}", "  file: llms.yml"))
    (tmp_path / "llms.yml").write_text("engines: {llm: {model: any, backend: simulated}}")
    assert "llms.yml" in load(tmp_path).names and list(compiled(tmp_path).engines) == ["llm"]


def test_a_module_that_raises_is_named_by_its_own_line(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "functions.py").write_text("import nothing_like_this\n")
    with pytest.raises(LoadError, match=r"functions\.py:1: ModuleNotFoundError"):
        load(tmp_path)


def test_routes_are_those_of_python_and_case_keys_keep_their_types(tmp_path: Path) -> None:
    plan = compiled(write(tmp_path, (CHAIN + ROUTES).replace("models:\n", SORTED)))
    routes = {each.id: each for each in load(tmp_path).chain.steps if isinstance(each, Route)}
    assert [(way.name, way.key, len(way.steps)) for way in routes["handle"].ways] == [
        ("no", '"no"', 1), ("true", "true", 0), ("2", "2", 1), ("default", "", 1),
    ]  # fmt: skip
    assert routes["handle"].alias == "handled" and [way.name for way in routes["by_length"].ways] == ["short", "middle"]
    assert {"first", "second", "third", "fourth", "fifth"} <= plan.nodes.keys()
    quoted = (
        (tmp_path / "chain.yml").read_text().replace(" true:", " 'true':").replace(" 2:", " '2':")
    )  # JSON has text keys only
    assert not schema_faults(quoted.encode())
    text, unsaid = as_yaml(load(tmp_path).chain)
    (tmp_path / "again.yml").write_text(text)
    again = compiled(tmp_path, "again.yml")
    assert not unsaid and again.forks == plan.forks and list(again.nodes) == list(plan.nodes)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("sort.kind", "sort.kin", 40, "'kin'"),
        ("    default: [{apply: functions:clean, id: third}]\n", "", 40, 'no case for "other"'),
        ("then: [", "than: [", 50, "route 'long_only': no key 'than'; did you mean 'then'?"),
        ("functions:long", "functions:longer", 49, "module 'functions' has no 'longer'"),
        ("when: functions:long", "when: 3", 49, "is text, found 3"),
        ("cases: {short: []", "cases: {shirt: []", 51, "when= and cases= must have the same keys"),
    ],
)
def test_an_error_in_a_route_names_its_line(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    text = (CHAIN + ROUTES).replace("models:\n", SORTED)
    assert old in text
    write(tmp_path, text.replace(old, new, 1))
    with pytest.raises((LoadError, PlanError)) as caught:
        compiled(tmp_path)
    assert f"chain.yml:{line}: " in str(caught.value) and said in str(caught.value), caught.value


CANDIDATES = """\
  - step: guess
    output_model: Guess
    engine_name: llm
    user_prompt: "{{ chain_input.text }}"
    sampling: {temperature: 0.9}
    n: 5
    pick: majority:word
    min_valid: 2
  - step: again
    input_model: Guess
    output_model: Guess
    engine_name: llm
    sampling: {temperature: 0.9}
    n: 3
    pick: functions:shortest
  - {step: every, input_model: Guess, output_model: Guess, engine_name: llm, sampling: {temperature: 0.9}, n: 2}
"""

GUESS = "models:\n  Guess: {word: str}\n"


def test_candidates_are_those_of_python_and_can_be_written(tmp_path: Path) -> None:
    plan = compiled(write(tmp_path, (CHAIN + CANDIDATES).replace("models:\n", GUESS)))
    assert [plan.nodes[f"{name}_candidates"].samples for name in ("guess", "again", "every")] == [5, 3, 2]
    assert plan.nodes["guess"].rescue == {"min_valid": 2}
    said = [picker.said for node in plan.nodes.values() if (picker := node.picker) is not None]
    assert said == ["picks by majority:word, at least 2 valid", "picks by shortest", "keeps all valid ones"]
    assert not schema_faults((tmp_path / "chain.yml").read_bytes())
    text, unsaid = as_yaml(load(tmp_path).chain)
    (tmp_path / "again.yml").write_text(text)
    again = compiled(tmp_path, "again.yml")
    assert not unsaid and again.forks == plan.forks
    several = [name for name, node in plan.nodes.items() if node.step is not None and node.step.n > 1]
    assert len(several) == 6
    same = several[1:]  # the first takes a class, whose fields the text has in its place
    assert [again.nodes[name].fingerprint for name in same] == [plan.nodes[name].fingerprint for name in same]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("pick: majority:word", "pick: majority:wrd", "Guess has no field 'wrd'; did you mean 'word'?"),
        ("pick: majority:word", "pick: most", "pick is 'most'; give 'majority', 'majority:field' or a function"),
        ("n: 5", "n: many", "n is 'many': Input should be a valid integer"),
        ("min_valid: 2", "min_valid: 6", "min_valid is 6, it must be from 1 to 5 (n)"),
        ("functions:shortest", "functions:longest", "module 'functions' has no 'longest'"),
        ("functions:shortest", "functions:long", "pick=long must take (candidates), it takes 2 parameters"),
    ],
)
def test_an_error_about_candidates_names_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (CHAIN + CANDIDATES).replace("models:\n", GUESS)
    assert old in text
    write(tmp_path, text.replace(old, new, 1))
    with pytest.raises(LoadError) as caught:
        compiled(tmp_path)
    assert "chain.yml:" in str(caught.value) and said in str(caught.value), caught.value


LOOP = """\
  - loop: revise
    steps:
      - step: draft
        output_model: Draft
        engine_name: llm
        user_prompt: "{{ chain_input.text }} {% if previous.draft %}{{ previous.draft.text }}{% endif %}"
    until: "{{ draft.score > 8 }}"
    best: "{{ draft.score }}"
    max_rounds: 3
    join: final
  - loop: shorten
    steps: [{apply: functions:clean, id: shorter}]
    until: functions:long
    max_rounds: 2
    on_exhausted: keep
    result: shorter
"""

DRAFT = "models:\n  Draft: {text: str, score: int}\n"


def test_loops_are_those_of_python_and_can_be_written(tmp_path: Path) -> None:
    write(tmp_path, (CHAIN + LOOP).replace("models:\n", DRAFT))
    plan, chain = compiled(tmp_path), load(tmp_path).chain
    revise, shorten = (each for each in chain.steps if isinstance(each, Loop))
    assert (revise.max_rounds, revise.on_exhausted, revise.alias) == (3, "best", "final")
    assert (shorten.on_exhausted, shorten.result, callable(shorten.until.given)) == ("keep", "shorter", True)
    assert not schema_faults((tmp_path / "chain.yml").read_bytes())
    text, unsaid = as_yaml(chain)
    (tmp_path / "again.yml").write_text(text)
    assert not unsaid and list(compiled(tmp_path, "again.yml").nodes) == list(plan.nodes)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("draft.score > 8", "draft.scor > 8", 37, "'scor'"),
        ("max_rounds: 3", "max_rounds: many", 45, "loop 'revise': max_rounds is 'many': Input should be a valid integer"),
        ("max_rounds: 3", "max_rounds: 0", 37, "max_rounds is 0, it must be 1 or more"),
        ("on_exhausted: keep", "on_exhausted: no", 51, "loop 'shorten': on_exhausted is 'no'"),
        ("until: functions:long", "untill: functions:long", 49, "loop 'shorten': no key 'untill'; did you mean 'until'?"),
    ],
)
def test_an_error_in_a_loop_names_its_line(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    text = (CHAIN + LOOP).replace("models:\n", DRAFT)
    assert old in text
    write(tmp_path, text.replace(old, new, 1))
    with pytest.raises((LoadError, PlanError)) as caught:
        compiled(tmp_path)
    assert f"chain.yml:{line}: " in str(caught.value) and said in str(caught.value), caught.value


# -- commands


@pytest.fixture
def project(tmp_path: Path) -> Project:
    found = Project(tmp_path)
    write(tmp_path)
    return found


def test_a_chain_in_yaml_runs_is_interrupted_and_resumed(project: Project) -> None:
    done = project.chainette("run", "chain.yml", "rows.jsonl", "-o", "out", "--limit", "4")
    assert done.returncode == 0, done.stderr
    more = project.chainette("resume", "out", "--limit", "9")
    assert more.returncode == 0, more.stderr
    assert sorted(project.ids("out", "reply")) == [str(n) for n in range(9)]
    (project.path / "prompts/system.md").write_text("Be long.\n")
    refused = project.chainette("resume", "out", "--from", "reply")
    assert refused.returncode == 1 and "extract" in refused.stderr
    assert project.chainette("resume", "out", "--from", "extract").returncode == 0


@pytest.mark.long
def test_workers_run_a_chain_in_yaml_and_its_functions_in_their_processes(project: Project) -> None:
    done = project.chainette("run", "chain.yml", "rows.jsonl", "-o", "out", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert project.chainette("run", "chain.yml", "rows.jsonl", "-o", "local").returncode == 0
    for folder in ("lengths", "reply", "flattened"):
        assert sorted(project.ids("out", folder)) == sorted(project.ids("local", folder))


def test_inspect_shows_the_nodes_and_each_problem_with_its_line(project: Project) -> None:
    done = project.chainette("inspect", "chain.yml")
    assert done.returncode == 0 and "chain shop: 5 nodes, input Text, batch size 4" in done.stdout
    write(project.path, CHAIN.replace("{{ text }}", "{{ txt }}").replace("verdict.ok", "verdict.okay"))
    wrong = project.chainette("inspect", "chain.yml")
    assert wrong.returncode == 2 and "2 problems" in wrong.stderr
    assert "  chain.yml:14: step 'extract'" in wrong.stderr and "  chain.yml:31: step 'reply'" in wrong.stderr


# -- editors


def schema_faults(data: bytes) -> list[str]:
    checker = jsonschema.Draft202012Validator(editor_schema())
    return [error.message for error in checker.iter_errors(parts_of(Path("chain.yml"), data).plain)]


def test_the_schema_for_editors_takes_what_loads_and_marks_wrong_keys_and_types() -> None:
    jsonschema.Draft202012Validator.check_schema(editor_schema())
    example = (REPOSITORY / "examples/14_yaml/chain.yml").read_bytes()
    assert not schema_faults(CHAIN.encode()) and not schema_faults(example)
    for old, new in [
        ("name: shop", "nam: shop"),
        ("batch_size: 4", "batch_size: no"),
        ("functions:clean", "clean"),
        ("output_model: Product", "output: Product"),
        ("temperature: 0.5", "temperatur: 0.5"),
        ("yield_output: false", "yield_output: no"),
        ("{type: float | null, ge: 0}", "{type: float | null, min: 0}"),
        ("model: any, ", ""),
        ("branches:", "branch:"),
    ]:
        assert schema_faults(CHAIN.replace(old, new, 1).encode()), new


def test_the_command_prints_the_schema(project: Project) -> None:
    done = project.chainette("schema")
    assert done.returncode == 0 and json.loads(done.stdout) == json.loads(json.dumps(editor_schema()))


# -- any document at all

_WORDS = st.sampled_from(
    [
        *re.findall(r"[\w./:]+", CHAIN),
        "os:system",
        "functions:build",
        "list[Product]",
        "{% for",
        "{{ ''.__class__ }}",
        "../x",
        "vllm",
    ]
)
_KEYS = st.sampled_from(
    [
        *re.findall(r"\w+(?=:)", CHAIN),
        "prompt_builder",
        "extra",
        "on",
        "default",
        "$ref",
        "properties",
        "pattern",
        "ge",
        "id",
        "route",
    ]
)
_SCALARS = st.one_of(_WORDS, st.text(max_size=8), st.none(), st.booleans(), st.integers(-3, 9), st.floats())
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)), max_leaves=8
)


def _spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _spots(inner, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _changed(value[path[0]], path[1:], new)
    return copy


#: Events of the interpreter that no document may cause.
_EFFECTS = frozenset({"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "os.remove"})
_seen: list[str] | None = None


def _note(event: str, _arguments: object) -> None:
    if _seen is not None and event in _EFFECTS:
        _seen.append(event)


sys.addaudithook(_note)


@contextmanager
def no_effects() -> Iterator[None]:
    global _seen
    _seen = []
    try:
        yield
        assert _seen == []
    finally:
        _seen = None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    import yaml

    return write(tmp_path_factory.mktemp("drawn")), yaml.safe_load(CHAIN)


@settings(max_examples=many(50, 100, 600), deadline=None)
@given(data=st.data())
def test_whatever_a_document_says_the_answer_is_a_chain_or_an_error(drawn: tuple[Path, Any], data: st.DataObject) -> None:
    folder, document = drawn
    for _ in range(data.draw(st.integers(1, 3))):
        document = _changed(document, data.draw(st.sampled_from([*_spots(document)])), data.draw(_VALUES))
    (folder / "drawn.yml").write_text(json.dumps(document))
    _answered(folder)


_LETTERS = st.text(st.sampled_from("{}[]&*!|>%@'\"\n\t -:,#~?\\ab0.\0\x85\ufeff"), max_size=6)


@settings(max_examples=many(50, 100, 600), deadline=None)
@given(at=st.integers(0, len(CHAIN)), text=_LETTERS, cut=st.integers(0, 20))
def test_whatever_is_in_a_file_the_answer_is_a_chain_or_an_error(drawn: tuple[Path, Any], at: int, text: str, cut: int) -> None:
    folder, _ = drawn
    (folder / "drawn.yml").write_text(CHAIN[:at] + text + CHAIN[at + cut :])
    _answered(folder)


def _answered(folder: Path) -> None:
    with no_effects():
        try:
            compiled(folder, "drawn.yml")
            assert not schema_faults((folder / "drawn.yml").read_bytes())
        except ChainetteError as error:
            assert "drawn.yml" in str(error) or "functions.py" in str(error)
