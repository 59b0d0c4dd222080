"""`inspect --as-yaml`: a Python chain as an equal chain file, or a list of the parts a file cannot express."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from chainette.core.compile import compile_chain
from chainette.core.document.chain_writer import as_yaml
from chainette.core.plan import Plan
from chainette.core.step import Step
from chainette.core.usercode.loading import load_chain
from tests.support.cli import REPOSITORY, Project

EXAMPLES = sorted(path.name for path in (REPOSITORY / "examples").iterdir() if path.is_dir() and not path.name.startswith("."))


def meaning(plan: Plan) -> dict[str, Any]:
    """The meaning of a plan, without the places and names of its code."""
    nodes = {
        name: (
            node.next,
            node.source,
            node.scope,
            node.cardinality,
            node.path,
            schema(node.input_type),
            schema(node.output_model),
        )
        for name, node in plan.nodes.items()
    }
    asked = {
        name: (
            node.node.system_prompt,
            node.node.user_prompt,
            node.node.sampling,
            node.node.max_attempts,
            node.node.yield_output,
            node.node.dedupe,
        )
        for name, node in plan.nodes.items()
        if isinstance(node.node, Step)
    }
    engines = {name: config.digest for name, config in plan.engines.items()}
    return {
        "nodes": nodes,
        "asked": asked,
        "engines": engines,
        "forks": plan.forks,
        "columns": plan.columns,
        "name": plan.chain,
    }


def schema(model: Any) -> Any:
    return model and model.model_json_schema()


def again(folder: Path, reference: str) -> tuple[Plan, Plan, list[str]]:
    """(the plan of a chain, that of the chain file written for it, the parts that were not written)."""
    chain = load_chain(reference, folder).chain
    text, unsaid = as_yaml(chain)
    (folder / "written.yml").write_text(text)
    written = load_chain("written.yml", folder).chain
    assert as_yaml(written)[0] == text
    return compile_chain(chain), compile_chain(written), unsaid


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_can_be_written_and_means_the_same(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(REPOSITORY / "examples" / name, tmp_path / name))
    before, after, unsaid = again(folder, "chain.yml" if (folder / "chain.yml").exists() else "chain.py")
    assert not unsaid and meaning(before) == meaning(after)


CHAIN = '''
from typing import Literal
from pydantic import BaseModel, ConfigDict, Field, field_validator
from chainette import Branch, Chain, SamplingParams, Step, apply, register_engine

class Checked(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def check(cls, name: str) -> str:
        return name

class Described(BaseModel):
    """A thing."""
    name: str = Field(pattern="^a", description="on: no")
    yes: "list[Described | None]" = []

class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    counts: dict[str, int | None]
    of: Checked

class Inner(BaseModel):
    kind: Literal["a", "no", 1, None]

class Plain(BaseModel):
    word: str = "no"
    time: str = "12:30"
    octal: str = "0o17"
    many: list["str | float"] = Field(max_length=3)
    part: Described
    inner: list[Inner]

register_engine("llm", "any", "simulated", invalid_rate=0.5)

@apply
def colour(item: Plain) -> Plain:
    return item

def build(step, row, history):
    return []

second = apply(lambda item: item, id="second", input_model=Plain, output_model=Plain)
ask = Step(
    id="ask", name="Ask on", input_model=Plain, output_model=Described, engine_name="llm", user_prompt="a\\n  {{ word }} \\nb",
    sampling=SamplingParams(stop=("no", "\\n")), prompt_builder=build, output_format_instruction="",
)
closed = Step(id="closed", output_model=Closed, engine_name="llm", user_prompt="{{ name }}", yield_output=False, dedupe=True)
branch = Branch("b", [ask, closed], emoji="🙂")
chain = Chain(name="on", batch_size=3, steps=[colour, second, branch, apply(colour.fn, id="third")])
'''


def test_models_functions_and_texts_of_every_kind_come_back(tmp_path: Path) -> None:
    (tmp_path / "chain.py").write_text(CHAIN)
    before, after, unsaid = again(tmp_path, "chain.py")
    assert not unsaid and meaning(before) == meaning(after)
    text = (tmp_path / "written.yml").read_text()
    assert (
        "Closed: chain:Closed" in text
        and "inner: list[Inner]" in text
        and "word: {type: str, default: 'no'}" in text
        and "name: 'on'" in text
    )
    assert "apply: chain:second" in text and "id: third" in text and "prompt_builder: chain:build" in text


def test_what_a_file_cannot_say_is_listed_and_the_rest_is_written(tmp_path: Path) -> None:
    secret = """
from pydantic import BaseModel, field_validator
from chainette import Chain, Step, apply, register_engine

register_engine("llm", "m", "openai", endpoint="http://u:hunter2@h/v1", headers={"K": "hunter2"}, extra={"a": 1})

def make() -> Chain:
    class Text(BaseModel):
        text: str

    class Checked(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def check(cls, text: str) -> str:
            return text

    def local(item: Text) -> Text:
        return item

    ask = Step(id="ask", output_model=Checked, engine_name="llm", user_prompt="{{ text }}")
    same = apply(lambda item: item, id="same", input_model=Text, output_model=Text)
    return Chain(name="c", steps=[apply(local), same, ask])
"""
    project = Project(tmp_path)
    (tmp_path / "chain.py").write_text(secret)
    done = project.chainette("inspect", "chain.py", "--as-yaml")
    assert done.returncode == 1 and "step: ask" in done.stdout and "hunter2" not in done.stdout + done.stderr
    assert sorted(done.stderr.splitlines()) == [
        "not written: extra of engine 'llm'; declare it in a file for --engines",
        "not written: headers of engine 'llm'; declare it in a file for --engines",
        "not written: secrets in the endpoint of engine 'llm'; declare it in a file for --engines",
        "not written: the function of 'local' is not a function at the top of a module; define it there",
        "not written: the function of 'same' is not a function at the top of a module; define it there",
        "not written: the model Checked, which has more than fields and is not at the top of a module",
    ]
