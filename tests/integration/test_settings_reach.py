"""Every setting in the list reaches every run: from Python, as a flag of `run` and `resume`, and in an order to services."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from chainette_workers.service.service import Handed, Places
from chainette_workers.service.sink_service import SinkDuty, _Served
from typer.testing import CliRunner

from chainette.cli import drive_flags
from chainette.cli.main import app
from chainette.cli.signature import words_of
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.core.run_settings import FLAGS, RECORDED, RESUMABLE, RunSettings
from chainette.core.usercode.loading import load_chain
from chainette.errors import RunDirectoryError, RunStopped
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Order, Role
from chainette.io.rundir.open import read_created
from chainette.io.rundir.paths import RunDir
from chainette.run import executor
from chainette.run.options import RunOptions
from chainette.run.session import Session
from tests.support.valkey import Database, connect

CHAIN = """
from pydantic import BaseModel
from chainette import Chain, Step, register_engine

class Text(BaseModel):
    text: str

register_engine("first", "none", "simulated")
chain = Chain(name="texts", steps=[Step(id="ask", input_model=Text, output_model=Text, engine_name="first")])
"""


#: Settings that only a run on this machine has, since they name directories here.
HERE = {"reuse", "no_reuse"}


@dataclass
class Noting:
    """A drive that notes the options of its session and stops there."""

    options: RunOptions = field(default_factory=RunOptions)
    attaches = False
    way: dict[str, str] = field(default_factory=dict)

    def check(self, _plan: Plan, /) -> None: ...

    def __call__(self, session: Session) -> None:
        self.options = session.options
        raise RunStopped("noted")

    def clean(self, _run: str) -> None: ...


def another(name: str) -> Any:
    """A value that is not the default, by the setting's type."""
    kind = get_type_hints(RunSettings)[name]
    default = next(each.default for each in fields(RunSettings) if each.name == name)
    kinds = {kind, *get_args(kind)}
    if name == "engines_file":
        return "engines.yml"
    if name == "budget":
        return ("7req", "5e6tok")
    if name == "price":
        return ("first=in:1.5", "first=out:2")
    if name == "columns":
        return ("text=words",)
    if name in HERE:
        return (str(Path("earlier").absolute()),) if name == "reuse" else ("ask",)
    if bool in kinds:
        return not default
    if get_origin(kind) is Literal:
        return next(word for word in get_args(kind) if word != default)
    return 7 if int in kinds else 0.5 if float in kinds else "text"


def given(name: str) -> dict[str, Any]:
    """The setting, with the one that it needs."""
    return {name: another(name)} | ({"reuse": another("reuse")} if name in HERE else {})


def flags(name: str) -> list[str]:
    return [*words_of(replace(RunSettings(), **given(name)))]


def begin_an_earlier_run() -> None:
    with pytest.raises(RunStopped, match="noted"):
        load_chain("chain.py", Path()).chain.run("in.jsonl", "earlier", drive=Noting())


def same(found: Any, name: str) -> bool:
    found = tuple(found) if name in HERE | {"columns"} else found  # JSON has no tuples
    return bool(found == another(name) or (FLAGS[name].file and Path(found).name == another(name)))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chain.py").write_text(CHAIN)
    (tmp_path / "in.jsonl").write_text('{"text": "a", "words": "b"}\n' * 9)
    (tmp_path / "engines.yml").write_text("engines:\n  - {name: first, model: none, backend: simulated}\n")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> Noting:
    """The drive of `--workers 1`."""
    noting = Noting()
    monkeypatch.setattr(drive_flags, "_own_workers", lambda _words: noting)
    return noting


def chainette(*words: str) -> str:
    return CliRunner().invoke(app, [*words]).output


@pytest.mark.parametrize("name", FLAGS)
def test_a_keyword_in_python_reaches_the_run(name: str) -> None:
    drive = Noting()
    begin_an_earlier_run()
    with pytest.raises(RunStopped, match="noted"):
        load_chain("chain.py", Path()).chain.run("in.jsonl", "out", drive=drive, **given(name))
    assert same(getattr(drive.options, name), name)
    assert same(read_created(RunDir("out")).settings.get(name, another(name)), name)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_reaches_the_run_and_its_log(name: str, noting: Noting) -> None:
    begin_an_earlier_run()
    assert "noted" in chainette("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "1", *flags(name))
    assert same(getattr(noting.options, name), name)
    recorded = read_created(RunDir("out")).settings
    assert (name in recorded) == (name in RECORDED) and same(recorded.get(name, another(name)), name)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_resume_reaches_the_session_or_is_refused_as_fixed(name: str, noting: Noting) -> None:
    begin_an_earlier_run()
    first = ["--reuse", "earlier"] if name in HERE else []
    chainette("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "1", "--limit", "2", "--accept", "2", *first)
    told = chainette("resume", "out", "--workers", "1", *flags(name))
    if name in RESUMABLE:
        assert "noted" in told and same(getattr(noting.options, name), name)
    else:
        flag = next(words_of(replace(RunSettings(), **{name: another(name)})))
        assert f"{flag} is fixed by the log of the run" in " ".join(told.split())


@pytest.mark.parametrize("name", sorted(RECORDED - RESUMABLE - {"engines_file"}))
def test_python_cannot_resume_with_another_value_of_what_the_log_fixes(name: str) -> None:
    chain = load_chain("chain.py", Path()).chain
    with pytest.raises(RunStopped):
        chain.run("in.jsonl", "out", drive=Noting())
    with pytest.raises(RunDirectoryError, match=f"{name} is fixed by the log of the run"):
        chain.run("in.jsonl", "out", drive=Noting(), resume=True, **{name: another(name)})
    with pytest.raises(RunStopped):
        executor.resume("out", chain, drive=Noting())


@pytest.fixture
def board(database: Database) -> Board:
    """A Redis on which both services live."""
    database.may_leave("chainette:*")
    board = Board(database.client)
    for role in Role:
        board.beat(f"{role}-1", {"kind": role, "host": "here"})
        database.client.zadd("chainette:lease", {f"{role}-1": 9e12})  # it lives, however long the test takes
    return board


@dataclass
class Sink:
    """Takes on the one run of a Redis, up to the point at which its units would move."""

    board: Board
    url: str

    def serve(self) -> None:
        [info] = self.board.runs()
        handed = Handed(info, self.order, "sink-1", threading.Event())
        with pytest.raises(RunStopped, match="noted"), closing(connect(self.url)) as client:
            SinkDuty(Places(Path(), Path(), Path()), self.url).serve(handed, FleetQueue(client), self.board)

    @property
    def order(self) -> Order:
        [info] = self.board.runs()
        order = Order.of(info)
        assert order is not None
        return order


@pytest.fixture
def sink(board: Board, database: Database, noting: Noting, monkeypatch: pytest.MonkeyPatch) -> Sink:
    monkeypatch.setattr(_Served, "__call__", lambda _served, session: noting(session))
    return Sink(board, database.url)


def enqueue(sink: Sink, *words: str) -> None:
    told = chainette("enqueue", "chain.py", "in.jsonl", "-o", "out", "--redis", sink.url, "--detach", *words)
    assert "queued" in told, told


@pytest.mark.parametrize("name", sorted(FLAGS.keys() - HERE))
def test_an_order_carries_every_setting_to_the_sink(name: str, sink: Sink, noting: Noting) -> None:
    enqueue(sink, *flags(name))
    assert sink.order.options == replace(RunSettings(), **{name: another(name)})
    sink.serve()
    assert same(getattr(noting.options, name), name)


@pytest.mark.parametrize("name", sorted(RESUMABLE - HERE))
def test_a_resume_that_a_sink_takes_on_reaches_it_too(name: str, sink: Sink, noting: Noting) -> None:
    enqueue(sink, "--limit", "2", "--accept", "2")
    sink.serve()
    assert "asked the sink" in chainette("resume", "out", "--redis", sink.url, *flags(name))
    sink.serve()
    assert same(getattr(noting.options, name), name)


def test_a_sink_compiles_the_chain_once_a_session(sink: Sink) -> None:
    calls: list[object] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is compile_chain.__code__:
            calls.append(frame)

    enqueue(sink)
    for session in (1, 2):  # a fresh directory, then a resume
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            sink.serve()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        assert len(calls) == session
