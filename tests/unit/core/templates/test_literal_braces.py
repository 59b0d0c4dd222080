"""Prompts that contain no value of their row, although they seem to be meant to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from chainette import Chain, Step, apply, register_engine
from chainette.core.compile import compile_chain
from chainette.core.prompt import prompter
from chainette.core.step import DEFAULT_USER_PROMPT
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import PlanError
from chainette.records import Message, Row


class Text(BaseModel):
    text: str
    title: str = ""


class Nothing(BaseModel):
    pass


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


def warnings(user: str = "", system: str = "", **keys: Any) -> list[str]:
    values: dict[str, Any] = {"input_model": Text, "output_model": Text, "user_prompt": user, "system_prompt": system} | keys
    with using_registry(EngineRegistry()):
        register_engine("llm", "m", "simulated")
        first = apply(lambda item: [item], id="first", input_model=values["input_model"], output_model=values["input_model"])
        plan = compile_chain(Chain(name="c", steps=[first, Step(id="ask", engine_name="llm", **values)]))
    return [problem.message for problem in plan.warnings if problem.message.startswith("step ")]


@pytest.mark.parametrize(
    "user",
    [
        "{{ text }}",
        "{{ input }}",
        "{{ first.text }}",
        "{{ chain_input.text }}",
        "{{ row_id }}",
        "{% for word in text.split() %}{{ word }}{% endfor %}",
        "{% if title %}x{% endif %}",
        'Answer as {"text": "..."} for {{ text }}',
        "Use ${text} and {} and {other} for {{ text }}",
        "{% raw %}{text}{% endraw %} {{ text }}",
    ],
)
def test_a_prompt_that_mentions_a_value_is_left_alone(user: str) -> None:
    assert warnings(user) == []
    assert warnings("Go on", system=user) == []


@pytest.mark.parametrize("user", ["", "Write a poem", "{# {{ text }} #}", "{}", "{{ range(3) | join }}"])
def test_a_prompt_that_mentions_no_value_is_named(user: str) -> None:
    [words] = warnings(user, system="Be brief")
    assert words.startswith("step 'ask': the prompts mention no value of their row, so every row asks the same question; ")
    assert words.endswith("; write a value like {{ text }}")


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("Sum up: {text}", "{text} is sent literally; write {{ text }}"),
        ("Sum up: { text }", "{ text } is sent literally; write {{ text }}"),
        ("Sum up: {first.text}", "{first.text} is sent literally; write {{ first.text }}"),
        ("{text} of {{ title }}", "{text} is sent literally; write {{ text }}"),
        ("{text}, {title}, {text}", "{text}, {title} is sent literally; write {{ text }}, {{ title }}"),
        ("{ {text} }", "{text} is sent literally; write {{ text }}"),
    ],
)
def test_a_name_in_single_braces_is_taken_for_a_value(user: str, said: str) -> None:
    assert warnings(user) == [f"step 'ask': user_prompt: {said} for the value (in an f-string, with four braces)"]


def test_the_name_of_a_file_is_not_a_prompt() -> None:
    assert "write user_prompt=Path('prompts/ask.txt') for the text of a file" in warnings("prompts/ask.txt")[0]


@pytest.mark.parametrize("model", [Nothing])
def test_a_row_without_fields_has_no_value_to_mention(model: type[BaseModel]) -> None:
    assert warnings("Write a poem", input_model=model) == []


def test_a_row_with_open_fields_is_silent() -> None:
    assert warnings("Write a poem", input_model=Open) == []


def test_a_prompt_of_a_step_with_a_builder_is_not_sent_unless_the_builder_sends_it() -> None:
    def build(step: Any, row: Any, history: Any) -> list[Message]:
        return [Message("user", "hello")]

    def inside(step: Any, row: Any, history: Any) -> list[Message]:
        return [Message(role, (lambda: step.user_prompt)()) for role in ("user",)]

    said = "user_prompt is not sent, since prompt_builder gives the messages; leave it out, or have the builder send"
    assert warnings("Write a poem", prompt_builder=build) == [f"step 'ask': {said} step.user_prompt"]
    assert warnings("Write a poem", prompt_builder=inside) == []
    assert warnings(DEFAULT_USER_PROMPT, prompt_builder=build) == []


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("{% text %}", "Encountered unknown tag 'text'.; write {{ text }} for the value"),
        ("{% first %}", "write {{ first }} for the value"),
        ("{% iff text %}{% endif %}", "Encountered unknown tag 'iff'."),
    ],
)
def test_a_tag_that_is_the_name_of_a_value_is_explained(user: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        warnings(user)
    [problem] = caught.value.problems
    assert said in problem.message


def test_a_mistake_in_a_prompt_is_not_reported_twice(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        warnings("{{ txet }} {text}")
    assert len(caught.value.problems) == 1


def test_an_id_or_a_field_may_be_called_as_a_function_of_jinja() -> None:
    class Car(BaseModel):
        range: int
        cycler: str

    with using_registry(EngineRegistry()):
        register_engine("llm", "m", "simulated")
        first = apply(lambda item: [item], id="dict", input_model=Car, output_model=Car)
        prompt = "{{ dict.range }} {{ range }} {{ cycler }} {{ input.range }}"
        step: Step[Any, Any] = Step(id="ask", output_model=Text, engine_name="llm", user_prompt=prompt)
        plan = compile_chain(Chain(name="c", steps=[first, step]))
    car = b'{"range": 300, "cycler": "Eddy"}'
    messages = prompter(plan, plan.nodes["ask"]).messages(Row("0~0", {"chain_input": car, "dict": car}))
    assert messages[-1].content == "300 300 Eddy 300"
