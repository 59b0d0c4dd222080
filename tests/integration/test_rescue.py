"""Settings that can only rescue rejected rows: raised, they cost no accepted row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chainette import Chain, SamplingParams, Step
from chainette.core.run_settings import Format
from chainette.engine.base import Completion, Finish, Request
from chainette.errors import ChainChanged
from chainette.hooks import Hook
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import Event, RunResumed, UnitCommitted
from chainette.io.rundir.result import RunResult
from chainette.records import Usage
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import Text, Word, content, texts
from tests.support.scripted import Script, row_of, scripted

ROWS = 24
#: Rows whose answer needs more than the first run gives it.
HARD = {str(row) for row in range(0, ROWS, 3)}
ALL = {str(row) for row in range(ROWS)}

Keys = dict[str, Any]


def wordy(request: Request) -> Completion | str:
    """A hard row's answer is cut below 200 tokens."""
    if row_of(request) in HARD and request.sampling.max_tokens < 200:
        return Completion('{"word": "cut', Finish.LENGTH, usage=Usage(1, 10, 5, 0.0))
    return f'{{"word": "row {row_of(request)}"}}'


def hesitant(request: Request) -> str:
    """A hard row's answer is good only once it was told its fault."""
    told = request.messages[-1].content.startswith("That answer cannot be used")
    return "hm" if row_of(request) in HARD and not told else f'{{"word": "row {row_of(request)}"}}'


@dataclass(frozen=True)
class Case:
    setting: str
    answer: Callable[[Request], Completion | str]
    before: Keys
    after: Keys


CASES = [
    Case("max_tokens", wordy, {"sampling": SamplingParams(max_tokens=100)}, {"sampling": SamplingParams(max_tokens=200)}),
    Case("max_attempts", hesitant, {"max_attempts": 1}, {"max_attempts": 2}),
]


@pytest.fixture(params=CASES, ids=[case.setting for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def script(case: Case) -> Iterator[Script]:
    with scripted(hard=case.answer, easy=lambda request: f'{{"word": "{row_of(request)}"}}') as scripts:
        yield scripts["hard"]


def chain(keys: Keys) -> Chain:
    return Chain(
        name="rescue",
        batch_size=4,
        steps=[
            Step(id="hard", input_model=Text, output_model=Word, engine_name="hard", **keys),
            Step(id="easy", output_model=Word, engine_name="easy"),
        ],
    )


class Stops(Hook):
    """Ends the run once two roots are durable."""

    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.root == 2:
            raise KeyError("enough")


def begun(case: Case, directory: Path, format: Format = "jsonl") -> None:
    with pytest.raises(KeyError, match="enough"):
        chain(case.before).run(texts(ROWS), directory, format=format, window=4, hooks=(Stops(),))


def ids(result: RunResult, folder: str) -> set[str]:
    return {row["row_id"] for row in result.rows(folder)}


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_a_raised_setting_keeps_every_accepted_row_and_rejections_wait_for_retry(
    tmp_path: Path, script: Script, case: Case, format: Format, caplog: pytest.LogCaptureFixture
) -> None:
    begun(case, tmp_path / "run", format)
    asked = {row_of(request) for request in script.requests}
    assert asked & HARD and ALL - asked & HARD
    script.requests.clear()
    done = resume(tmp_path / "run", chain(case.after))
    assert {row_of(request) for request in script.requests} == ALL - asked
    assert ids(done, "rejected") == asked & HARD
    assert ids(done, "flattened") == ALL - (asked & HARD)
    assert done.metadata["balanced"]
    rejected = len(asked & HARD)
    told = f"rows still to be asked use it; {rejected} rejected rows wait for `chainette rejected {tmp_path / 'run'} --retry`"
    assert told in caplog.text and f"hard has {case.setting}=" in caplog.text
    resumed = [event for _, event in read_log(tmp_path / "run/events.jsonl") if isinstance(event, RunResumed)]
    assert resumed[-1].graph is not None
    assert resumed[-1].graph.nodes[0].rescues[case.setting] == {"max_tokens": 200, "max_attempts": 2}[case.setting]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_retry_asks_rejected_rows_with_the_raised_setting(tmp_path: Path, script: Script, case: Case, format: Format) -> None:
    run = chain(case.before).run(texts(ROWS), tmp_path / "run", format=format)
    assert ids(run, "rejected") == HARD
    script.requests.clear()
    done = retry_rejected(run.dir, chain(case.after))
    assert {row_of(request) for request in script.requests} == HARD
    assert ids(done, "flattened") == ALL and done.metadata["balanced"]
    assert content(done)["easy"] == content(chain(case.after).run(texts(ROWS), tmp_path / "fresh"))["easy"]


def test_a_setting_that_was_raised_cannot_be_lowered_again(tmp_path: Path, script: Script, case: Case) -> None:
    begun(case, tmp_path / "run")
    resume(tmp_path / "run", chain(case.after))
    before = (tmp_path / "run/events.jsonl").read_bytes()
    with pytest.raises(ChainChanged, match=rf"hard has {case.setting}=\d+ now \(was \d+, .*--from hard`"):
        resume(tmp_path / "run", chain(case.before))
    with pytest.raises(ChainChanged, match=re.escape("--from hard")):
        retry_rejected(tmp_path / "run", chain(case.before))
    assert (tmp_path / "run/events.jsonl").read_bytes() == before
    script.requests.clear()
    done = resume(tmp_path / "run", chain(case.before), from_step="hard")
    assert ids(done, "rejected") == HARD
    assert done.metadata["balanced"] and {row_of(request) for request in script.requests} == ALL
