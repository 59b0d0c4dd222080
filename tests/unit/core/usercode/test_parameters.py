"""Factories of chains: the functions that count as one, the conversion of text to values, and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.core.usercode.parameters import agreed, given, set_flags, settings_of, text_of
from chainette.errors import LoadError, ParameterError

HEAD = """
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Optional

from pydantic import BaseModel, Field, SecretStr

from chainette import Chain, Step, apply, register_engine


class Tone(Enum):
    FORMAL = "formal"
    CASUAL = "casual"


class Text(BaseModel):
    text: str


class Limits(BaseModel):
    low: int = 0
    high: int = 9


seen = {}


def built(**values):
    seen.update(values)
    register_engine("engine", "m", "simulated")
    step = Step(id="say", input_model=Text, output_model=Text, engine_name="engine", user_prompt=f"{values} {{{{ text }}}}")
    return Chain(name="made", steps=[step])


"""


def load(folder: Path, body: str, reference: str = "chain.py", **texts: str) -> LoadedChain:
    (folder / "chain.py").write_text(HEAD + body, encoding="utf-8")
    return load_chain(reference, folder, given(texts))


def seen(loaded: LoadedChain) -> Any:
    """The only value that the factory got."""
    return loaded.chain.steps[0].user_prompt  # type: ignore[union-attr]


def failure(folder: Path, body: str, reference: str = "chain.py", **texts: str) -> str:
    with pytest.raises(LoadError) as caught:
        load(folder, body, reference, **texts)
    return str(caught.value)


def of_type(annotation: str) -> str:
    return f"def make(value: {annotation}) -> Chain:\n    return built(value=value)\n"


@pytest.mark.parametrize(
    ("annotation", "text", "shown", "recorded"),
    [
        ("str", "3", "'3'", "3"),
        ("str", "null", "'null'", "null"),
        ("str", "", "''", ""),
        ("int", "3", "3", 3),
        ("float", "0.5", "0.5", 0.5),
        ("bool", "no", "False", False),
        ("Literal['formal', 'casual']", "casual", "'casual'", "casual"),
        ("Literal[1, 2]", "2", "2", 2),
        ("Tone", "casual", "<Tone.CASUAL: 'casual'>", "casual"),
        ("Path", "a/b", "PosixPath('a/b')", "a/b"),
        ("list[str]", '["a", "b"]', "['a', 'b']", ["a", "b"]),
        ("list[int]", "[]", "[]", []),
        ("set[int]", "[2, 1, 2]", "{1, 2}", [1, 2]),
        ("tuple[int, str]", '[1, "x"]', "(1, 'x')", [1, "x"]),
        ("dict[str, float]", '{"a": 1}', "{'a': 1.0}", {"a": 1.0}),
        ("Limits", '{"high": 3}', "Limits(low=0, high=3)", {"low": 0, "high": 3}),
        ("Optional[int]", "null", "None", None),
        ("Optional[int]", "4", "4", 4),
        ("str | None", "null", "None", None),
        ("int | str", "x", "'x'", "x"),
        ("Annotated[int, Field(ge=1)]", "1", "1", 1),
    ],
)
def test_text_becomes_a_value_by_the_annotation_and_is_recorded_as_json(
    tmp_path: Path, annotation: str, text: str, shown: str, recorded: object
) -> None:
    loaded = load(tmp_path, of_type(annotation), value=text)
    assert f"'value': {shown}}}" in seen(loaded)
    assert loaded.parameters == {"value": recorded}
    again = load(tmp_path, of_type(annotation), value=text_of(json.loads(json.dumps(recorded))))
    assert (seen(again), again.parameters) == (seen(loaded), loaded.parameters)


@pytest.mark.parametrize(
    ("annotation", "text", "said"),
    [
        ("int", "three", "--set value=three: Input should be a valid integer"),
        ("Literal['formal', 'casual']", "rude", "--set value=rude: Input should be 'formal' or 'casual'"),
        ("Tone", "rude", "Input should be 'formal' or 'casual'"),
        ("list[str]", "a,b", """--set value=a,b: Input should be a valid array (write JSON, such as '["a", "b"]')"""),
        ("list[int]", '["a"]', "Input should be a valid integer"),
        ("Annotated[int, Field(ge=1)]", "0", "greater than or equal to 1"),
        ("float", "inf", "JSON cannot hold the value inf"),
    ],
)
def test_a_wrong_value_is_told_as_it_was_written(tmp_path: Path, annotation: str, text: str, said: str) -> None:
    assert said in failure(tmp_path, of_type(annotation), value=text)


MAKE = 'def make(tone: Tone, languages: list[str] = ["French"], top: float | None = None, loose=5) -> Chain:\n'
MAKE += "    return built(tone=tone, languages=languages, top=top, loose=loose)\n"


def test_every_problem_is_told_at_once_with_the_parameters_and_the_nearest_name(tmp_path: Path) -> None:
    assert failure(tmp_path, MAKE, tonne="formal", top="high", loose="x").splitlines() == [
        "chain.py:make: --set tonne=formal: there is no parameter 'tonne'; did you mean 'tone'?",
        "--set tone=VALUE is missing",
        "--set top=high: Input should be a valid number, unable to parse string as a number",
        "--set loose=x: Input should be a valid integer, unable to parse string as an integer",
        "parameters:",
        "  tone: Tone('formal', 'casual')",
        '  languages: list[str] = ["French"]',
        "  top: float | None = null",
        "  loose: int = 5",
    ]


def test_defaults_are_recorded_too_and_stay_what_the_function_says(tmp_path: Path) -> None:
    loaded = load(tmp_path, MAKE, tone="formal")
    assert loaded.parameters == {"tone": "formal", "languages": ["French"], "top": None, "loose": 5}
    kept = load_chain("chain.py:make", tmp_path, given({}, loaded.parameters))
    assert (kept.parameters, kept.digest) == (loaded.parameters, loaded.digest)


def test_a_default_that_text_could_not_give_is_kept_and_not_read_again(tmp_path: Path) -> None:
    body = "def make(size: int = None, how=len) -> Chain:\n    return built(size=size, how=how)\n"
    loaded = load(tmp_path, body)
    assert loaded.parameters == {"size": None}
    again = load_chain("chain.py", tmp_path, given({}, loaded.parameters))
    assert seen(again) == seen(loaded)


def test_recorded_values_give_way_to_new_ones_and_those_of_lost_parameters_are_left_out(tmp_path: Path) -> None:
    load(tmp_path, MAKE, tone="formal")
    kept = {"tone": "formal", "loose": 6, "gone": 1}
    loaded = load_chain("chain.py", tmp_path, given({"tone": "casual"}, kept))
    assert loaded.parameters == {"tone": "casual", "languages": ["French"], "top": None, "loose": 6}


# -- which functions


def test_the_only_function_that_returns_a_chain_is_found_without_its_name(tmp_path: Path) -> None:
    helper = "def helper(x: int) -> int:\n    return x\n"
    assert load(tmp_path, MAKE + helper, tone="formal").reference == "chain.py:make"
    (tmp_path / "uses.py").write_text("from chain import make\n")
    with pytest.raises(LoadError, match="declares no Chain"):
        load_chain("uses.py", tmp_path)
    assert load_chain("uses.py:make", tmp_path, given({"tone": "formal"})).reference == "uses.py:make"


def test_a_chain_at_module_level_comes_before_a_function(tmp_path: Path) -> None:
    assert load(tmp_path, MAKE + "chain = make(Tone.FORMAL)\n").reference == "chain.py:chain"
    assert load_chain("chain.py:make", tmp_path, given({"tone": "casual"})).parameters["tone"] == "casual"


def test_two_functions_are_listed_with_the_references_to_use(tmp_path: Path) -> None:
    both = MAKE + MAKE.replace("make", "other")
    said = failure(tmp_path, both)
    assert said == "chain.py has 2 functions that make chains; say which: chain.py:make, chain.py:other"


def test_a_function_of_a_module_is_named_with_dots(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "chains.py").write_text(HEAD + MAKE)
    assert load_chain("pkg.chains:make", tmp_path, given({"tone": "formal"})).reference == "pkg.chains:make"


def test_annotations_that_are_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("from __future__ import annotations\n" + HEAD + MAKE)
    assert load_chain("late.py", tmp_path, given({"tone": "formal"})).parameters["loose"] == 5


@pytest.mark.parametrize(
    "function",
    ["def make(x=1):\n    1 / 0\n", "async def make() -> Chain:\n    1 / 0\n", "def make() -> Step:\n    1 / 0\n"],
    ids=["not annotated", "async", "of another type"],
)
def test_a_function_that_does_not_say_that_it_returns_a_chain_is_never_called(tmp_path: Path, function: str) -> None:
    said = failure(tmp_path, function, "chain.py:make")
    assert said.startswith("chain.py: 'make' is a function, not a Chain")
    assert "declared `def make(...) -> Chain`" in said


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        ("*names: str", "*names takes values without names"),
        ("**names: str", "**names takes any name"),
        ("x: int, /", "x cannot be given by name"),
        ("x: object", "--set x=VALUE is missing"),
        ("x: type(len)", "no text can be read as"),
    ],
)
def test_a_parameter_that_no_text_can_give_is_refused_with_its_line(tmp_path: Path, signature: str, said: str) -> None:
    message = failure(tmp_path, f"def make({signature}) -> Chain:\n    return built()\n")
    assert said in message
    assert "missing" in said or message.startswith(f"{tmp_path}/chain.py:{len(HEAD.splitlines()) + 1}: make: ")


@pytest.mark.parametrize(
    "parameter",
    [
        "key: SecretStr",
        "x: SecretStr | None = None",
        "api_key: str",
        "OPENAI_API_KEY: str = ''",
        "hf_token: str",
        "db_password=''",
    ],
)
def test_a_parameter_for_a_key_is_refused_with_the_way_to_give_keys(tmp_path: Path, parameter: str) -> None:
    assert "api_key_env='NAME'" in failure(tmp_path, f"def make({parameter}) -> Chain:\n    return built()\n")


@pytest.mark.parametrize("parameter", ["sort_key: str = ''", "max_tokens: int = 3", "tokens: int = 1", "keyword: str = ''"])
def test_a_parameter_that_only_sounds_like_a_key_is_none(tmp_path: Path, parameter: str) -> None:
    assert load(tmp_path, f"def make({parameter}) -> Chain:\n    return built()\n").chain.name == "made"


# -- the function's own behaviour


def test_a_function_that_raises_is_told_with_the_users_line(tmp_path: Path) -> None:
    body = "def make(n: int) -> Chain:\n    built()\n    return built(x=1 / n)\n"
    assert (
        failure(tmp_path, body, n="0")
        == f"{tmp_path}/chain.py:{len(HEAD.splitlines()) + 3}: ZeroDivisionError: division by zero"
    )


def test_a_function_that_returns_something_else_is_refused_with_the_type(tmp_path: Path) -> None:
    assert failure(tmp_path, "def make() -> Chain:\n    return 3\n") == "chain.py:make returned int, not a Chain"


def test_engines_and_files_of_the_function_belong_to_the_chain(tmp_path: Path) -> None:
    (tmp_path / "formal.txt").write_text("Dear")
    body = "def make(tone: str) -> Chain:\n    return built(x=Path(__file__).with_name(f'{tone}.txt').read_text())\n"
    loaded = load(tmp_path, body, tone="formal")
    assert loaded.registry.get("engine").model == "m"
    assert tmp_path / "formal.txt" in loaded.files
    (tmp_path / "formal.txt").write_text("Sir")
    assert load(tmp_path, body, tone="formal").digest != loaded.digest


def test_set_on_a_chain_without_parameters_says_how_to_write_some(tmp_path: Path) -> None:
    said = failure(tmp_path, "chain = built()\n", tone="x")
    assert said.startswith("chain.py:chain is a chain without parameters")
    assert "`def make(tone: str) -> Chain: ...`" in said and "chain.py:make" in said


@pytest.mark.parametrize("word", ["tone", "=x", "my tone=x"])
def test_a_word_without_name_and_value_is_refused_with_the_form(word: str) -> None:
    with pytest.raises(ParameterError, match="expected NAME=VALUE, such as --set tone=formal"):
        settings_of([word])
    assert settings_of(["a=1", "a=2", "b=x=y", "c="]) == {"a": ["1", "2"], "b": ["x=y"], "c": [""]}


# -- in a fleet


def agree(folder: Path, wanted: Mapping[str, object], **offered: list[str]) -> LoadedChain:
    (folder / "chain.py").write_text(HEAD + MAKE)
    return load_chain("chain.py", folder, agreed(wanted, offered))


def test_values_that_others_ask_for_are_taken_only_if_they_were_offered_or_are_defaults(tmp_path: Path) -> None:
    wanted = {"tone": "casual", "languages": ["French"], "top": None, "loose": 5}
    loaded = agree(tmp_path, wanted, tone=["formal", "casual"], other=["1"])
    assert loaded.parameters == wanted
    with pytest.raises(ParameterError, match="tone is casual where it was enqueued, but nothing here"):
        agree(tmp_path, wanted)
    with pytest.raises(ParameterError, match="tone is casual where it was enqueued, but formal or rude here"):
        agree(tmp_path, wanted, tone=["formal", "rude"])
    with pytest.raises(ParameterError, match="loose is 6 where it was enqueued, but 5 here"):
        agree(tmp_path, {**wanted, "loose": 6}, tone=["casual"])


def test_offers_are_compared_as_values_and_not_as_text(tmp_path: Path) -> None:
    wanted = {"tone": "formal", "languages": ["a", "b"], "top": 1.0, "loose": 5}
    assert agree(tmp_path, wanted, tone=["formal"], languages=['["a",  "b"]'], top=["1"]).parameters == wanted


def test_the_flags_that_give_values_are_quoted_for_a_shell() -> None:
    assert set_flags({"tone": "a b", "n": 3, "xs": ["a"]}) == "--set 'tone=a b' --set n=3 --set 'xs=[\"a\"]'"
