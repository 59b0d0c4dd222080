"""Notes of workers change nothing a run depends on, whatever they say."""

from __future__ import annotations

import math

import msgspec
import pytest
from chainette_workers.sink.note_filter import NoteFilter

from chainette import Chain, Step
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.budget import Amounts
from chainette.engine.config import EngineRegistry, using_registry
from chainette.fleet.redis.streams import noted_event
from chainette.io.rundir import event_types as known
from chainette.io.rundir.event_log import encode_line
from chainette.io.rundir.event_types import Event, Note
from chainette.io.rundir.graph import Graph
from chainette.io.rundir.run_state import RunState
from chainette.records import Usage
from tests.support.chains import Text, Word

LOADED = known.EngineLoaded(engine="sim", backend="simulated", model="m", seconds=1.0, identity={"model": "a"})


def plan() -> Plan:
    with using_registry(EngineRegistry()) as registry:
        from chainette import register_engine

        register_engine("sim", "m", "simulated")
        step = Step(id="say", input_model=Text, output_model=Word, engine_name="sim", user_prompt="{{ text }}")
        return compile_chain(Chain(name="c", steps=[step]), registry=registry)


def heard(event: Event) -> Note | None:
    return noted_event({b"kind": b"event", b"text": encode_line(event)})


CREATED = known.RunCreated(
    run_id="r", chain="c", chain_ref="/etc/x.py", chain_root="/", graph=Graph(), settings={}, input={}, versions={}
)

OF_THE_SINK: list[Event] = [
    CREATED,
    known.RunStarted(),
    known.RunResumed(fingerprint="f"),
    known.InputRead(upto=1, digest="d"),
    known.UnitCommitted(node="say", root=0),
    known.ShardSealed(file="say/0", rows=1, bytes=1),
    known.RowsTakenBack(node="say", engine="e", usage=Usage()),
    known.BudgetUsed(used=Amounts()),
    known.RunPaused(reason="because"),
    known.RunCancelledEvent(),
    known.RunFinished(),
]


@pytest.mark.parametrize("event", OF_THE_SINK, ids=lambda event: type(event).__name__)
def test_a_note_never_creates_seals_pauses_or_finishes_a_run(event: Event) -> None:
    assert heard(event) is None


def test_every_event_is_either_the_sinks_or_a_note() -> None:
    every = {*known.AnyEvent.__args__}
    assert {type(event) for event in OF_THE_SINK} == every - {*Note.__args__}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        encode_line(LOADED)[:-10],
        encode_line(known.EngineLoaded(engine="e" * 70_000, backend="b", model="m", seconds=1)),
        encode_line(msgspec.structs.replace(LOADED, engine=5)),
    ],
)
def test_garbage_is_no_note(text: bytes) -> None:
    assert noted_event({b"kind": b"event", b"text": text}) is None
    assert noted_event({b"kind": b"\xff", b"text": text}) is None
    assert noted_event({}) is None


def passed(*notes: Note, workers: tuple[str, ...] = (), origin: dict[str, str] | None = None) -> list[Note]:
    return list(NoteFilter(plan()).passing(notes, workers, lambda _engine: origin or {}))


HONEST: list[Note] = [
    known.WorkerJoined(worker="w-1"),
    known.WorkerLeft(worker="w-1"),
    known.WorkerRefused(worker="w-1", reason="other files"),
    known.UnitRetried(node="say", root=3, unit="", message="no answer", delay=0.5),
    known.UnitRetried(node="say", engine="sim", root=3, unit="", message="no answer", delay=0.5),
    known.UnitSplit(node="say", root=3, unit=""),
    known.AnswersDiscarded(node="say", usage=Usage(3, 4, 5, 0.5)),
    known.EngineReleased(engine="sim"),
    LOADED,
]


def test_honest_notes_pass() -> None:
    assert passed(*HONEST) == HONEST
    assert passed(known.WorkerLost(worker="w-1"), workers=("w-1",))


FORGED: list[Note] = [
    known.WorkerJoined(worker=""),
    known.WorkerJoined(worker="x" * 5000),
    known.WorkerJoined(worker="\x1b[2J"),
    known.WorkerLost(worker="w-1"),
    known.UnitRetried(node="nowhere", root=0, unit="", message="", delay=0),
    known.UnitRetried(node="say", root=0, unit="", message="", delay=math.nan),
    known.UnitRetried(node="say", root=-1, unit="", message="", delay=0),
    known.UnitRetried(node="say", root=0, unit="x" * 5000, message="", delay=0),
    known.UnitRetried(node="say", engine="other", root=0, unit="", message="", delay=0),
    known.UnitSplit(node="nowhere", root=0, unit=""),
    known.AnswersDiscarded(node="nowhere", usage=Usage()),
    known.AnswersDiscarded(node="say", engine="another", usage=Usage()),
    known.AnswersDiscarded(node="say", usage=Usage(requests=-1)),
    known.AnswersDiscarded(node="say", usage=Usage(seconds=math.inf)),
    known.EngineReleased(engine="other"),
    msgspec.structs.replace(LOADED, engine="other"),
    msgspec.structs.replace(LOADED, model="other"),
    msgspec.structs.replace(LOADED, seconds=math.nan),
]


@pytest.mark.parametrize("note", FORGED, ids=repr)
def test_a_note_of_something_else_is_left_out(note: Note) -> None:
    assert passed(note) == []


def test_a_long_message_is_cut() -> None:
    [note] = passed(known.UnitRetried(node="say", root=0, unit="", message="x" * 60_000, delay=0))
    assert isinstance(note, known.UnitRetried) and len(note.message) == 2000


def test_a_worker_that_says_that_the_model_is_another_one_does_not_change_the_log() -> None:
    assert passed(LOADED, origin={"model": "b"}) == [msgspec.structs.replace(LOADED, identity={"model": "b"})]


def test_a_flood_is_cut_off_and_does_not_last() -> None:
    now = 0.0
    notes = NoteFilter(plan(), clock=lambda: now)
    flood = [known.WorkerJoined(worker="w")] * 10_000
    assert len([*notes.passing(flood, (), lambda _engine: {})]) == 2000
    assert len([*notes.passing(flood, (), lambda _engine: {})]) == 0
    now = 10.0
    assert len([*notes.passing(flood, (), lambda _engine: {})]) == 500


def test_what_an_engine_says_of_itself_never_replaces_what_the_log_counts() -> None:
    state = RunState()
    details = {"loads": "x", "load_seconds": [], "identity": 5, "devices": 2}
    for seq in range(2):
        state.apply(msgspec.structs.replace(LOADED, seq=seq, details=details))
    assert (
        state.engines.described["sim"] | {"devices": 2, "loads": 2, "load_seconds": 2.0, "identity": {"model": "a"}}
        == state.engines.described["sim"]
    )
