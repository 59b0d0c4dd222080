"""Every engine of a run is checked before its first row: nothing is paid for, written or taken back in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chainette_workers.sink.local_fleet import LocalFleet

from chainette import Chain, RunResult, Step, register_engine
from chainette.errors import EnginesCannotOpen
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import Text, Word, texts
from tests.support.cli import Project
from tests.support.scripted import Script, scripted


@pytest.fixture
def script() -> Iterator[Script]:
    """The engine `llm` answers; `later` lacks its key; nobody asks `unused`."""
    with scripted(llm=lambda request: '{"word": "yes"}') as scripts:
        register_engine("later", "m", "openai", endpoint="http://127.0.0.1:9/v1", api_key_env="T_NO_KEY")
        register_engine("unused", "/nowhere/x.gguf")
        yield scripts["llm"]


def chain(last: str = "later") -> Chain:
    first = Step(id="first", input_model=Text, output_model=Word, engine_name="llm")
    return Chain(name="paid", steps=[first, Step(id="second", output_model=Word, engine_name=last)])


WAYS: dict[str, Callable[[Path], object]] = {
    "run": lambda path: chain().run(texts(3), path),
    "run without a directory of its own": lambda path: chain().run(texts(3)),
    "run_iter": lambda path: next(chain().run_iter(texts(3))),
    "stream": lambda path: [*chain().stream(Text(text="t"))],
    "workers": lambda path: chain().run(texts(3), path, drive=LocalFleet(1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_later_engine_that_cannot_open_stops_the_run_before_its_first_row(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnginesCannotOpen, match="T_NO_KEY is not set here") as caught:
        WAYS[way](tmp_path / "run")
    assert len(caught.value.obstacles) == 1 and "unused" not in str(caught.value)
    assert script.calls == [] and [*tmp_path.iterdir()] == []


def test_a_simulated_run_needs_no_engine(tmp_path: Path, script: Script) -> None:
    assert len([*chain().run(texts(3), tmp_path / "run", simulate=True).rows("second")]) == 3


@pytest.fixture
def done(tmp_path: Path, script: Script) -> RunResult:
    script.answer = lambda request: "no" if request.schema_name == "second" else '{"word": "yes"}'
    return chain(last="llm").run(texts(3), tmp_path / "run")


@pytest.mark.parametrize(
    "again",
    [
        lambda path: resume(path, chain(), from_step="second"),
        lambda path: retry_rejected(path, chain(last="llm"), engine="later"),
    ],
)
def test_rows_are_taken_back_only_if_every_engine_can_open(
    done: RunResult, script: Script, again: Callable[[Path], object]
) -> None:
    before, asked = snapshot(done.dir), len(script.requests)
    with pytest.raises(EnginesCannotOpen, match="T_NO_KEY is not set here"):
        again(done.dir)
    assert snapshot(done.dir) == before and len(script.requests) == asked


def test_a_finished_run_needs_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(llm=lambda request: '{"word": "yes"}') as scripts:
        register_engine("later", "m", "openai", endpoint="http://127.0.0.1:9/v1", api_key_env="T_NO_KEY")
        run = chain(last="llm").run(texts(3), tmp_path / "run")
        monkeypatch.setattr("chainette.engine.base.Engine.obstacles", lambda engine: iter(["gone"]))
        assert resume(run.dir, chain(last="llm")).status == "finished"
        with pytest.raises(EnginesCannotOpen, match="engine 'llm': gone"):
            resume(run.dir, chain(last="llm"), from_step="second")
    assert scripts["llm"].calls.count("open") == 1


def test_other_columns_of_a_finished_run_need_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(llm=lambda request: '{"word": "yes"}'):
        run = chain(last="llm").run(texts(3), tmp_path / "run")
        monkeypatch.setattr("chainette.engine.base.Engine.obstacles", lambda engine: iter(["gone"]))
        assert resume(run.dir, chain(last="llm"), from_step="flattened").status == "finished"


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


ENGINES = "engines:\n  writer: {model: /nowhere/x.gguf}\n  judge: {model: m, backend: openai, api_key_env: T_NO_KEY, endpoint: 'http://127.0.0.1:9'}\n"


@pytest.mark.parametrize("flags", [(), ("--workers", "1")])
def test_the_command_names_every_obstacle_at_once_and_leaves_nothing_behind(tmp_path: Path, flags: tuple[str, ...]) -> None:
    project = Project(tmp_path, rows=3)
    (tmp_path / "engines.yml").write_text(ENGINES)
    words = ("run", "chain.py", "in.jsonl", "-o", "out", "--engines", "engines.yml")
    stopped = project.chainette(*words, *flags)
    assert stopped.returncode == 1 and not (tmp_path / "out").exists()
    assert stopped.stderr.splitlines() == [
        "error: the run cannot start: engines it needs cannot open here",
        "  engine 'writer': there is no model file /nowhere/x.gguf; `model` must name a .gguf file",
        "  engine 'judge': the environment variable T_NO_KEY is not set here; it must hold the API key",
    ]
    assert project.chainette(*words, *flags, "--simulate", "--quiet").returncode == 0


def test_resume_checks_the_engines_that_the_log_names(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=3)
    (tmp_path / "engines.yml").write_text(ENGINES.replace("/nowhere/x.gguf", "m, backend: simulated"))
    words = ("run", "chain.py", "in.jsonl", "-o", "out", "--engines", "engines.yml", "--engine-patience", "0")
    assert project.chainette(*words, T_NO_KEY="sk").returncode == 1
    log = (tmp_path / "out/events.jsonl").read_bytes()
    stopped = project.chainette("resume", "out")
    assert stopped.returncode == 1 and "T_NO_KEY is not set here" in stopped.stderr
    assert (tmp_path / "out/events.jsonl").read_bytes() == log


UNDRAWABLE = """
from typing import Annotated
from pydantic import BaseModel, Field
from chainette import Chain, Step, register_engine

class Text(BaseModel):
    text: str

class Vowel(BaseModel):
    letter: Annotated[str, Field(pattern="^[a-z&&[aeiou]]$")]

register_engine("e", "m", {backend!r})
chain = Chain(name="c", steps=[Step(id="ask", input_model=Text, output_model=Vowel, engine_name="e")])
"""


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("simulated", ("inspect", "chain.py")),
        ("simulated", ("run", "chain.py", "in.jsonl", "-o", "out")),
        ("openai", ("run", "chain.py", "in.jsonl", "-o", "out", "--simulate")),
    ],
)
def test_an_answer_that_cannot_be_drawn_is_one_error_before_the_first_row(
    tmp_path: Path, backend: str, words: tuple[str, ...]
) -> None:
    project = Project(tmp_path, rows=3)
    (tmp_path / "chain.py").write_text(UNDRAWABLE.format(backend=backend))
    refused = project.chainette(*words)
    assert refused.returncode == 2 and not (tmp_path / "out").exists()
    head, problem = refused.stderr.splitlines()
    assert head == "error: chain 'c' cannot run: 1 problem"
    assert problem.startswith(
        "  chain.py:13: step 'ask': engine 'e' (simulated): no answer can be drawn that Vowel accepts; the last"
    )
