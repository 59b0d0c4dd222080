"""Options of runs as keywords: a type checker, an editor and the docstring know them. Checked by mypy, and run as it stands."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import jedi
import pytest

from chainette import Chain, Executor, RunOptions, apply
from chainette.core.run_keywords import ResumeKeywords, RunKeywords
from chainette.core.run_settings import RESUMABLE
from chainette.errors import WrongArguments
from chainette.run import executor
from chainette.run.options import Drive
from tests.support.chains import Text
from tests.support.cli import REPOSITORY


def same(item: Text) -> Text:
    return item


CHAIN = Chain(name="same", steps=[apply(same)])
ROWS = [Text(text="a")]

#: Fields of `RunOptions` that calls name otherwise.
_INTERNAL = {"inputs", "source"}

#: Keywords that take more than the option holds.
WIDER = {
    "reuse": Path("/out"),
    "price": "gpt=in:1",
    "budget": "20usd",
    "no_reuse": "ask",
    "columns": "text=body",
    "select": "changed+",
    "engines_file": Path("engines.yml"),
}

WRONG: list[Callable[[], Any]] = [
    lambda: CHAIN.run(ROWS, limt=3),  # type: ignore[call-arg]
    lambda: next(CHAIN.run_iter(ROWS, limt=3)),  # type: ignore[call-arg]
    lambda: next(CHAIN.stream(ROWS[0], limt=3)),  # type: ignore[call-arg]
    lambda: Executor(CHAIN, limt=3).run(ROWS),  # type: ignore[call-arg]
    lambda: executor.resume("nowhere", limt=3),  # type: ignore[call-arg]
    lambda: executor.retry_rejected("nowhere", limt=3),  # type: ignore[call-arg]
]


@pytest.mark.parametrize("call", WRONG)
def test_a_misspelt_option_is_no_type_and_is_answered_with_the_nearest(call: Callable[[], Any]) -> None:
    with pytest.raises(WrongArguments) as caught:
        call()
    assert re.fullmatch(
        rf"{re.escape(__file__)}:\d+: run options: no parameter 'limt'; did you mean 'limit'\?", str(caught.value)
    )


def types() -> None:
    """Never called: mypy reads it."""
    CHAIN.run(ROWS, limit="3")  # type: ignore[arg-type]
    CHAIN.run(ROWS, format="xml")  # type: ignore[arg-type]
    CHAIN.run(ROWS, limit=3, reuse=Path("out"), budget="20usd", engines_file=Path("engines.yml"), progress=False)
    executor.resume("out", limit=3, budget=["20usd", "5e6tok"])
    executor.resume("out", seed=3)  # type: ignore[call-arg]
    apply(same, id=3)  # type: ignore[call-overload]
    apply(nme="b")  # type: ignore[call-overload]


def test_the_keywords_are_the_fields_of_the_options_with_their_types() -> None:
    options, keywords = get_type_hints(RunOptions), get_type_hints(RunKeywords, localns={"Drive": Drive})
    assert keywords.keys() == {field.name for field in fields(RunOptions)} - _INTERNAL
    assert {name for name in keywords if keywords[name] != options[name]} == {*WIDER, "hooks"}
    session = {"select", "parameters", "chain_claim", "hooks", "drive", "progress"}
    assert ResumeKeywords.__annotations__.keys() == RESUMABLE | session


@pytest.mark.parametrize("name", WIDER)
def test_one_value_is_a_list_of_one_and_a_path_its_text(name: str) -> None:
    value: Any = WIDER[name]
    found = getattr(RunOptions(**{name: value}), name)
    assert found == (str(value) if name == "engines_file" else (str(value),))


def test_the_docstring_explains_every_keyword_and_its_default() -> None:
    explained = dict(re.findall(r"^    (\w+): (.*)$", inspect.getdoc(Chain.run) or "", re.MULTILINE))
    assert {name for name, text in explained.items() if "efault" in text} == RunKeywords.__annotations__.keys()
    for field in fields(RunOptions):
        if isinstance(field.default, int | float | str) and field.name not in _INTERNAL:
            shown = f"{field.default:,g}" if type(field.default) in (int, float) else str(field.default)
            assert shown in explained[field.name], field.name


@pytest.mark.parametrize("method", ["run", "arun", "run_iter", "stream"])
def test_consoles_complete_the_keywords(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jedi.settings, "cache_directory", tmp_path)  # in the usual one, tests beside it read half a file
    parameters = inspect.signature(getattr(CHAIN, method)).parameters
    assert {*RunKeywords.__annotations__} == {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    assert str(parameters["limit"].annotation) == "int | None"
    assert [each.name for each in jedi.Interpreter(f"CHAIN.{method}([], lim", [globals()]).complete()] == ["limit="]


@pytest.mark.long
def test_mypy_refuses_a_misspelt_option_and_a_wrong_type(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from chainette import Chain\n"
        "def go(chain: Chain) -> None:\n"
        "    chain.run('in.jsonl', limit=3, simulate=True)\n"
        "    chain.run('in.jsonl', limt=3)\n"
        "    chain.run('in.jsonl', limit='3')\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(script)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"MYPYPATH": "workers"},
        check=False,
    ).stdout
    assert re.findall(r"script\.py:(\d+): error: .*?\[(call-arg|arg-type)\]", said) == [("4", "call-arg"), ("5", "arg-type")]
    assert 'did you mean "limit"' in said
